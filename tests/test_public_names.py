"""What `tokenscale` itself offers."""

import ast
from pathlib import Path

import pytest

import tokenscale


def test_every_public_name_can_be_imported() -> None:
    for name in tokenscale.__all__:
        assert getattr(tokenscale, name) is not None


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(tokenscale.__file__).read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.asname for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen | {"__version__"} == set(tokenscale.__all__)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(AttributeError, match=r"no 'Roe'; known: .*RoE"):
        _ = tokenscale.Roe
