"""The suite for aggregators: invariants that any fair way to make one distribution of rows keeps."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from tokenscale.core.strategy import Aggregator, Rows, all_valid
from tokenscale.testing.expect import check_stage, expect, expect_close

Oracle = Callable[[NDArray[np.float64]], NDArray[np.float64]]

LARGEST = 30.0
LARGEST_SHIFT = 100.0
# float32 holds log-probabilities down to about -100 within 8e-6, and sums add a few such roundings.
ATOL = 5e-5
UNIT_ROUNDOFF = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


@dataclass(frozen=True)
class Case:
    """One example: rows with padding among them, and what the invariants do to them."""

    rows: Rows
    shift: Float[Tensor, "batch rows 1"]
    order: Int[Tensor, " rows"]
    oracle: Oracle

    @property
    def log_probs(self) -> Float[Tensor, "batch rows vocab"]:
        return torch.log_softmax(self.rows.logits, -1)


def _is_normalised(aggregator: Aggregator, case: Case) -> None:
    found = aggregator.aggregate(case.rows)
    batch, _, vocab = case.rows.logits.shape
    expect(found.dtype == torch.float32 and found.shape == (batch, vocab), "float32, [batch, vocab]")
    expect_close(found.logsumexp(-1), torch.zeros(batch), ATOL, "probabilities sum to 1")


def _keeps_one_row(aggregator: Aggregator, case: Case) -> None:
    found = aggregator.aggregate(all_valid(case.rows.logits[:, :1]))
    expect_close(found, case.log_probs[:, 0], ATOL, "one row is its own aggregate")


def _keeps_equal_rows(aggregator: Aggregator, case: Case) -> None:
    logits = case.rows.logits[:, :1].repeat(1, case.rows.logits.shape[1], 1)
    found = aggregator.aggregate(Rows(logits, case.rows.valid))
    expect_close(found, case.log_probs[:, 0], ATOL, "equal rows are their own aggregate")


def _ignores_the_order(aggregator: Aggregator, case: Case) -> None:
    permuted = Rows(case.rows.logits[:, case.order], case.rows.valid[:, case.order])
    expect_close(aggregator.aggregate(permuted), aggregator.aggregate(case.rows), ATOL, "the order of rows is nothing")


def _ignores_padding(aggregator: Aggregator, case: Case) -> None:
    wanted = aggregator.aggregate(case.rows)
    for rubbish in (float("nan"), float("inf"), float("-inf"), 0.0):
        padded = Rows(case.rows.logits.masked_fill(~case.rows.valid[..., None], rubbish), case.rows.valid)
        expect_close(aggregator.aggregate(padded), wanted, 0.0, f"rows that are not valid are ignored ({rubbish})")
    for b, valid in enumerate(case.rows.valid):
        alone = aggregator.aggregate(all_valid(case.rows.logits[b, valid][None]))
        expect_close(alone, wanted[b : b + 1], ATOL, "a sequence's aggregate is that of its valid rows alone")


def _ignores_shifts(aggregator: Aggregator, case: Case) -> None:
    shifted = Rows(case.rows.logits + case.shift, case.rows.valid)
    wanted = aggregator.aggregate(case.rows)
    expect_close(aggregator.aggregate(shifted), wanted, 2 * ATOL, "a constant added to a row's logits is nothing")


def _stays_above_the_least(aggregator: Aggregator, case: Case) -> None:
    least = case.log_probs.masked_fill(~case.rows.valid[..., None], float("inf")).amin(1)
    above = aggregator.aggregate(case.rows) >= least - ATOL
    expect(bool(above.all()), "no token is less likely than in every row")


def _stays_below_the_most(aggregator: Aggregator, case: Case) -> None:
    most = case.log_probs.masked_fill(~case.rows.valid[..., None], float("-inf")).amax(1)
    below = aggregator.aggregate(case.rows) <= most + ATOL
    expect(bool(below.all()), "no token is likelier than in every row")


def _keeps_the_impossible(aggregator: Aggregator, case: Case) -> None:
    impossible = (case.rows.logits.isneginf() | ~case.rows.valid[..., None]).all(1)
    found = aggregator.aggregate(case.rows)[impossible]
    expect(bool(found.isneginf().all()), "what is impossible in all rows stays impossible")


def _ignores_duplication(aggregator: Aggregator, case: Case) -> None:
    doubled = Rows(torch.cat([case.rows.logits] * 2, 1), torch.cat([case.rows.valid] * 2, 1))
    expect_close(aggregator.aggregate(doubled), aggregator.aggregate(case.rows), ATOL, "all rows twice is nothing")


def _folds(aggregator: Aggregator, case: Case) -> None:
    if not aggregator.folds:
        return
    wanted = aggregator.aggregate(case.rows)
    batch, n, vocab = case.rows.logits.shape
    for chunks in _chunkings(n):
        accumulator = aggregator.init(batch, vocab)
        for chunk in chunks:
            part = Rows(case.rows.logits[:, chunk], case.rows.valid[:, chunk])
            accumulator = aggregator.update(accumulator, part)
        expect_close(aggregator.finish(accumulator), wanted, ATOL, f"the fold over {chunks} equals the function")


def _chunkings(n: int) -> Iterator[list[slice]]:
    """All 2^(n-1) ways to cut n rows into chunks."""
    for cuts in itertools.product([False, True], repeat=n - 1):
        ends = [*(i + 1 for i, cut in enumerate(cuts) if cut), n]
        yield [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def _equals_the_oracle(aggregator: Aggregator, case: Case) -> None:
    found = aggregator.aggregate(case.rows)
    for b, valid in enumerate(case.rows.valid):
        wanted = torch.from_numpy(case.oracle(case.rows.logits[b, valid].double().numpy())).float()
        expect_close(found[b], wanted, ATOL, "equals the float64 oracle")


def _is_stable_in_half_precision(aggregator: Aggregator, case: Case) -> None:
    wanted = aggregator.aggregate(case.rows)
    for dtype, roundoff in UNIT_ROUNDOFF.items():
        rounded = Rows(case.rows.logits.to(dtype), case.rows.valid)
        found = aggregator.aggregate(rounded)
        widened = aggregator.aggregate(Rows(rounded.logits.float(), case.rows.valid))
        # Rounding moves a logit by at most roundoff * LARGEST, and a log-softmax by at most twice that.
        expect(found.dtype == torch.float32, f"float32 from {dtype}")
        expect_close(found, wanted, 2 * roundoff * LARGEST + ATOL, f"{dtype} logits within rounding")
        expect_close(found, widened, ATOL, f"{dtype} logits are computed with in float32")


def _is_pure(aggregator: Aggregator, case: Case) -> None:
    logits, valid = case.rows.logits.clone(), case.rows.valid.clone()
    first = aggregator.aggregate(case.rows)
    first_kept = first.clone()
    expect(torch.equal(aggregator.aggregate(case.rows), first_kept), "the same twice")
    expect(torch.equal(first, first_kept), "a second call leaves the first's result alone")
    unchanged = torch.equal(case.rows.logits, logits) and torch.equal(case.rows.valid, valid)
    expect(unchanged, "nothing is changed in place")


INVARIANTS: dict[str, Callable[[Aggregator, Case], None]] = {
    "normalised": _is_normalised,
    "one row": _keeps_one_row,
    "equal rows": _keeps_equal_rows,
    "permutation": _ignores_the_order,
    "padding": _ignores_padding,
    "shift": _ignores_shifts,
    "lower bound": _stays_above_the_least,
    "upper bound": _stays_below_the_most,
    "impossible": _keeps_the_impossible,
    "duplication": _ignores_duplication,
    "fold": _folds,
    "oracle": _equals_the_oracle,
    "half precision": _is_stable_in_half_precision,
    "pure": _is_pure,
}


def check_aggregator(
    aggregator: Aggregator, oracle: Oracle, *, without: Collection[str] = (), examples: int = 100
) -> None:
    """Every invariant of `INVARIANTS` on `examples` generated cases, those named in `without` left out.

    `oracle` maps one sequence's valid rows, float64 logits [rows, vocab], to log-probabilities
    [vocab], written independently of the aggregator. In every case one token at least is possible
    in all rows. Raises AssertionError with the invariant's name.
    """
    from hypothesis import given, settings

    check_stage(aggregator)
    unknown = set(without) - set(INVARIANTS)
    expect(not unknown, f"`without` names invariants: {sorted(unknown)} are none of {sorted(INVARIANTS)}")

    @settings(max_examples=examples, deadline=None)
    @given(_cases(oracle))
    def search(case: Case) -> None:
        for name, holds in INVARIANTS.items():
            if name not in without:
                _named(name, holds, aggregator, case)

    search()


def _named(name: str, holds: Callable[[Aggregator, Case], None], aggregator: Aggregator, case: Case) -> None:
    try:
        holds(aggregator, case)
    except AssertionError as broken:
        raise AssertionError(f"{type(aggregator).__name__} breaks {name!r}: {broken}") from None


def _cases(oracle: Oracle) -> Any:
    """A hypothesis strategy for cases."""
    from hypothesis import strategies as st
    from hypothesis.extra.numpy import arrays

    @st.composite
    def cases(draw: Any) -> Case:
        batch, n, vocab = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(2, 8))
        finite = st.floats(-LARGEST, LARGEST, width=32)
        logits = torch.from_numpy(draw(arrays(np.float32, (batch, n, vocab), elements=finite)))
        # Some tokens impossible in some rows, some in all of them, and one token in none.
        impossible = draw(arrays(np.bool_, (batch, n, vocab))) & draw(arrays(np.bool_, (1, n, 1)))
        impossible |= draw(arrays(np.bool_, (batch, 1, vocab)))
        impossible[:, :, draw(st.integers(0, vocab - 1))] = False
        valid = draw(arrays(np.bool_, (batch, n)))
        valid[:, draw(st.integers(0, n - 1))] = True
        shift = draw(arrays(np.float32, (batch, n, 1), elements=st.floats(-LARGEST_SHIFT, LARGEST_SHIFT, width=32)))
        rows = Rows(logits.masked_fill(torch.from_numpy(impossible), float("-inf")), torch.from_numpy(valid))
        return Case(rows, torch.from_numpy(shift), torch.tensor(draw(st.permutations(range(n)))), oracle)

    return cases()
