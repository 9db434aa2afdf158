"""The suite for aggregators catches planted faults, each by the promise it breaks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, logsumexp

from tokenscale.core.strategy import Aggregator, Rows
from tokenscale.testing import INVARIANTS, check_aggregator
from tokenscale.token_level.aggregators import MeanProbability


def mean(logits: np.ndarray) -> np.ndarray:
    return logsumexp(log_softmax(logits, -1), axis=0) - np.log(len(logits))


@dataclass(frozen=True)
class Faulty(MeanProbability):
    """A mean with something wrong; `folds` off, so that only `aggregate` counts."""

    fault: str = ""
    folds = False

    def aggregate(self, rows: Rows) -> torch.Tensor:
        return FAULTS[self.fault](rows)


def good(rows: Rows) -> torch.Tensor:
    return MeanProbability().aggregate(rows)


def weighted(rows: Rows) -> torch.Tensor:
    """Row 0 counts twice."""
    doubled = Rows(torch.cat([rows.logits[:, :1], rows.logits], 1), torch.cat([rows.valid[:, :1], rows.valid], 1))
    return good(doubled)


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


FAULTS: dict[str, Callable[[Rows], torch.Tensor]] = {
    f.__name__: f for f in (weighted, largest, in_place, row_sums, raw_logits, smoothed, sharpened, padding_too)
}


@pytest.mark.parametrize(
    ("fault", "caught_by"),
    [
        ("weighted", {"permutation", "padding", "duplication", "oracle"}),
        ("largest", {"shift", "oracle", "lower bound", "upper bound"}),
        ("in_place", {"pure"}),
        ("row_sums", {"normalised", "equal rows", "upper bound", "duplication", "oracle"}),
        ("raw_logits", {"shift", "oracle"}),
        ("smoothed", {"one row", "equal rows", "impossible", "oracle", "upper bound", "lower bound"}),
        ("sharpened", {"equal rows", "duplication", "oracle", "upper bound", "lower bound"}),
        ("padding_too", {"padding", "oracle", "lower bound", "upper bound", "normalised", "impossible"}),
    ],
)
def test_faulty_aggregators_are_caught(fault: str, caught_by: set[str]) -> None:
    """Each invariant by itself, so that none hides behind another."""
    caught = {name for name in INVARIANTS if is_caught(fault, name)}
    assert caught & caught_by
    assert "oracle" in caught or fault == "in_place"


def is_caught(fault: str, name: str) -> bool:
    try:
        check_aggregator(Faulty(fault=fault), mean, without=set(INVARIANTS) - {name}, examples=8)
    except AssertionError as error:
        return f"Faulty breaks {name!r}" in str(error)
    return False


def test_a_wrong_fold_is_caught() -> None:
    @dataclass(frozen=True)
    class Forgetful(MeanProbability):
        """Its fold starts anew with every chunk."""

        def update(self, accumulator: Any, rows: Rows) -> Any:
            return super().update(self.init(*rows.logits.shape[::2]), rows)

    with pytest.raises(AssertionError, match="Forgetful breaks 'fold'"):
        check_aggregator(Forgetful(), mean)


def test_half_precision_sums_are_caught() -> None:
    @dataclass(frozen=True)
    class Half(MeanProbability):
        """Computes in the precision of its rows."""

        folds = False

        def aggregate(self, rows: Rows) -> torch.Tensor:
            probs = torch.softmax(rows.logits, -1).masked_fill(~rows.valid[..., None], 0)
            return (probs.sum(1) / rows.valid.sum(1, keepdim=True)).log().float()

    with pytest.raises(AssertionError, match="Half breaks 'half precision'"):
        check_aggregator(Half(), mean, without={"lower bound", "oracle"})


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
