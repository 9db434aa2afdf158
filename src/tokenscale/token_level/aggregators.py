"""Ways to make one distribution of several rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tokenscale.core.errors import ModelError
from tokenscale.core.strategy import Aggregator, Rows

IMPOSSIBLE = float("-inf")


class _Mean(Aggregator):
    """What both means share: `aggregate` is the fold over one chunk, and one row is its own mean."""

    folds: ClassVar[bool] = True

    def aggregate(self, rows: Rows) -> Float[Tensor, "batch vocab"]:
        batch, n, vocab = rows.logits.shape
        if n == 1:
            return torch.log_softmax(rows.logits[:, 0].float(), -1)
        return self.finish(self.update(self.init(batch, vocab), rows))


@dataclass(frozen=True)
class MeanProbability(_Mean):
    """p = (1/n) sum_i softmax(z_i): a token is as likely as it is on average over the rows.

    What RoE uses (Zibakhsh et al. 2025, arXiv 2509.17238). Summed as log-sum-exp, so that a small
    probability is not rounded to zero. Cost: two exponentials per row and token.
    """

    def init(self, batch: int, vocab: int) -> tuple[Tensor, Tensor]:
        return torch.full((batch, vocab), IMPOSSIBLE), torch.zeros(batch)

    def update(self, accumulator: Any, rows: Rows) -> tuple[Tensor, Tensor]:
        total, count = (part.to(rows.logits.device) for part in accumulator)
        log_probs = torch.log_softmax(rows.logits.float(), -1)
        log_probs = log_probs.masked_fill(~rows.valid[..., None], IMPOSSIBLE)
        return torch.logaddexp(total, log_probs.logsumexp(1)), count + rows.valid.sum(1)

    def finish(self, accumulator: Any) -> Float[Tensor, "batch vocab"]:
        total, count = accumulator
        log_probs: Tensor = total - count.log()[:, None]
        return log_probs


@dataclass(frozen=True)
class MeanLogit(_Mean):
    """p proportional to exp((1/n) sum_i log softmax(z_i)): the rows' geometric mean, a product of experts.

    The same as the mean of raw logits, since a constant added to a row's logits cancels; taking the
    log-softmax first keeps such constants from costing precision. A token that one row finds
    impossible is impossible (Hinton 2002, "Training Products of Experts"). Raises ModelError where
    that leaves no token.
    """

    def init(self, batch: int, vocab: int) -> tuple[Tensor, Tensor]:
        return torch.zeros(batch, vocab), torch.zeros(batch)

    def update(self, accumulator: Any, rows: Rows) -> tuple[Tensor, Tensor]:
        total, count = (part.to(rows.logits.device) for part in accumulator)
        log_probs = torch.log_softmax(rows.logits.float(), -1)
        log_probs = log_probs.masked_fill(~rows.valid[..., None], 0.0)
        return total + log_probs.sum(1), count + rows.valid.sum(1)

    def finish(self, accumulator: Any) -> Float[Tensor, "batch vocab"]:
        total, count = accumulator
        if total.isneginf().all(-1).any():
            message = "MeanLogit: every token is impossible in some row, so their product is no distribution"
            raise ModelError(message, "use MeanProbability(), which keeps what any row allows")
        return torch.log_softmax(total / count[:, None], -1)
