"""Decoders of width 1: the most likely token (from core, where strategies ask with it too), and sampling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from tokenscale.core.errors import ArgumentError, at_least, finite
from tokenscale.core.greedy import Greedy, one_beam
from tokenscale.core.model import LanguageModel
from tokenscale.core.strategy import Choice, Decoder

__all__ = ["Greedy", "Sample"]

IMPOSSIBLE = float("-inf")
NEVER = float("inf")

Logs = Float64[Tensor, "group vocab"]
Margin = Float64[Tensor, " group"]


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
        # numpy's numbers have no text form.
        for name in ("temperature", "top_p", "min_p"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else float(value))

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
        parts: Sequence[int] = (0,),
        endings: int = 1,
    ) -> Choice:
        assert uniforms is not None
        scaled, cut_margin = self._truncate(log_probs[:, 0].double() / self.temperature)
        ends = torch.softmax(scaled, -1).cumsum(-1)
        total = ends[:, -1]
        # Below `total` even for the largest uniform number, 1 - 2^-53: the product rounds down.
        target = uniforms * total
        tokens = torch.searchsorted(ends, target[:, None], right=True)
        end = ends.gather(-1, tokens)[:, 0]
        start = torch.where(tokens > 0, ends.gather(-1, (tokens - 1).clamp_min(0)), 0.0)[:, 0]
        below = torch.where(start > 0, target - start, NEVER)
        above = torch.where(end < total, end - target, NEVER)
        return one_beam(tokens[:, 0], torch.minimum(torch.minimum(below, above), cut_margin))

    def _truncate(self, scaled: Logs) -> tuple[Logs, Margin]:
        """What may be drawn, and how far the nearest token is from being cut or let in."""
        margin = torch.full_like(scaled[:, 0], NEVER)
        for cut in (self._cut_k, self._cut_p, self._cut_min):
            scaled, distance = cut(scaled)
            margin = torch.minimum(margin, distance)
        return scaled, margin

    def _cut_k(self, scaled: Logs) -> tuple[Logs, Margin]:
        if self.top_k is None or self.top_k >= scaled.shape[-1]:
            return scaled, torch.full_like(scaled[:, 0], NEVER)
        last, dropped = scaled.topk(self.top_k + 1).values[:, -2:].unbind(-1)
        return scaled.masked_fill(scaled < last[:, None], IMPOSSIBLE), _lead(last, dropped)

    def _cut_p(self, scaled: Logs) -> tuple[Logs, Margin]:
        if self.top_p is None or self.top_p == 1:
            return scaled, torch.full_like(scaled[:, 0], NEVER)
        sorted_, order = scaled.sort(dim=-1, descending=True, stable=True)
        probs = torch.softmax(sorted_, -1)
        before = probs.cumsum(-1) - probs
        kept = before < self.top_p
        # Two ways to fall on the other side: the sum at the border, and a swap of the tokens there.
        at_border = torch.where(probs > 0, (before - self.top_p).abs(), NEVER).amin(-1)
        last = kept.sum(-1, keepdim=True) - 1
        after = (last + 1).clamp_max(scaled.shape[-1] - 1)
        swap = _lead(sorted_.gather(-1, last), sorted_.gather(-1, after))[:, 0]
        swap = torch.where(kept.all(-1), NEVER, swap)
        unsorted = torch.zeros_like(kept).scatter(-1, order, kept)
        return scaled.masked_fill(~unsorted, IMPOSSIBLE), torch.minimum(at_border, swap)

    def _cut_min(self, scaled: Logs) -> tuple[Logs, Margin]:
        if not self.min_p:
            return scaled, torch.full_like(scaled[:, 0], NEVER)
        above = scaled - scaled.amax(-1, keepdim=True) - math.log(self.min_p)
        return scaled.masked_fill(above < 0, IMPOSSIBLE), above.abs().amin(-1)


def _lead(last: Float64[Tensor, "*group"], dropped: Float64[Tensor, "*group"]) -> Float64[Tensor, "*group"]:
    """How far the last token that is kept stands above the first that is not, if that one is possible."""
    return torch.where(dropped > IMPOSSIBLE, last - dropped, NEVER)
