"""Mixtures with weights by place: given ones, or one for the clean row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokenscale.core.errors import ArgumentError, finite
from tokenscale.core.strategy import Aggregator, Rows
from tokenscale.token_level.aggregators.arguments import log, share
from tokenscale.token_level.aggregators.fold import IMPOSSIBLE, First, Fold, earlier, first_valid, row_log_probs


class _Weighing(NamedTuple):
    """log sum_i w_i p_i, log sum_i w_i, the first valid row, and how many rows came so far, padding included."""

    total: Float[Tensor, "batch vocab"]
    weight: Float[Tensor, " batch"]
    first: First
    rows: int


@dataclass(frozen=True)
class Weighted(Aggregator):
    """The mean of the rows' probabilities with given weights: p = sum_i w_i softmax(z_i) / sum_i w_i.

    `w` has one weight per row, in the order of the rows; they need not sum to 1, and the sums are over
    valid rows. Of a sequence whose
    valid rows all have weight 0, the first valid row is used. One row is its own aggregate whatever
    the weights, as at tau = 0. Cost: as MeanProbability. Raises ArgumentError for weights that are
    negative, not finite, all zero or none, and where there are more or fewer rows than weights.
    """

    w: tuple[float, ...]

    folds: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.w, list | tuple) or not self.w:
            raise ArgumentError(f"Weighted(w={self.w!r}): w must be one weight per row", "write w=(0.5, 0.25, 0.25)")
        weights = tuple(finite("Weighted", "w", w, 0.5) for w in self.w)
        if min(weights) < 0:
            message = f"Weighted(w={self.w!r}): {min(weights)} is negative"
            raise ArgumentError(message, "write weights of 0 or more; ContrastRows(beta=0.5) takes a row away")
        if not any(weights):
            raise ArgumentError(f"Weighted(w={self.w!r}): all weights are 0", "give one row at least a weight above 0")
        object.__setattr__(self, "w", weights)

    def aggregate(self, rows: Rows) -> Float[Tensor, "batch vocab"]:
        return self.finish(self.update(None, rows))

    def fell_back(self, rows: Rows) -> Bool[Tensor, " batch"]:
        return self.fold_fell_back(self.update(None, rows))

    def fold_fell_back(self, accumulator: _Weighing) -> Bool[Tensor, " batch"]:
        return accumulator.weight.isneginf() & (accumulator.rows > 1)

    def init(self, batch: int, vocab: int) -> None:
        return None

    def update(self, accumulator: _Weighing | None, rows: Rows) -> _Weighing:
        start = accumulator.rows if accumulator else 0
        end = start + rows.logits.shape[1]
        # Rows beyond the weights are an error that `finish` raises, when it knows how many there are.
        weights = [log(w) for w in self.w[start:end]] + [IMPOSSIBLE] * (end - max(start, len(self.w)))
        log_weights = torch.tensor(weights, device=rows.logits.device).masked_fill(~rows.valid, IMPOSSIBLE)
        weighted = (row_log_probs(rows) + log_weights[..., None]).masked_fill_(~rows.valid[..., None], IMPOSSIBLE)
        new = _Weighing(weighted.logsumexp(1), log_weights.logsumexp(1), first_valid(rows), end)
        if accumulator is None:
            return new
        total = torch.logaddexp(accumulator.total, new.total)
        weight = torch.logaddexp(accumulator.weight, new.weight)
        return _Weighing(total, weight, earlier(accumulator.first, new.first), end)

    def finish(self, accumulator: _Weighing) -> Float[Tensor, "batch vocab"]:
        total, weight, first, rows = accumulator
        if rows == 1:
            return first.log_probs
        if rows != len(self.w):
            message = f"Weighted(w={self.w!r}) has {len(self.w)} weights, and there are {rows} rows"
            raise ArgumentError(message, f"give {rows} weights, or set the proposer's n to {len(self.w)}")
        return torch.where(weight.isneginf()[:, None], first.log_probs, total - weight[:, None])


class _Anchored(NamedTuple):
    """The clean row, and log sum_i p_i and the count of the others."""

    clean: First
    others: Float[Tensor, "batch vocab"]
    n: Int[Tensor, " batch"]


@dataclass(frozen=True)
class CleanAnchored(Fold):
    """The clean row with a given weight: p = w softmax(z_0) + (1 - w) (mean of the other rows' probabilities).

    w = 1/n is MeanProbability, w = 1 the clean row, w = 0 the noisy rows alone. The clean row is the
    first valid one; where it is the only one, it is the aggregate whatever w. Cost: as
    MeanProbability. Raises ArgumentError for a weight outside [0, 1].
    """

    weight: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", share("CleanAnchored", "weight", self.weight, 0.5))

    def _summary(self, rows: Rows) -> _Anchored:
        other = rows.valid & (rows.valid.cumsum(1) > 1)
        log_probs = row_log_probs(rows).masked_fill_(~other[..., None], IMPOSSIBLE)
        return _Anchored(first_valid(rows), log_probs.logsumexp(1), other.sum(1))

    def _merge(self, before: _Anchored, after: _Anchored) -> _Anchored:
        # The later chunk's first row is one of the others, where the earlier chunk had a valid row.
        both = before.clean.seen & after.clean.seen
        extra = torch.where(both[:, None], after.clean.log_probs, IMPOSSIBLE)
        others = torch.logaddexp(torch.logaddexp(before.others, after.others), extra)
        return _Anchored(earlier(before.clean, after.clean), others, before.n + after.n + both)

    def finish(self, accumulator: _Anchored) -> Float[Tensor, "batch vocab"]:
        clean, others, n = accumulator
        mean = others - n.log()[:, None]
        mixed = torch.logaddexp(clean.log_probs + log(self.weight), mean + log(1 - self.weight))
        return torch.where((n == 0)[:, None], clean.log_probs, mixed)
