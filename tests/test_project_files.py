"""The project's files name no place where it happens to be developed, and the index of strategies is complete."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

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
