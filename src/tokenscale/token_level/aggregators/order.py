"""Order statistics of the rows' probabilities, token by token: the least, the largest, the middle one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tokenscale.core.strategy import Aggregator, Rows
from tokenscale.token_level.aggregators.fold import (
    IMPOSSIBLE,
    First,
    Fold,
    all_possible,
    earlier,
    first_valid,
    no_token,
    normalised_or,
    row_log_probs,
)

NEVER = float("inf")


class _Least(NamedTuple):
    """min_i log p_i, and the first of the rows."""

    least: Float[Tensor, "batch vocab"]
    first: First


@dataclass(frozen=True)
class MinProbability(Fold):
    """p proportional to min_i softmax(z_i): what all rows agree on, each row having a veto.

    A token that one row finds impossible is impossible; where that leaves no token, the first valid
    row is used. Cost: one exponential per row and token.
    """

    def fell_back(self, rows: Rows) -> Bool[Tensor, " batch"]:
        if all_possible(rows):
            return super().fell_back(rows)
        return no_token(self._summary(rows).least)

    def fold_fell_back(self, accumulator: _Least) -> Bool[Tensor, " batch"]:
        return no_token(accumulator.least)

    def _summary(self, rows: Rows) -> _Least:
        log_probs = row_log_probs(rows).masked_fill_(~rows.valid[..., None], NEVER)
        return _Least(log_probs.amin(1), first_valid(rows))

    def _merge(self, before: _Least, after: _Least) -> _Least:
        return _Least(torch.minimum(before.least, after.least), earlier(before.first, after.first))

    def finish(self, accumulator: _Least) -> Float[Tensor, "batch vocab"]:
        return normalised_or(accumulator.least, accumulator.first)


@dataclass(frozen=True)
class MaxProbability(Fold):
    """p proportional to max_i softmax(z_i): what any one row believes in.

    A token is possible if one row allows it. Cost: one exponential per row and token.
    """

    def _summary(self, rows: Rows) -> Tensor:
        return row_log_probs(rows).masked_fill_(~rows.valid[..., None], IMPOSSIBLE).amax(1)

    def _merge(self, before: Tensor, after: Tensor) -> Tensor:
        return torch.maximum(before, after)

    def finish(self, accumulator: Tensor) -> Float[Tensor, "batch vocab"]:
        return torch.log_softmax(accumulator, -1)


@dataclass(frozen=True)
class MedianProbability(Aggregator):
    """p proportional to median_i softmax(z_i), of an even number of rows the mean of the middle two.

    Single rows that go astray do not move it. A token is possible if half of the rows allow it; where
    that leaves no token, the first valid row is used. It has no fold form: a median needs all values
    at once. Cost: one exponential per row and token, and a sort of the rows per token.
    """

    def aggregate(self, rows: Rows) -> Float[Tensor, "batch vocab"]:
        if rows.logits.shape[1] == 1:
            return row_log_probs(rows)[:, 0]
        return normalised_or(self._median(rows), first_valid(rows))

    def fell_back(self, rows: Rows) -> Bool[Tensor, " batch"]:
        if all_possible(rows):
            return super().fell_back(rows)
        return no_token(self._median(rows))

    def _median(self, rows: Rows) -> Float[Tensor, "batch vocab"]:
        ordered = row_log_probs(rows).masked_fill_(~rows.valid[..., None], NEVER).sort(1).values
        count = rows.valid.sum(1)
        middle = torch.stack([(count - 1) // 2, count // 2], 1)[..., None].expand(-1, -1, ordered.shape[-1])
        low, high = ordered.gather(1, middle).unbind(1)
        median = torch.logaddexp(low, high) - math.log(2)
        # NaN is sorted behind everything else, where a median would not meet it.
        return torch.where(ordered[:, -1].isnan(), float("nan"), median)
