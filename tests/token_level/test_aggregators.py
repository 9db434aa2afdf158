"""Every aggregator keeps the invariants of the suite but for those declared, which it breaks in fact."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.testing.aggregator_examples import example
from tests.token_level import aggregator_oracles as oracles
from tokenscale.core.errors import ArgumentError
from tokenscale.core.stage import Kind
from tokenscale.core.starting import all_valid
from tokenscale.core.strategy import Aggregator, Rows
from tokenscale.plugins import BUILT_IN
from tokenscale.testing import DECLARED, INVARIANTS, check_aggregator
from tokenscale.testing.aggregator_cases import Case, Oracle
from tokenscale.token_level.aggregators import (
    CleanAnchored,
    ConfidenceWeighted,
    ContrastRows,
    DoLaContrast,
    EntropyWeighted,
    LogSumExpLogits,
    MaxProbability,
    MeanLogit,
    MeanProbability,
    MedianProbability,
    MinProbability,
    TokenVote,
    Weighted,
)

ALL: list[tuple[Aggregator, Oracle]] = [
    (MeanProbability(), oracles.mean_probability),
    (MeanLogit(), oracles.mean_logit),
    (LogSumExpLogits(), oracles.log_sum_exp_logits),
    (MinProbability(), oracles.min_probability),
    (MaxProbability(), oracles.max_probability),
    (MedianProbability(), oracles.median_probability),
    (TokenVote(), oracles.token_vote(0.001)),
    (ConfidenceWeighted(), oracles.confidence_weighted),
    (EntropyWeighted(), oracles.entropy_weighted),
    (ContrastRows(), oracles.contrast_rows(0.5, 0.1)),
    (DoLaContrast(), oracles.dola_contrast(0.1)),
    (CleanAnchored(0.3), oracles.clean_anchored(0.3)),
    (Weighted((0.5, 2.0, 1.25)), oracles.mean_probability),  # its own oracle is below
]
"""One of each class, with its oracle."""

VARIANTS: list[tuple[Aggregator, Oracle]] = [
    (TokenVote(smoothing=0.0), oracles.token_vote(0.0)),
    (TokenVote(smoothing=1.0), oracles.mean_probability),
    (ContrastRows(beta=0.0, alpha=0.3), oracles.contrast_rows(0.0, 0.3)),
    (ContrastRows(beta=1.0, alpha=1.0), oracles.contrast_rows(1.0, 1.0)),
    (DoLaContrast(alpha=1e-3), oracles.dola_contrast(1e-3)),
    (CleanAnchored(0.0), oracles.clean_anchored(0.0)),
    (CleanAnchored(1.0), oracles.clean_anchored(1.0)),
]


def name(value: object) -> str:
    return repr(value) if isinstance(value, Aggregator) else ""


def check(aggregator: Aggregator, oracle: Oracle, examples: int) -> None:
    check_aggregator(aggregator, oracle, **vars(DECLARED[type(aggregator)]), examples=examples)


@pytest.mark.parametrize(("aggregator", "oracle"), ALL, ids=name)
def test_the_invariants_hold(aggregator: Aggregator, oracle: Oracle) -> None:
    check(aggregator, oracle, 30)


@pytest.mark.parametrize(("aggregator", "oracle"), VARIANTS, ids=name)
def test_the_invariants_hold_at_the_ends_of_the_parameters(aggregator: Aggregator, oracle: Oracle) -> None:
    check(aggregator, oracle, 12)


def test_every_built_in_aggregator_is_declared_and_checked() -> None:
    built_in = {cls for cls in BUILT_IN.values() if cls.kind is Kind.AGGREGATOR}
    assert built_in == set(DECLARED) == {type(aggregator) for aggregator, _ in ALL}


TELLING = {
    "two rows equally far from row 0, in opposite directions": [[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]],
    "medians that sum to 1.3": np.log([[0.4, 0.4, 0.1, 0.1], [0.4, 0.1, 0.4, 0.1], [0.1, 0.4, 0.4, 0.1]]).tolist(),
    "a first choice that bfloat16 makes a tie": [[1.0, 1.001], [1.0, 1.001]],
    "a token just outside the plausible ones that bfloat16 lets in": [[0.0, -2.3035], [0.0, 0.0]],
}


def telling_case(logits: list[list[float]], lipschitz: float) -> Case:
    n = len(logits)
    order = torch.tensor([0, *range(n - 1, 0, -1)])
    rows = all_valid(torch.tensor([logits]))
    return Case(rows, rows, torch.zeros(1, n, 1), order, oracles.mean_probability, lipschitz)


def is_broken(invariant: str, aggregator: Aggregator, case: Case) -> bool:
    try:
        INVARIANTS[invariant](aggregator, case)
    except (AssertionError, ArgumentError):
        return True
    return False


@pytest.mark.parametrize(
    ("aggregator", "invariant"),
    [(aggregator, invariant) for aggregator, _ in ALL for invariant in DECLARED[type(aggregator)].without],
    ids=lambda value: name(value) or value,
)
def test_what_is_declared_broken_is_broken(aggregator: Aggregator, invariant: str) -> None:
    """So that the table says no less than what holds."""
    declared = DECLARED[type(aggregator)]
    n = declared.rows
    tried = [telling_case(z, declared.lipschitz) for z in TELLING.values() if n in (None, len(z))]
    tried += [example(seed, oracles.mean_probability, rows=n, lipschitz=declared.lipschitz) for seed in range(50)]
    assert any(is_broken(invariant, aggregator, case) for case in tried)


def test_reasons_are_given() -> None:
    for declared in DECLARED.values():
        assert set(declared.without) <= set(INVARIANTS)
        assert all(len(reason) > 20 for reason in declared.without.values())


def test_weights_by_place_equal_the_oracle() -> None:
    """Random weights, some zero, and padding anywhere; folded too."""
    chance = np.random.default_rng(0)
    for _ in range(60):
        n = int(chance.integers(2, 6))
        weights = chance.uniform(0, 3, n) * (chance.random(n) < 0.7)
        weights = weights if weights.any() else np.ones(n)
        logits, valid = chance.normal(0, 8, (3, n, 5)), chance.random((3, n)) < 0.6
        valid[:, chance.integers(n)] = True
        logits[:, :, 2] = -np.inf
        rows = Rows(torch.tensor(logits, dtype=torch.float32), torch.tensor(valid))
        found = Weighted(tuple(weights)).aggregate(rows)
        wanted = [oracles.weighted(z, v, weights) for z, v in zip(rows.logits.double().numpy(), valid, strict=True)]
        torch.testing.assert_close(found, torch.tensor(np.array(wanted)).float(), rtol=0, atol=5e-5)
        fell = Weighted(tuple(weights)).fell_back(rows)
        assert fell.tolist() == [not (weights * v).any() for v in valid]


def test_entropies_move_as_slowly_as_declared() -> None:
    """The declared bound of EntropyWeighted is 2 + 2 sup E|log p + H|, and 1.4 is above that supremum for 8 tokens.

    One token against seven equal ones is where the variance of log p is largest (Reeb and Wolf 2015).
    """
    q = np.linspace(1e-4, 1 - 1e-4, 10_000)
    deviation = np.sqrt(q * (1 - q)) * np.abs(np.log((1 - q) * 7 / q))
    assert deviation.max() < 1.4
    assert DECLARED[EntropyWeighted].lipschitz == pytest.approx(2 + 2 * 1.4)
