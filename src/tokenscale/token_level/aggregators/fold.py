"""What aggregators share: rows as log-probabilities, the first valid row, and folds made of summaries."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tokenscale.core.strategy import Aggregator, Rows

IMPOSSIBLE = float("-inf")
# Sums of thousands of log-probabilities above this are finite in float32.
FAR_FROM_IMPOSSIBLE = -1e30


class First(NamedTuple):
    """The log-probabilities of each sequence's first valid row; anything where none was `seen`."""

    log_probs: Float[Tensor, "batch vocab"]
    seen: Bool[Tensor, " batch"]


def raw_logits(rows: Rows) -> Float[Tensor, "batch rows vocab"]:
    """The logits in float32 and without a gradient. They may be the rows' own memory: not to be written to."""
    return rows.logits.detach().float()


def row_log_probs(rows: Rows) -> Float[Tensor, "batch rows vocab"]:
    """The log-probabilities of every row, in new memory; of padding rows anything, NaN included."""
    return torch.log_softmax(raw_logits(rows), -1)


def first_valid(rows: Rows) -> First:
    """The first valid row of every sequence. Costs the log-softmax of one row each."""
    place = rows.valid.int().argmax(1)
    logits = rows.logits.detach()[torch.arange(len(place), device=place.device), place]
    return First(torch.log_softmax(logits.float(), -1), rows.valid.any(1))


def earlier(a: First, b: First) -> First:
    """The first valid row of two chunks, `a` being the one before."""
    return First(torch.where(a.seen[:, None], a.log_probs, b.log_probs), a.seen | b.seen)


def normalised_or(scores: Float[Tensor, "batch vocab"], first: First) -> Float[Tensor, "batch vocab"]:
    """The log-softmax of scores; the first valid row where every score is minus infinity."""
    return torch.where(no_token(scores)[:, None], first.log_probs, torch.log_softmax(scores, -1))


def no_token(scores: Float[Tensor, "batch vocab"]) -> Bool[Tensor, " batch"]:
    """Where scores leave no token."""
    empty: Tensor = scores.isneginf().all(-1)
    return empty


def all_possible(rows: Rows) -> bool:
    """Whether every logit is finite with room to spare, so that nothing can fall back. Costs no exponential."""
    return bool(rows.logits.amin() > FAR_FROM_IMPOSSIBLE)


class Fold(Aggregator):
    """An aggregator whose rows can be summed up in chunks: `finish` of one summary of all rows.

    `_merge(earlier, later)` joins the summaries of two chunks, and need not be symmetric. One row is
    its own aggregate.
    """

    folds: ClassVar[bool] = True

    @abstractmethod
    def _summary(self, rows: Rows) -> Any:
        """A chunk of rows summed up."""

    @abstractmethod
    def _merge(self, before: Any, after: Any) -> Any:
        """The summary of two neighbouring chunks."""

    def aggregate(self, rows: Rows) -> Float[Tensor, "batch vocab"]:
        if rows.logits.shape[1] == 1:
            return row_log_probs(rows)[:, 0]
        return self.finish(self._summary(rows))

    def init(self, batch: int, vocab: int) -> Any:
        return None

    def update(self, accumulator: Any, rows: Rows) -> Any:
        summary = self._summary(rows)
        return summary if accumulator is None else self._merge(accumulator, summary)
