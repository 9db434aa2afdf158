"""The folder order of the library is its import order, and the gallery stands on the public API alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tokenscale

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "tokenscale"
# Parts of one line never import each other; every part imports only from the lines above its own.
ORDER = """
core
models token_level sequence_level
plugins
dsl spec
grammar asked notes
pipeline
testing
recipe_text recipe_sections
recipe_tune
recipe
experiments
bench
integrations
cli_compare
cli_bench cli_generate cli_inspect cli_score cli_tune
cli
__init__ __main__
"""
RANK = {part: rank for rank, line in enumerate(ORDER.split("\n")) for part in line.split()}


def imported(tree: ast.AST) -> Iterator[str]:
    """Dotted names that are imported anywhere in a file, lazily or for type checking too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module}.{alias.name}" for alias in node.names)


def part_of(name: str) -> str:
    """The part of the library that a dotted name belongs to; names of the package itself are its __init__'s."""
    part = name.split(".")[1] if "." in name else "__init__"
    return part if part in RANK or (SOURCE / part).exists() or (SOURCE / f"{part}.py").exists() else "__init__"


def breaches(part: str, code: str) -> list[str]:
    """What a file of `part` imports against the order."""
    names = [n for n in imported(ast.parse(code)) if n.split(".")[0] in ("tokenscale", "")]
    return [n for n in names if n.startswith(".") or (part_of(n) != part and RANK[part_of(n)] >= RANK[part])]


def gallery_breaches(code: str) -> list[str]:
    """What a gallery file imports besides public names, torch and the standard library."""
    public = {"tokenscale", *(f"tokenscale.{name}" for name in getattr(tokenscale, "__all__", ()))}
    others = [n for n in imported(ast.parse(code)) if n not in public]
    return [n for n in others if n.split(".")[0] not in {"torch", *sys.stdlib_module_names}]


def files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_files_import_only_what_stands_above_them(path: Path) -> None:
    part = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    assert part in RANK, f"{part} has no place in the order"
    assert breaches(part, path.read_text()) == []


@pytest.mark.parametrize(
    ("part", "code"),
    [
        ("core", "from tokenscale.pipeline import Pipeline"),
        ("core", "def f():\n    import tokenscale.models.hf"),
        ("models", "from tokenscale.token_level.roe import RoE"),
        ("sequence_level", "from tokenscale import token_level"),
        ("integrations", "import tokenscale.cli"),
        ("pipeline", "from tokenscale import RoE"),
        ("pipeline", "from . import plugins"),
    ],
)
def test_a_planted_breach_is_found(part: str, code: str) -> None:
    assert len(breaches(part, code)) == 1


def test_allowed_imports_are_not_breaches() -> None:
    assert breaches("cli", "from tokenscale.integrations import transformers\nimport torch, typer") == []
    assert breaches("models", "from tokenscale.core.model import State\nimport tokenscale.models.toy") == []


def test_the_gallery_stands_on_the_public_api() -> None:
    found = {path.name: gallery_breaches(path.read_text()) for path in (ROOT / "strategies").glob("*.py")}
    assert not any(found.values()), found


@pytest.mark.parametrize("code", ["import numpy", "import tokenscale.core.data", "from tokenscale.core import data"])
def test_a_planted_breach_in_the_gallery_is_found(code: str) -> None:
    assert gallery_breaches(f"import math\nimport torch\nimport tokenscale as ts\n{code}") != []


def test_importing_the_library_brings_neither_transformers_nor_outlines() -> None:
    code = "import sys, tokenscale; sys.exit(' '.join({'transformers', 'outlines'} & set(sys.modules)) or 0)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
