"""Greedy decoding: a decoder in core, since strategies of the sequence level ask with it (a judge's question)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from tokenscale.core.strategy import Choice, Decoder


@dataclass(frozen=True)
class Greedy(Decoder):
    """The most likely token, of equal ones the lowest id. The margin is its lead in log-probability."""

    def choose(
        self,
        log_probs: Float[Tensor, "group width vocab"],
        scores: Float[Tensor, "group width"],
        uniforms: Float64[Tensor, " group"] | None,
        parts: Sequence[int] = (0,),
        endings: int = 1,
    ) -> Choice:
        beam = log_probs[:, 0]
        first, second = beam.topk(2).values.unbind(-1)
        return one_beam(beam.argmax(-1), first - second)


def one_beam(tokens: Int[Tensor, " group"], margin: Float[Tensor, " group"]) -> Choice:
    """The choice of a decoder of width 1."""
    return Choice(torch.zeros_like(tokens)[:, None], tokens[:, None], margin)
