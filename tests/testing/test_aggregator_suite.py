"""The suite for aggregators catches planted faults, each by the promise it breaks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, logsumexp

from tests.testing.aggregator_examples import example
from tokenscale.core.strategy import Aggregator, Rows
from tokenscale.testing import INVARIANTS, Declared, check_aggregator
from tokenscale.token_level.aggregators import MeanProbability


def mean(logits: np.ndarray) -> np.ndarray:
    return logsumexp(log_softmax(logits, -1), axis=0) - np.log(len(logits))


@dataclass(frozen=True)
class Faulty(Aggregator):
    """A mean with something wrong."""

    fault: str = ""

    def aggregate(self, rows: Rows) -> torch.Tensor:
        return FAULTS[self.fault](rows)

    def fell_back(self, rows: Rows) -> torch.Tensor:
        return torch.full((len(rows.valid),), self.fault == "falls_back")


def good(rows: Rows) -> torch.Tensor:
    return MeanProbability().aggregate(rows)


def weighted(rows: Rows) -> torch.Tensor:
    """Row 0 counts twice."""
    doubled = Rows(torch.cat([rows.logits[:, :1], rows.logits], 1), torch.cat([rows.valid[:, :1], rows.valid], 1))
    return good(doubled)


def last_twice(rows: Rows) -> torch.Tensor:
    """The last row counts twice, so the order of noisy rows matters."""
    return weighted(Rows(rows.logits.flip(1), rows.valid.flip(1)))


def largest(rows: Rows) -> torch.Tensor:
    return rows.logits.float().masked_fill(~rows.valid[..., None], float("-inf")).amax(1).log_softmax(-1)


def in_place(rows: Rows) -> torch.Tensor:
    found = good(rows)
    rows.logits.sub_(rows.logits.amax(-1, keepdim=True))
    return found


def row_sums(rows: Rows) -> torch.Tensor:
    """Adds probabilities, and forgets to divide."""
    return good(rows) + rows.valid.sum(1, keepdim=True).log()


def raw_logits(rows: Rows) -> torch.Tensor:
    """The log-sum-exp of raw logits, which is no average of probabilities."""
    z = rows.logits.float().masked_fill(~rows.valid[..., None], float("-inf"))
    return z.logsumexp(1).log_softmax(-1)


def smoothed(rows: Rows) -> torch.Tensor:
    return (0.999 * good(rows).exp() + 0.001 / rows.logits.shape[-1]).log()


def sharpened(rows: Rows) -> torch.Tensor:
    return (good(rows) * (1 + 0.1 * (rows.valid.sum(1, keepdim=True) > 1))).log_softmax(-1)


def padding_too(rows: Rows) -> torch.Tensor:
    return good(Rows(rows.logits, torch.ones_like(rows.valid)))


def half(rows: Rows) -> torch.Tensor:
    """Computes in the precision of its rows."""
    probs = torch.softmax(rows.logits, -1).masked_fill(~rows.valid[..., None], 0)
    return (probs.sum(1) / rows.valid.sum(1, keepdim=True)).log().float()


def steep(rows: Rows) -> torch.Tensor:
    """Ten times as far apart, so that rounding shows ten times as much."""
    return (good(rows) * 10).log_softmax(-1)


def product(rows: Rows) -> torch.Tensor:
    """NaN where rows have no token in common."""
    logs = rows.logits.detach().float().log_softmax(-1).masked_fill(~rows.valid[..., None], 0)
    return (logs.sum(1) / rows.valid.sum(1, keepdim=True)).log_softmax(-1)


def falls_back(rows: Rows) -> torch.Tensor:
    """Says so, and does not."""
    return good(rows)


def hides_nan(rows: Rows) -> torch.Tensor:
    return good(Rows(rows.logits.nan_to_num(nan=0.0, neginf=float("-inf")), rows.valid))


def with_gradient(rows: Rows) -> torch.Tensor:
    logs = rows.logits.float().log_softmax(-1).masked_fill(~rows.valid[..., None], float("-inf"))
    return logs.logsumexp(1) - rows.valid.sum(1, keepdim=True).log()


FAULTS: dict[str, Callable[[Rows], torch.Tensor]] = {
    f.__name__: f
    for f in (
        *(weighted, last_twice, largest, in_place, row_sums, raw_logits, smoothed, sharpened, padding_too),
        *(half, steep, product, falls_back, hides_nan, with_gradient, good),
    )
}


@cache
def is_broken(name: str, fault: str) -> bool:
    for seed in range(40):
        try:
            INVARIANTS[name](Faulty(fault=fault), example(seed, mean))
        except AssertionError:
            return True
    return False


@pytest.mark.parametrize(
    ("fault", "caught_by"),
    [
        ("weighted", {"permutation", "absent rows", "duplication", "oracle"}),
        ("last_twice", {"permutation", "noisy permutation", "absent rows", "duplication", "oracle"}),
        ("largest", {"shift", "oracle", "gradient"}),
        ("in_place", {"pure"}),
        ("row_sums", {"normalised", "equal rows", "upper bound", "duplication", "oracle"}),
        ("raw_logits", {"shift", "oracle"}),
        ("smoothed", {"one row", "equal rows", "impossible", "oracle", "upper bound", "lower bound"}),
        ("sharpened", {"equal rows", "lower bound", "duplication", "oracle"}),
        ("padding_too", {"padding", "absent rows", "oracle", "lower bound", "upper bound"}),
        ("half", {"half precision"}),
        ("steep", {"one row", "equal rows", "lower bound", "upper bound", "oracle", "rounding"}),
        ("product", {"fallback", "upper bound", "oracle"}),
        ("falls_back", {"fallback"}),
        ("hides_nan", {"no number"}),
        ("with_gradient", {"gradient"}),
    ],
)
def test_faulty_aggregators_are_caught(fault: str, caught_by: set[str]) -> None:
    """Each invariant by itself, so that none hides behind another."""
    assert {name for name in INVARIANTS if is_broken(name, fault)} >= caught_by


def test_every_invariant_catches_something() -> None:
    """But for the fold, whose fault is below."""
    caught = {name for name in INVARIANTS if any(is_broken(name, fault) for fault in FAULTS)}
    assert caught == set(INVARIANTS) - {"fold"}


def test_a_good_aggregator_breaks_nothing_on_these_examples() -> None:
    assert not any(is_broken(name, "good") for name in INVARIANTS)


def test_the_broken_promise_is_named() -> None:
    """Which of several it is depends on the smallest example that hypothesis finds."""
    with pytest.raises(AssertionError, match=r"Faulty breaks '[a-z ]+': .*off by 0.69"):
        check_aggregator(Faulty(fault="row_sums"), mean, rows=2)


def test_a_wrong_fold_is_caught() -> None:
    @dataclass(frozen=True)
    class Forgetful(MeanProbability):
        """Its fold starts anew with every chunk."""

        def update(self, accumulator: Any, rows: Rows) -> Any:
            return super().update(self.init(*rows.logits.shape[::2]), rows)

    with pytest.raises(AssertionError, match="Forgetful breaks 'fold'"):
        check_aggregator(Forgetful(), mean)


def test_the_names_of_invariants_are_checked() -> None:
    with pytest.raises(AssertionError, match="`without` names invariants: \\['symmetry'\\] are none of"):
        check_aggregator(MeanProbability(), mean, without={"symmetry"})


def test_a_stage_that_is_not_frozen_is_caught() -> None:
    class Loose(Aggregator):
        """No dataclass."""

        def aggregate(self, rows: Rows) -> torch.Tensor:
            return good(rows)

    with pytest.raises(AssertionError, match="Loose is a frozen dataclass"):
        check_aggregator(Loose(), mean)


def test_what_an_aggregator_declares_are_arguments_of_the_suite() -> None:
    changed = dict.fromkeys(
        ("one row", "equal rows", "lower bound", "upper bound", "oracle", "fallback"), "it is steep"
    )
    check_aggregator(Faulty(fault="steep"), mean, **vars(Declared(changed, lipschitz=20.0, rows=2)), examples=5)


def test_the_number_of_rows_can_be_fixed() -> None:
    seen: set[int] = set()

    @dataclass(frozen=True)
    class Counting(MeanProbability):
        """Notes how many rows it gets where nothing was doubled or left out."""

        def fell_back(self, rows: Rows) -> torch.Tensor:
            seen.add(rows.logits.shape[1])
            return super().fell_back(rows)

    check_aggregator(Counting(), mean, rows=7, examples=5)
    assert seen == {7}
