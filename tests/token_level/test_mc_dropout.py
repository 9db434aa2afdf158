"""MCDropout against the sequential reference, on a model of experts and on a dense one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tests.token_level.sequential import FOLLOW, LM, PROMPT, STREAM, assert_same, proposed
from tokenscale.core.errors import ArgumentError, CapabilityError
from tokenscale.core.noise import DROPOUT_DOMAIN, RowNoiseReader
from tokenscale.models.toy import ToyModel
from tokenscale.testing import check_proposer
from tokenscale.token_level.mc_dropout import MCDropout
from tokenscale.token_level.plain import Plain

DENSE = ToyModel(("a", "b", "1"), spelling="", moe_layers=0, width=6, context_length=40)


def dropout_rows(lm: ToyModel, n: int, rate: float) -> list[np.ndarray]:
    past, found = np.zeros((0, lm.layers, lm.hidden_size)), []
    for position, token in enumerate((*PROMPT, *FOLLOW)):
        uniforms = RowNoiseReader(STREAM, DROPOUT_DOMAIN, n - 1, lm.layers, lm.hidden_size).at(position)
        masks = [None] + [np.where(u < np.float32(rate), 0.0, 1 / (1 - rate)) for u in uniforms]
        rows = [lm._forward(past, token, None, mask) for mask in masks]
        past = np.concatenate([past, rows[0].keys[None]])
        if position >= len(PROMPT) - 1:
            found.append(np.array([lm._logits(row.hidden[-1]) for row in rows]))
    return found


@pytest.mark.parametrize("lm", [LM, DENSE], ids=["experts", "dense"])
@pytest.mark.parametrize(("n", "rate"), [(2, 0.1), (5, 0.4)])
def test_it_equals_the_sequential_reference(lm: ToyModel, n: int, rate: float) -> None:
    found = proposed(MCDropout(n, rate), lm)
    assert_same(found, dropout_rows(lm, n, rate))
    assert not np.allclose(found[-1][0], found[-1][1])


@pytest.mark.parametrize("lm", [LM, DENSE], ids=["experts", "dense"])
def test_it_conforms(lm: ToyModel) -> None:
    check_proposer(MCDropout(3, 0.3), lm)


def test_rows_of_a_small_n_are_the_first_of_a_large_one() -> None:
    few, many = (proposed(MCDropout(n, 0.3)) for n in (3, 6))
    assert all((a == b[:3]).all() for a, b in zip(few, many, strict=True))


@pytest.mark.parametrize("proposer", [MCDropout(1, 0.5), MCDropout(4, 0)], ids=repr)
def test_without_dropout_it_is_the_model_itself(proposer: MCDropout) -> None:
    assert not proposer.random
    assert all((a == b).all() for a, b in zip(proposed(proposer), proposed(Plain()), strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, r"MCDropout\(n=0\): n must be at least 1"),
        ({"n": 4, "rate": 1}, r"MCDropout\(rate=1\): rate must be at least 0 and below 1\n  fix: write rate=0.1"),
        ({"n": 4, "rate": -0.1}, "rate must be at least 0"),
        ({"n": 4, "rate": math.nan}, "rate must be a finite number"),
    ],
)
def test_bad_parameters_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        MCDropout(**options)


def test_a_model_without_dropout_is_refused_by_name() -> None:
    other = ToyModel()
    other.capabilities = frozenset()
    with pytest.raises(
        CapabilityError, match=r"MCDropout drops units .* toy does not allow: it does not offer dropout"
    ):
        MCDropout(4).start(other, [(1,)], [STREAM])
