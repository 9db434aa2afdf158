"""The pages run: every Python block of a page is executed in order, in one namespace, and its commands exist.

A `text` block is what the Python block before it prints.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import tokenscale
from tokenscale.recipe import Recipe

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "strategies" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w+)[^\n]*\n(?P<body>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL
)
RUN_FOR_REAL = ("list", "generate")


class Block(NamedTuple):
    line: int
    language: str
    body: str


def blocks(text: str) -> Iterator[Block]:
    """The fenced blocks of a page, each with the line its content starts at."""
    for match in FENCE.finditer(text):
        yield Block(text.count("\n", 0, match.start("body")), match["language"], match["body"])


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def statements(script: str) -> Iterator[list[str]]:
    """The words of each shell statement; quotes and a trailing backslash go on over lines."""
    pending = ""
    for line in script.replace("\\\n", " ").splitlines(keepends=True):
        pending += line
        try:
            words = shlex.split(pending, comments=True)
        except ValueError:  # an open quote
            continue
        pending = ""
        yield words


def commands() -> list[tuple[str, list[str]]]:
    """(page, words) of every shell statement that calls tokenscale."""
    scripts = [(name_of(page), block) for page in PAGES for block in blocks(page.read_text()) if block.language == "sh"]
    found = [(page, words) for page, block in scripts for words in statements(block.body)]
    return [(page, words[1:]) for page, words in found if words[:1] == ["tokenscale"]]


def run_python(folder: Path, *arguments: str) -> str:
    """What a fresh interpreter prints; it must end well."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def run_tokenscale(folder: Path, words: list[str]) -> str:
    return run_python(folder, "-c", "from tokenscale.cli import main; main()", *words)


@pytest.mark.parametrize("page", PAGES[1:], ids=name_of)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    namespace: dict[str, object] = {"__name__": "__page__"}
    printed = io.StringIO()
    for block in blocks(page.read_text()):
        if block.language == "python":
            source = "\n" * block.line + block.body
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(source, str(page), "exec"), namespace)
        elif block.language == "text":
            assert block.body.split() == printed.getvalue().split(), f"what line {block.line} shows is not printed"


def test_the_example_of_the_readme_can_be_pasted_into_python(tmp_path: Path) -> None:
    code = [block.body for block in blocks(PAGES[0].read_text()) if block.language == "python"]
    assert run_python(tmp_path, "-c", "\n".join(code)).strip()


def without_seconds(output: str) -> list[list[str]]:
    """The words of every line; rows of the table without their last column, which differs from run to run."""
    rows = re.sub(r"^( *\w+ +[\d.]+% .*?)\S+ *$", r"\1", output, flags=re.MULTILINE)
    return [line.split() for line in rows.splitlines() if line.strip()]


@pytest.mark.slow
def test_the_readme_shows_what_the_demo_prints(tmp_path: Path) -> None:
    [shown] = [block.body for block in blocks(PAGES[0].read_text()) if block.language == "text"]
    assert without_seconds(run_tokenscale(tmp_path, ["demo"])) == without_seconds(shown)


@pytest.mark.parametrize(("page", "words"), commands(), ids=lambda value: value if isinstance(value, str) else value[0])
def test_the_commands_of_a_page_exist(page: str, words: list[str], tmp_path: Path) -> None:
    if words[0] in RUN_FOR_REAL:
        assert run_tokenscale(tmp_path, words).strip()
    else:
        usage = run_tokenscale(tmp_path, [words[0], "--help"])
        assert [word for word in words if word.startswith("-") and word not in usage] == []


def test_the_recipes_of_the_pages_load(tmp_path: Path) -> None:
    texts = [b.body for page in PAGES for b in blocks(page.read_text()) if b.language == "yaml"]
    assert texts
    for text in texts:
        (tmp_path / "recipe.yaml").write_text(text)
        Recipe.load(tmp_path / "recipe.yaml")


def test_blocks_are_found_with_their_lines() -> None:
    page = "text\n\n```python\nx = 1\n```\n\n1. list\n\n   ```sh\n   tokenscale list\n   ```\n"
    assert list(blocks(page)) == [Block(3, "python", "x = 1\n"), Block(9, "sh", "   tokenscale list\n")]
    assert list(statements('a "b\nc" \\\n  d  # e\nf\n')) == [["a", "b\nc", "d"], ["f"]]


@pytest.mark.parametrize(
    ("block", "error"),
    [
        ("```python\nraise KeyError('planted')\n```\n", "planted"),
        ("```python\nprint(1)\n```\n\n```text\n2\n```\n", "what line 7 shows is not printed"),
    ],
)
def test_a_page_that_does_not_hold_is_noticed(
    block: str, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Planted\n\n{block}")
    with pytest.raises((KeyError, AssertionError), match=error):
        test_the_python_of_a_page_runs(page, tmp_path, monkeypatch)


def test_the_api_page_has_every_public_name() -> None:
    listed = re.findall(r"^::: tokenscale\.(?:\w+\.)*(\w+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    assert {name for name in tokenscale.__all__ if name != "__version__"} <= set(listed)
