"""Finds the documents: for each module of the standard library its documentation strings, and pydoc's topics.

Sources are parsed, not imported, so that nothing but the files decides what is found.
"""

import ast
import inspect
import re
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TESTS = {"test", "tests", "idle_test", "site-packages", "__pycache__", "__phello__"}
TOPICS = Path("pydoc_data/topics.py")
OWN_TERMS = re.compile(r"permission to use, copy|permission is hereby granted|redistribution and use", re.IGNORECASE)


@dataclass(frozen=True)
class Document:
    """One module or topic: its name and its pieces (documentation strings, or paragraphs of a topic) in order."""

    name: str
    pieces: tuple[str, ...]


def library() -> Path:
    """The folder of the running interpreter's standard library."""
    return Path(sysconfig.get_path("stdlib"))


def parse(source: bytes) -> ast.Module:
    """The tree of a source file; an empty one for templates and files kept in another language version."""
    with warnings.catch_warnings(action="ignore"):  # as errors they would make a file unreadable
        try:
            return ast.parse(source)
        except (SyntaxError, ValueError):
            return ast.Module(body=[], type_ignores=[])


def docstrings(tree: ast.Module) -> Iterator[str]:
    """The cleaned documentation strings of a module, its classes and its functions, in the source's order."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    for node in sorted(nodes, key=lambda node: getattr(node, "lineno", 0)):
        text = ast.get_docstring(node)
        if text and text.strip():
            yield inspect.cleandoc(text).strip()


def modules(folder: Path) -> Iterator[Document]:
    """Every module with documentation strings; tests and files under terms of their own are left out."""
    for path in sorted(folder.rglob("*.py")):
        inside = path.relative_to(folder)
        if TESTS & set(inside.parts) or inside == TOPICS:
            continue
        source = path.read_bytes()
        if OWN_TERMS.search(source.decode("utf-8", "replace")):
            continue
        pieces = tuple(docstrings(parse(source)))
        if pieces:
            yield Document(".".join(inside.with_suffix("").parts), pieces)


def topics(folder: Path) -> Iterator[Document]:
    """The topics of ``help()``, by paragraph."""
    tree = ast.parse((folder / TOPICS).read_bytes())
    table = next(node.value for node in tree.body if isinstance(node, ast.Assign))
    for name, text in sorted(ast.literal_eval(table).items()):
        paragraphs = re.split(r"\n\s*\n", text.strip("\n"))
        yield Document(f"topic {name}", tuple(p.rstrip() for p in paragraphs if p.strip()))


def documents(folder: Path | None = None) -> list[Document]:
    """All documents of a library (the running interpreter's), sorted by name."""
    folder = folder or library()
    return sorted([*modules(folder), *topics(folder)], key=lambda document: document.name)
