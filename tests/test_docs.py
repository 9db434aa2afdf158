"""The pages run: every Python block of a page is executed in order, in one namespace, and its commands exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

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


def commands() -> list[tuple[str, list[str]]]:
    """(page, words) of every shell line that calls tokenscale; a trailing backslash continues a line."""
    found = []
    for page in PAGES:
        for block in blocks(page.read_text()):
            if block.language not in ("sh", "bash", "console"):
                continue
            lines = block.body.replace("\\\n", " ").splitlines()
            found += [(name_of(page), shlex.split(line)[1:]) for line in lines if line.startswith("tokenscale ")]
    return found


def run_tokenscale(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tokenscale.cli", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__page__"}
    for block in blocks(page.read_text()):
        if block.language == "python":
            source = "\n" * block.line + block.body
            exec(compile(source, str(page), "exec"), namespace)


def test_blocks_are_found_with_their_lines() -> None:
    page = "text\n\n```python\nx = 1\n```\n\n1. list\n\n   ```sh\n   tokenscale list\n   ```\n"
    assert list(blocks(page)) == [Block(3, "python", "x = 1\n"), Block(9, "sh", "   tokenscale list\n")]


def test_a_failing_block_would_be_noticed() -> None:
    [block] = blocks("```python\nraise KeyError('planted')\n```\n")
    with pytest.raises(KeyError, match="planted"):
        exec(block.body, {})
