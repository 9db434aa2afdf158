"""A vote of the rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenscale.core.strategy import Rows
from tokenscale.token_level.aggregators.arguments import log, share
from tokenscale.token_level.aggregators.fold import IMPOSSIBLE, Fold, raw_logits, row_log_probs


class _Votes(NamedTuple):
    """Votes per token, log sum_i p_i, and how many rows that is."""

    votes: Float[Tensor, "batch vocab"]
    total: Float[Tensor, "batch vocab"]
    n: Int[Tensor, " batch"]


@dataclass(frozen=True)
class TokenVote(Fold):
    """Each row votes for its most likely token: p = (1 - s) votes / n + s (mean of the rows' probabilities).

    A row with several most likely tokens shares its vote among them equally. The `smoothing` s leaves
    every token possible that some row allows, and decides ties: up to n < 1/s - 1 rows, one vote more
    outweighs any difference of means, and tokens with equal votes are ordered by their mean. s = 0
    leaves the votes alone, s = 1 is MeanProbability. Even one row is changed, into almost all of the
    probability on its first choice. Cost: two exponentials per row and token. Raises ArgumentError
    for s outside [0, 1].
    """

    smoothing: float = 0.001

    def __post_init__(self) -> None:
        object.__setattr__(self, "smoothing", share("TokenVote", "smoothing", self.smoothing, 0.001))

    def aggregate(self, rows: Rows) -> Float[Tensor, "batch vocab"]:
        return self.finish(self._summary(rows))

    def _summary(self, rows: Rows) -> _Votes:
        logits, padding = raw_logits(rows), ~rows.valid[..., None]
        # Of raw logits: in log-probabilities, rounding makes ties of what is none.
        top = logits == logits.amax(-1, keepdim=True)
        votes = (top / top.sum(-1, keepdim=True)).masked_fill_(padding, 0.0).sum(1)
        total = row_log_probs(rows).masked_fill_(padding, IMPOSSIBLE).logsumexp(1)
        return _Votes(votes, total, rows.valid.sum(1))

    def _merge(self, before: _Votes, after: _Votes) -> _Votes:
        total = torch.logaddexp(before.total, after.total)
        return _Votes(before.votes + after.votes, total, before.n + after.n)

    def finish(self, accumulator: _Votes) -> Float[Tensor, "batch vocab"]:
        votes, total, n = accumulator
        voted = votes.log() + math.log1p(-self.smoothing) if self.smoothing < 1 else votes.new_tensor(IMPOSSIBLE)
        return torch.logaddexp(voted, total + log(self.smoothing)) - n.log()[:, None]
