"""docs/architectures.md is what its script makes of the tests' models."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.models.zoo import ZOO
from tools.architectures import PAGE, SHOWN, page, row

ROOT = Path(__file__).parents[2]


def rows() -> dict[str, str]:
    """Architecture -> its line of the committed page."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    return {match[1]: line for line in lines if (match := re.match(r"\| `(\w+)` \|", line))}


def test_every_architecture_has_a_row() -> None:
    assert list(rows()) == ZOO


@pytest.mark.parametrize("name", ["olmoe", "qwen3_next"])
def test_a_row_is_what_the_script_makes(name: str) -> None:
    assert row(name) == rows()[name], "run python -m tools.architectures"


@pytest.mark.slow
def test_the_page_is_what_the_script_makes() -> None:
    assert page() == PAGE.read_text(encoding="utf-8"), "run python -m tools.architectures"


@pytest.mark.parametrize("test", SHOWN)
def test_the_tests_that_the_page_names_exist(test: str) -> None:
    file, name = test.split("::")
    assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8")
    assert test in PAGE.read_text(encoding="utf-8")
