"""The import hook of conftest.py checks tensor shapes, and leaves other arguments to tokenscale."""

import jaxtyping
import pytest
import torch

from tokenscale.core.errors import ArgumentError, at_least
from tokenscale.core.starting import all_valid
from tokenscale.core.strategy import Rows


def test_a_wrong_shape_is_caught() -> None:
    with pytest.raises(jaxtyping.TypeCheckError, match="valid"):
        Rows(torch.zeros(2, 3, 5), torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(jaxtyping.TypeCheckError, match="logits"):
        all_valid(torch.zeros(2, 3))


def test_a_right_shape_passes() -> None:
    assert all_valid(torch.zeros(2, 3, 5)).valid.shape == (2, 3)


def test_bad_input_of_other_kinds_meets_our_own_errors() -> None:
    with pytest.raises(ArgumentError, match="must be an integer"):
        at_least("RoE", "n", "four", 1)  # type: ignore[arg-type]
