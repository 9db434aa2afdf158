"""Which tokens may be chosen: suppressed tokens, constraints, logits processors, in this order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
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

        Where a constraint allows no token that the aggregate finds possible, the first row's distribution
        stands for the aggregate in both, and `fell_back` says so. Raises PipelineError where nothing is left.
        """
        allowed = log_probs
        if len(self._suppressed):
            allowed = allowed.index_fill(-1, self._suppressed, IMPOSSIBLE)
        guided = [i for i, beam in enumerate(beams) if beam.guide is not None]
        if guided:
            log_probs, allowed = self._guided(guided, beams, rows, log_probs, allowed.clone(), fell_back)
        if self._processor is not None:
            allowed = self._processed(self._processor, beams, allowed)
        if allowed is not log_probs and allowed.isneginf().all(-1).any():
            message = "suppressed tokens, constraints and logits processors left no token to choose"
            raise PipelineError(message, "drop one of them, or use an aggregator that allows more tokens")
        return log_probs, allowed

    def _guided(
        self,
        places: Sequence[int],
        beams: Sequence[Record],
        rows: Rows,
        log_probs: LogProbs,
        allowed: LogProbs,
        fell_back: list[bool],
    ) -> tuple[LogProbs, LogProbs]:
        for i in places:
            guide = beams[i].guide
            mask = guide.allowed() if guide is not None else None
            if mask is None:
                continue
            kept = allowed[i].masked_fill(~mask, IMPOSSIBLE)
            if kept.isneginf().all():
                first = torch.log_softmax(rows.logits[i, 0].cpu(), -1)
                log_probs = log_probs.index_copy(0, torch.tensor([i]), first[None])
                kept = first.index_fill(-1, self._suppressed, IMPOSSIBLE).masked_fill(~mask, IMPOSSIBLE)
                fell_back[i] = True
            allowed[i] = kept
        return log_probs, allowed

    def _processed(self, processor: LogitsProcessor, beams: Sequence[Record], allowed: LogProbs) -> LogProbs:
        ids = [torch.tensor([b.prompt + b.token_ids]) for b in beams]
        return torch.cat([processor(i, row[None].clone()) for i, row in zip(ids, allowed, strict=True)])
