"""The project's files name no place where it happens to be developed, and the index of strategies is complete."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tokenscale.plugins import BUILT_IN

ROOT = Path(__file__).parent.parent
WORKPLACE = b"/work" + b"/"


def project_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file()]


def test_no_file_names_the_workplace() -> None:
    naming = [str(path.relative_to(ROOT)) for path in project_files() if WORKPLACE in path.read_bytes()]
    assert naming == []


def indexed_names() -> list[str]:
    """The names of the first column of the tables in strategies/README.md, in order."""
    text = (ROOT / "strategies" / "README.md").read_text()
    return re.findall(r"^\| `(\w+)`", text, flags=re.MULTILINE)


def test_the_index_lists_every_strategy_the_built_in_ones_first() -> None:
    gallery = {path.stem for path in (ROOT / "strategies").glob("*.py")}
    names = indexed_names()
    assert sorted(names[: len(BUILT_IN)]) == sorted(BUILT_IN)
    assert {name.lower() for name in names[len(BUILT_IN) :]} == gallery


def test_the_index_says_each_kind() -> None:
    text = (ROOT / "strategies" / "README.md").read_text()
    for name, cls in BUILT_IN.items():
        assert f"| `{name}` | {cls.kind.name.lower()} |" in text
