"""The suite for aggregators: invariants that a fair way to make one distribution of rows keeps."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from tokenscale.core.starting import all_valid
from tokenscale.core.strategy import Aggregator, Rows
from tokenscale.testing.aggregator_cases import LARGEST, Case, Oracle, cases
from tokenscale.testing.expect import check_stage, expect, expect_close

# float32 holds log-probabilities down to about -100 within 8e-6, and sums add a few such roundings.
ATOL = 5e-5
UNIT_ROUNDOFF = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
NAN = float("nan")


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


def _ignores_the_order_of_noisy_rows(aggregator: Aggregator, case: Case) -> None:
    valid = case.rows.valid.clone()
    valid[:, 0] = True
    order = [0, *(i for i in case.order.tolist() if i != 0)]
    wanted = aggregator.aggregate(Rows(case.rows.logits, valid))
    found = aggregator.aggregate(Rows(case.rows.logits[:, order], valid[:, order]))
    expect_close(found, wanted, ATOL, "the order of the rows behind row 0 is nothing")


def _ignores_padding(aggregator: Aggregator, case: Case) -> None:
    wanted = aggregator.aggregate(case.rows)
    for rubbish in (NAN, float("inf"), float("-inf"), 0.0):
        found = aggregator.aggregate(_padded(case.rows, rubbish))
        expect_close(found, wanted, 0.0, f"rows that are not valid are ignored ({rubbish})")


def _padded(rows: Rows, rubbish: float) -> Rows:
    return Rows(rows.logits.masked_fill(~rows.valid[..., None], rubbish), rows.valid)


def _treats_padding_as_absent(aggregator: Aggregator, case: Case) -> None:
    wanted = aggregator.aggregate(case.rows)
    for b, valid in enumerate(case.rows.valid):
        alone = aggregator.aggregate(all_valid(case.rows.logits[b, valid][None]))
        expect_close(alone, wanted[b : b + 1], ATOL, "a sequence's aggregate is that of its valid rows alone")


def _ignores_shifts(aggregator: Aggregator, case: Case) -> None:
    rows, shifted = case.on_the_grid()
    wanted = aggregator.aggregate(rows)
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


def _falls_back(aggregator: Aggregator, case: Case) -> None:
    expect(not aggregator.fell_back(case.rows).any(), "nothing falls back where all rows allow a token")
    fell = aggregator.fell_back(case.disjoint)
    expect(fell.dtype == torch.bool and fell.shape == fell.shape[:1], "fell_back is bool, [batch]")
    expect(not fell[case.disjoint.valid.sum(1) == 1].any(), "one valid row does not fall back")
    found = aggregator.aggregate(case.disjoint)
    expect_close(found.logsumexp(-1), torch.zeros(len(found)), ATOL, "disjoint rows give a distribution")
    for b in torch.nonzero(fell)[:, 0].tolist():
        first = case.disjoint.logits[b, case.disjoint.valid[b]][0].log_softmax(-1)
        expect_close(found[b], first, ATOL, "where it fell back the first valid row is used")


def _ignores_duplication(aggregator: Aggregator, case: Case) -> None:
    doubled = Rows(torch.cat([case.rows.logits] * 2, 1), torch.cat([case.rows.valid] * 2, 1))
    expect_close(aggregator.aggregate(doubled), aggregator.aggregate(case.rows), ATOL, "all rows twice is nothing")


def _folds(aggregator: Aggregator, case: Case) -> None:
    if not aggregator.folds:
        return
    for rows in (case.rows, case.disjoint):
        wanted = aggregator.aggregate(rows)
        for chunks in _chunkings(rows.logits.shape[1]):
            found = _folded(aggregator, _padded(rows, NAN), chunks)
            expect_close(found, wanted, ATOL, f"the fold over {chunks} equals the function")


def _folded(aggregator: Aggregator, rows: Rows, chunks: list[slice]) -> Float[Tensor, "batch vocab"]:
    batch, _, vocab = rows.logits.shape
    accumulator = aggregator.init(batch, vocab)
    for chunk in chunks:
        accumulator = aggregator.update(accumulator, Rows(rows.logits[:, chunk], rows.valid[:, chunk]))
    return aggregator.finish(accumulator)


def _chunkings(n: int) -> Iterator[list[slice]]:
    """All 2^(n-1) ways to cut n rows into chunks."""
    for cuts in itertools.product([False, True], repeat=n - 1):
        ends = [*(i + 1 for i, cut in enumerate(cuts) if cut), n]
        yield [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def _equals_the_oracle(aggregator: Aggregator, case: Case) -> None:
    for rows in (case.rows, case.disjoint):
        found = aggregator.aggregate(rows)
        for b, valid in enumerate(rows.valid):
            wanted = torch.from_numpy(case.oracle(rows.logits[b, valid].double().numpy())).float()
            expect_close(found[b], wanted, ATOL, "equals the float64 oracle")


def _widens_half_precision(aggregator: Aggregator, case: Case) -> None:
    for dtype in UNIT_ROUNDOFF:
        rounded = case.rows.logits.to(dtype)
        found = aggregator.aggregate(Rows(rounded, case.rows.valid))
        widened = aggregator.aggregate(Rows(rounded.float(), case.rows.valid))
        expect(found.dtype == torch.float32, f"float32 from {dtype}")
        expect_close(found, widened, ATOL, f"{dtype} logits are computed with in float32")


def _is_stable_under_rounding(aggregator: Aggregator, case: Case) -> None:
    wanted = aggregator.aggregate(case.rows)
    for dtype, roundoff in UNIT_ROUNDOFF.items():
        found = aggregator.aggregate(Rows(case.rows.logits.to(dtype), case.rows.valid))
        # Rounding moves a logit by at most roundoff * LARGEST.
        expect_close(found, wanted, case.lipschitz * roundoff * LARGEST + ATOL, f"{dtype} logits within rounding")


def _shows_what_is_no_number(aggregator: Aggregator, case: Case) -> None:
    wanted = aggregator.aggregate(case.rows)
    logits = case.rows.logits.clone()
    logits[0, torch.nonzero(case.rows.valid[0])[-1, 0], case.order[0]] = NAN
    found = aggregator.aggregate(Rows(logits, case.rows.valid))
    expect(bool(found[0].isnan().any()), "NaN in a valid row shows in the aggregate")
    expect_close(found[1:], wanted[1:], 0.0, "NaN in one sequence changes no other")


def _is_pure(aggregator: Aggregator, case: Case) -> None:
    logits, valid = case.rows.logits.clone(), case.rows.valid.clone()
    first = aggregator.aggregate(case.rows)
    first_kept = first.clone()
    expect(torch.equal(aggregator.aggregate(case.rows), first_kept), "the same twice")
    expect(torch.equal(first, first_kept), "a second call leaves the first's result alone")
    aggregator.fell_back(case.rows)
    if aggregator.folds:
        _folded(aggregator, case.rows, [slice(None)])
    unchanged = torch.equal(case.rows.logits, logits) and torch.equal(case.rows.valid, valid)
    expect(unchanged, "nothing is changed in place")


def _records_no_gradient(aggregator: Aggregator, case: Case) -> None:
    logits = case.rows.logits.clone().requires_grad_() + 0.0
    found = aggregator.aggregate(Rows(logits, case.rows.valid))
    expect(not found.requires_grad, "no gradient is recorded")


INVARIANTS: dict[str, Callable[[Aggregator, Case], None]] = {
    "normalised": _is_normalised,
    "one row": _keeps_one_row,
    "equal rows": _keeps_equal_rows,
    "permutation": _ignores_the_order,
    "noisy permutation": _ignores_the_order_of_noisy_rows,
    "padding": _ignores_padding,
    "absent rows": _treats_padding_as_absent,
    "shift": _ignores_shifts,
    "lower bound": _stays_above_the_least,
    "upper bound": _stays_below_the_most,
    "impossible": _keeps_the_impossible,
    "fallback": _falls_back,
    "duplication": _ignores_duplication,
    "fold": _folds,
    "oracle": _equals_the_oracle,
    "half precision": _widens_half_precision,
    "rounding": _is_stable_under_rounding,
    "no number": _shows_what_is_no_number,
    "pure": _is_pure,
    "gradient": _records_no_gradient,
}


def check_aggregator(
    aggregator: Aggregator,
    oracle: Oracle,
    *,
    without: Collection[str] = (),
    lipschitz: float = 2.0,
    rows: int | None = None,
    examples: int = 100,
) -> None:
    """Every invariant of `INVARIANTS` on `examples` generated cases, those named in `without` left out.

    `oracle` maps one sequence's valid rows, float64 logits [rows, vocab], to log-probabilities
    [vocab], written independently of the aggregator. `lipschitz` bounds how much a log-probability
    moves when logits move by at most 1, which says what rounding to half precision may do. `rows`
    fixes the number of rows, for aggregators made for one. What the built-in aggregators pass here
    is in `DECLARED`. Raises AssertionError with the invariant's name.
    """
    from hypothesis import HealthCheck, given, settings

    check_stage(aggregator)
    unknown = set(without) - set(INVARIANTS)
    expect(not unknown, f"`without` names invariants: {sorted(unknown)} are none of {sorted(INVARIANTS)}")

    # A busy machine is no fault of the aggregator.
    @settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(cases(oracle, lipschitz, rows))
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
