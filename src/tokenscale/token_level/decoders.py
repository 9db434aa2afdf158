"""Decoders of width 1: the most likely token, and sampling."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from tokenscale.core.errors import ArgumentError, at_least, finite
from tokenscale.core.model import LanguageModel
from tokenscale.core.strategy import Choice, Decoder

IMPOSSIBLE = float("-inf")
NEVER = float("inf")


@dataclass(frozen=True)
class Greedy(Decoder):
    """The most likely token, of equal ones the lowest id. The margin is its lead in log-probability."""

    def choose(
        self,
        log_probs: Float[Tensor, "group width vocab"],
        scores: Float[Tensor, "group width"],
        uniforms: Float64[Tensor, " group"] | None,
    ) -> Choice:
        beam = log_probs[:, 0]
        first, second = beam.topk(2).values.unbind(-1)
        return _one_beam(beam.argmax(-1), first - second)


@dataclass(frozen=True)
class Sample(Decoder):
    """A token drawn from the distribution, made sharper by `temperature` and cut by the rest, in this order.

    `temperature` T: p to the power of 1/T, renormalised. `top_k`: the k most likely tokens (Fan et
    al. 2018), ties with the last kept. `top_p`: the most likely tokens up to the one that brings
    their sum to top_p (Holtzman et al. 2019, arXiv 1904.09751). `min_p`: tokens with at least min_p
    times the largest probability (Nguyen et al. 2024, arXiv 2407.01082). The same rules in the same
    order as transformers'.

    Inverse distribution function in the order of token ids, in float64, from one uniform number.
    The margin is the distance of that number from the nearest other token's part, or of the cut from
    the nearest token, whichever is less.
    """

    temperature: float = 0.7
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if finite("Sample", "temperature", self.temperature, 0.7) <= 0:
            message = f"Sample(temperature={self.temperature!r}): temperature must be above 0"
            raise ArgumentError(message, "write temperature=0.7, or Greedy() for the most likely token")
        if self.top_k is not None:
            at_least("Sample", "top_k", self.top_k, 1)
        if self.top_p is not None and not 0 < finite("Sample", "top_p", self.top_p, 0.9) <= 1:
            message = f"Sample(top_p={self.top_p!r}): top_p must be above 0 and at most 1"
            raise ArgumentError(message, "write top_p=0.9, or leave it out")
        if self.min_p is not None and not 0 <= finite("Sample", "min_p", self.min_p, 0.05) < 1:
            message = f"Sample(min_p={self.min_p!r}): min_p must be at least 0 and below 1"
            raise ArgumentError(message, "write min_p=0.05, or leave it out")

    @classmethod
    def from_model(cls, lm: LanguageModel) -> Sample:
        """With what the model's checkpoint recommends; temperature 1 where it says nothing."""
        given = lm.sampling_defaults
        top_k = int(given.get("top_k", 0))
        return cls(given.get("temperature", 1.0), top_k or None, given.get("top_p"), given.get("min_p"))

    def choose(
        self,
        log_probs: Float[Tensor, "group width vocab"],
        scores: Float[Tensor, "group width"],
        uniforms: Float64[Tensor, " group"] | None,
    ) -> Choice:
        assert uniforms is not None
        scaled, cut_margin = self._truncate(log_probs[:, 0].double() / self.temperature)
        ends = torch.softmax(scaled, -1).cumsum(-1)
        total = ends[:, -1]
        target = torch.minimum(uniforms * total, torch.nextafter(total, torch.zeros_like(total)))
        tokens = torch.searchsorted(ends, target[:, None], right=True)
        end = ends.gather(-1, tokens)[:, 0]
        start = torch.where(tokens > 0, ends.gather(-1, (tokens - 1).clamp_min(0)), 0.0)[:, 0]
        below = torch.where(start > 0, target - start, NEVER)
        above = torch.where(end < total, end - target, NEVER)
        return _one_beam(tokens[:, 0], torch.minimum(torch.minimum(below, above), cut_margin))

    def _truncate(
        self, scaled: Float64[Tensor, "group vocab"]
    ) -> tuple[Float64[Tensor, "group vocab"], Float64[Tensor, " group"]]:
        """What may be drawn, and how far the nearest token is from being cut or let in."""
        margin = torch.full_like(scaled[:, 0], NEVER)
        if self.top_k is not None and self.top_k < scaled.shape[-1]:
            last, next_one = scaled.topk(self.top_k + 1).values[:, -2:].unbind(-1)
            scaled = scaled.masked_fill(scaled < last[:, None], IMPOSSIBLE)
            margin = torch.minimum(margin, torch.where(next_one > IMPOSSIBLE, last - next_one, NEVER))
        if self.top_p is not None and self.top_p < 1:
            probs, order = torch.softmax(scaled, -1).sort(dim=-1, descending=True, stable=True)
            before = probs.cumsum(-1) - probs
            kept = torch.zeros_like(scaled, dtype=torch.bool).scatter(-1, order, before < self.top_p)
            scaled = scaled.masked_fill(~kept, IMPOSSIBLE)
            distance = torch.where(probs > 0, (before - self.top_p).abs(), NEVER)
            margin = torch.minimum(margin, distance.amin(-1))
        if self.min_p:
            distance = scaled - scaled.amax(-1, keepdim=True) - math.log(self.min_p)
            scaled = scaled.masked_fill(distance < 0, IMPOSSIBLE)
            margin = torch.minimum(margin, distance.abs().amin(-1))
        return scaled, margin


def _one_beam(tokens: Int[Tensor, " group"], margin: Float[Tensor, " group"]) -> Choice:
    return Choice(torch.zeros_like(tokens)[:, None], tokens[:, None], margin)
