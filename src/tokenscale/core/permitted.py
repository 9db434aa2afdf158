"""Which tokens may be chosen: suppressed tokens, constraints, logits processors, in this order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokenscale.core.errors import PipelineError
from tokenscale.core.model import LanguageModel
from tokenscale.core.record import Record
from tokenscale.core.strategy import Rows

LogitsProcessor = Callable[[Int[Tensor, "batch length"], Float[Tensor, "batch vocab"]], Float[Tensor, "batch vocab"]]
LogProbs = Float[Tensor, "beams vocab"]
IMPOSSIBLE = float("-inf")


class Permitted:
    """Takes away what may not be chosen from the aggregated log-probabilities, once per step."""

    def __init__(self, lm: LanguageModel, processor: LogitsProcessor | None) -> None:
        self._suppressed = torch.tensor(sorted(lm.suppressed_ids), dtype=torch.long)
        self._processor = processor

    def of(
        self, beams: Sequence[Record], rows: Rows, log_probs: LogProbs, fell_back: list[bool]
    ) -> tuple[LogProbs, LogProbs]:
        """(log-probabilities, the same with -inf where a token may not be chosen); not renormalised.

        Where suppressed tokens and a constraint leave no token that the aggregate finds possible, the first row's
        distribution stands for the aggregate in both, and `fell_back` says so. Raises PipelineError where nothing
        is left of that either, or by processors.
        """
        masks = [beam.guide.allowed() if beam.guide is not None else None for beam in beams]
        allowed = log_probs
        if len(self._suppressed) or any(mask is not None for mask in masks):
            allowed = torch.stack([self._kept(row, mask) for row, mask in zip(log_probs, masks, strict=True)])
            for i in allowed.isneginf().all(-1).nonzero()[:, 0].tolist():
                first = torch.log_softmax(rows.part(slice(i, i + 1), slice(1)).logits[0, 0].cpu(), -1)
                log_probs = log_probs.index_copy(0, torch.tensor([i]), first[None])
                allowed[i] = self._kept(first, masks[i])
                fell_back[i] = True
        if self._processor is not None:
            allowed = self._processed(self._processor, beams, allowed)
        if allowed is not log_probs and allowed.isneginf().all(-1).any():
            message = "suppressed tokens, constraints and logits processors left no token to choose"
            raise PipelineError(message, "drop one of them, or use an aggregator that allows more tokens")
        return log_probs, allowed

    def _kept(self, log_probs: Float[Tensor, " vocab"], mask: Bool[Tensor, " vocab"] | None) -> Float[Tensor, " vocab"]:
        """What may be chosen of one beam's."""
        kept = log_probs.index_fill(-1, self._suppressed, IMPOSSIBLE)
        return kept if mask is None else kept.masked_fill(~mask, IMPOSSIBLE)

    def _processed(self, processor: LogitsProcessor, beams: Sequence[Record], allowed: LogProbs) -> LogProbs:
        ids = [torch.tensor([b.prompt + b.token_ids]) for b in beams]
        return torch.cat([processor(i, row[None].clone()) for i, row in zip(ids, allowed, strict=True)])
