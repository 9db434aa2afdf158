"""`make setup` with a stand-in for Python: what it refuses, when it runs again, what it passes on."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Answers what the Makefile asks; FAILS names what must fail. `-m venv DIR` makes an environment
# whose Python is this script again, so that pip's arguments land in `calls`.
PYTHON = """#!/bin/sh
echo "$@" >> calls
case "$*" in
  *version_info*) [ "$FAILS" != version ] ;;
  *ensurepip*) [ "$FAILS" != venv ] ;;
  --version) echo "Python 3.10.1" ;;
  "-m venv .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
  "-m pip install"*) [ "$FAILS" != pip ] ;;
esac
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    if shutil.which("make") is None:
        pytest.skip("there is no make here")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    return tmp_path


def setup(project: Path, *arguments: str, fails: str = "", python: str = "./python") -> tuple[int, str, int]:
    """Exit code, output, and how often pip was called."""
    calls = project / "calls"
    calls.write_text("")
    command = ["make", "setup", f"PYTHON={python}", *arguments]
    environment = {**os.environ, "FAILS": fails, "MAKEFLAGS": "", "PIP_ARGS": ""}
    ran = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    return ran.returncode, ran.stdout + ran.stderr, calls.read_text().count("-m pip install")


@pytest.mark.parametrize(
    ("fails", "python", "message"),
    [
        ("version", "./python", r"needs Python 3.11 or newer, and './python' is Python 3.10.1."),
        ("venv", "./python", "comes without the venv module"),
        ("", "./no-such-python", "there is no './no-such-python' here"),
    ],
)
def test_an_interpreter_that_will_not_do_is_refused(project: Path, fails: str, python: str, message: str) -> None:
    code, output, installs = setup(project, fails=fails, python=python)
    assert (code, installs) == (2, 0)
    assert message in output
    assert "fix: " in output
    assert not (project / ".venv").exists()


def test_it_runs_once_and_again_when_a_pin_changes(project: Path) -> None:
    assert setup(project)[::2] == (0, 1)
    assert setup(project)[::2] == (0, 0)
    soon = time.time() + 10
    os.utime(project / "constraints.txt", (soon, soon))
    assert setup(project)[::2] == (0, 1)


def test_a_failed_set_up_leaves_no_stamp_and_runs_again(project: Path) -> None:
    assert setup(project)[::2] == (0, 1)
    soon = time.time() + 10
    os.utime(project / "pyproject.toml", (soon, soon))
    assert setup(project, fails="pip")[::2] == (2, 1)
    assert setup(project, fails="pip")[::2] == (2, 1)
    os.utime(project / "pyproject.toml", (1, 1))
    assert setup(project)[::2] == (0, 1)


def test_pip_arguments_are_passed_on(project: Path) -> None:
    setup(project, "PIP_ARGS=--extra-index-url there")
    assert "-m pip install --extra-index-url there --constraint constraints.txt" in (project / "calls").read_text()
