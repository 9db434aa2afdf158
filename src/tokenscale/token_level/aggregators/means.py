"""Means of the rows: of probabilities, of log-probabilities, and the sum of raw exponentials."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokenscale.core.strategy import Rows
from tokenscale.token_level.aggregators.fold import (
    IMPOSSIBLE,
    First,
    Fold,
    all_possible,
    earlier,
    first_valid,
    no_token,
    normalised_or,
    raw_logits,
    row_log_probs,
)


class _Sum(NamedTuple):
    """log sum_i p_i, and how many rows that is."""

    total: Float[Tensor, "batch vocab"]
    n: Int[Tensor, " batch"]


@dataclass(frozen=True)
class MeanProbability(Fold):
    """p = (1/n) sum_i softmax(z_i): a token is as likely as it is on average over the rows.

    What RoE uses (Zibakhsh et al. 2025, arXiv 2509.17238). Summed as log-sum-exp, so that a small
    probability is not rounded to zero. Cost: two exponentials per row and token.
    """

    def _summary(self, rows: Rows) -> _Sum:
        log_probs = row_log_probs(rows).masked_fill_(~rows.valid[..., None], IMPOSSIBLE)
        return _Sum(log_probs.logsumexp(1), rows.valid.sum(1))

    def _merge(self, before: _Sum, after: _Sum) -> _Sum:
        return _Sum(torch.logaddexp(before.total, after.total), before.n + after.n)

    def finish(self, accumulator: _Sum) -> Float[Tensor, "batch vocab"]:
        log_probs: Tensor = accumulator.total - accumulator.n.log()[:, None]
        return log_probs


class _Product(NamedTuple):
    """sum_i log p_i, how many rows that is, and the first of them."""

    total: Float[Tensor, "batch vocab"]
    n: Int[Tensor, " batch"]
    first: First


@dataclass(frozen=True)
class MeanLogit(Fold):
    """p proportional to exp((1/n) sum_i log softmax(z_i)): the rows' geometric mean, a product of experts.

    The same as the mean of raw logits, since a constant added to a row's logits cancels; taking the
    log-softmax first keeps such constants from costing precision. A token that one row finds
    impossible is impossible (Hinton 2002, "Training Products of Experts"); where that leaves no
    token, the first valid row is used. Cost: one exponential per row and token.
    """

    def fell_back(self, rows: Rows) -> Bool[Tensor, " batch"]:
        if all_possible(rows):
            return super().fell_back(rows)
        return no_token(self._summary(rows).total)

    def fold_fell_back(self, accumulator: _Product) -> Bool[Tensor, " batch"]:
        return no_token(accumulator.total)

    def _summary(self, rows: Rows) -> _Product:
        log_probs = row_log_probs(rows).masked_fill_(~rows.valid[..., None], 0.0)
        return _Product(log_probs.sum(1), rows.valid.sum(1), first_valid(rows))

    def _merge(self, before: _Product, after: _Product) -> _Product:
        first = earlier(before.first, after.first)
        return _Product(before.total + after.total, before.n + after.n, first)

    def finish(self, accumulator: _Product) -> Float[Tensor, "batch vocab"]:
        return normalised_or(accumulator.total / accumulator.n[:, None], accumulator.first)


@dataclass(frozen=True)
class LogSumExpLogits(Fold):
    """p proportional to sum_i exp(z_i), of raw logits: a mean in which rows with larger logits weigh more.

    Row i has the weight Z_i / sum_j Z_j, Z_i = sum over the vocabulary of exp(z_i). So a constant
    added to one row's logits, which leaves that row's distribution as it is, changes the result. It
    is not the mean of probabilities, for which it is sometimes taken: that one needs the log-softmax
    of each row first. Cost: one exponential per row and token.
    """

    def _summary(self, rows: Rows) -> Tensor:
        return raw_logits(rows).masked_fill(~rows.valid[..., None], IMPOSSIBLE).logsumexp(1)

    def _merge(self, before: Tensor, after: Tensor) -> Tensor:
        return torch.logaddexp(before, after)

    def finish(self, accumulator: Tensor) -> Float[Tensor, "batch vocab"]:
        return torch.log_softmax(accumulator, -1)
