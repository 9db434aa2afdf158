"""A beam search for tests, since a decoder of several beams is not among the strategies yet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenscale.core.strategy import Choice, Decoder


@dataclass(frozen=True)
class Beams(Decoder):
    """The w most likely continuations of all beams together; the margin is the last one's lead."""

    w: int

    @property
    def width(self) -> int:
        return self.w

    def choose(self, log_probs: Any, scores: Any, uniforms: Any, parts: Any = (0,), endings: int = 1) -> Choice:
        vocab = log_probs.shape[-1]
        totals = (scores[..., None] + log_probs).flatten(1)
        kept = min(self.w, int((totals > float("-inf")).sum(-1).amin()))
        best = totals.topk(min(kept + 1, totals.shape[-1]), -1)
        places = best.indices[:, :kept]
        margin = best.values[:, kept - 1] - best.values[:, -1]
        return Choice(places // vocab, places % vocab, margin)
