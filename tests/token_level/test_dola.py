"""DoLa against the formula, and which layers it takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax

from tests.token_level.sequential import FOLLOW, LM, PROMPT, STREAM, assert_same, proposed
from tokenscale.core.errors import ArgumentError, CapabilityError
from tokenscale.models.toy import ToyModel
from tokenscale.testing import check_proposer
from tokenscale.token_level.aggregators import DoLaContrast
from tokenscale.token_level.dola import DoLa


def layer_rows(layers: tuple[int, ...]) -> list[np.ndarray]:
    past, found = np.zeros((0, LM.layers, LM.hidden_size)), []
    for position, token in enumerate((*PROMPT, *FOLLOW)):
        one = LM._forward(past, token)
        past = np.concatenate([past, one.keys[None]])
        if position >= len(PROMPT) - 1:
            found.append(np.array([LM._logits(one.hidden[level]) for level in (-1, *layers)]))
    return found


@pytest.mark.parametrize(
    ("proposer", "layers"), [(DoLa(), (1, 3)), (DoLa("low"), (0,)), (DoLa((2, 0)), (2, 0)), (DoLa((1,)), (1,))]
)
def test_its_rows_are_the_layers(proposer: DoLa, layers: tuple[int, ...]) -> None:
    assert proposer.candidates(LM.layers) == layers
    assert_same(proposed(proposer), layer_rows(layers))


def test_the_distribution_is_the_papers() -> None:
    """log q_N - log q_M over q_N >= 0.1 max q_N, M being furthest in Jensen-Shannon divergence, by hand."""
    proposals = DoLa((0, 1, 2, 3)).start(LM, [PROMPT], [STREAM])
    rows, _ = proposals.propose(torch.tensor([PROMPT[-1]]))
    found = DoLa().default_aggregator.aggregate(rows)[0].double().exp().numpy()
    q = softmax(layer_rows((0, 1, 2, 3))[0], axis=-1)
    divergences = [(rel_entr(q[0], (q[0] + r) / 2).sum() + rel_entr(r, (q[0] + r) / 2).sum()) / 2 for r in q[1:]]
    furthest = q[1 + int(np.argmax(divergences))]
    wanted = np.where(q[0] >= 0.1 * q[0].max(), q[0] / furthest, 0.0)
    np.testing.assert_allclose(found, wanted / wanted.sum(), rtol=0, atol=1e-5)
    assert DoLa().default_aggregator == DoLaContrast(alpha=0.1)


def test_one_row_runs_and_every_candidate_costs_an_lm_head() -> None:
    _, [work] = DoLa((0, 1, 2)).start(LM, [PROMPT], [STREAM]).propose(torch.tensor([1]))
    per_row = LM.shape.moe_layers * LM.shape.top_k
    assert (int(work.rows), int(work.heads), int(work.runs)) == (1, 4, per_row)


@pytest.mark.parametrize("proposer", [DoLa(), DoLa("low"), DoLa((0, 2))], ids=repr)
def test_it_conforms(proposer: DoLa) -> None:
    check_proposer(proposer, LM)


@pytest.mark.parametrize(
    ("layers", "low", "high"),
    [
        (32, tuple(range(1, 14, 2)), tuple(range(15, 30, 2))),  # states 2 to 14, and 16 to 30
        (60, tuple(range(1, 18, 2)), tuple(range(39, 58, 2))),  # the 20 lowest states, and the 20 highest
        (6, (1,), (3,)),
        (5, (0,), (1, 3)),
        (3, (0,), (1,)),
        (2, (0,), (0,)),
    ],
)
def test_the_halves(layers: int, low: tuple[int, ...], high: tuple[int, ...]) -> None:
    assert (DoLa("low").candidates(layers), DoLa("high").candidates(layers)) == (low, high)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DoLa("middle"), "layers must be 'low', 'high' or different layers, at least one\n  fix: write lay"),
        (lambda: DoLa(()), "at least one"),
        (lambda: DoLa((1, 1)), "different layers"),
        (lambda: DoLa(3), "at least one"),
        (lambda: DoLa((-1,)), "layers must be at least 0"),
        (lambda: DoLa((0.5,)), "layers must be an integer"),
        (
            lambda: DoLa((1, 4)).check(LM),
            "layer 4 is no layer before the last of toy\n  fix: toy has the layers 0 to 4",
        ),
        (lambda: DoLa().check(ToyModel(moe_layers=0)), "DoLa contrasts layers, and dense toy has one"),
    ],
)
def test_bad_parameters_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make()


def test_equal_layers_make_equal_parts() -> None:
    assert DoLa([0, 2]) == DoLa((0, 2))  # type: ignore[arg-type]


def test_a_model_without_early_layers_is_refused_by_name() -> None:
    other = ToyModel()
    other.capabilities = frozenset()
    with pytest.raises(CapabilityError, match="DoLa reads the logits of earlier layers, which toy does not allow"):
        DoLa().start(other, [(1,)], [STREAM])
