"""The short way of the common routers: softmax and top-k, renormalised or not, from the logits they return."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tokenscale.models.routing.draw import Draw
from tokenscale.models.routing.replay import Routed, joined, merged
from tokenscale.models.routing.rule import Rule


def gates(
    logits: Float[Tensor, "*rows experts"], indices: Int[Tensor, "*rows top_k"], renormalise: bool
) -> Float[Tensor, "*rows top_k"]:
    """Gate weights of the chosen experts from router logits, in float32."""
    chosen = logits.float().softmax(-1).gather(-1, indices)
    return chosen / chosen.sum(-1, keepdim=True) if renormalise else chosen


@dataclass(frozen=True)
class Softmax:
    """The way of a router whose gate weights are the softmax of R, `renormalise`d over the chosen or not.

    One run of the router, and a top-k of our own. `late`: it ranks logits, and takes the softmax after.
    """

    renormalise: bool
    late: bool

    def plain(self, call: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Routed:
        output = call(*args, **kwargs)
        return Routed(output, output[2], output[2])

    def route(
        self, module: nn.Module, call: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], draw: Draw
    ) -> Routed:
        """The router with its choice as `draw` says; tokens without a word of it keep what the router gave."""
        logits, weights, plain = call(*args, **kwargs)
        own = logits.float()
        moved = None if draw.noise is None else self._moved(own, draw)
        source = draw.moved_logits(own) if draw.perturbs_weights else own
        if not any(draw.rule.ranks):
            chosen = draw.choose(own, moved, plain, plain.shape[-1])
            gate = gates(source, chosen, self.renormalise).to(weights.dtype)
            return Routed((logits, torch.where(draw.marked(own), gate, weights), chosen), chosen, plain)
        parts = []
        for width, here in draw.widths(plain.shape[-1], len(own), own.device):
            chosen = draw.choose(own, moved, plain, width)
            parts.append(((gates(source, chosen, self.renormalise).to(weights.dtype), chosen), chosen, here))
        (gate, used), chosen = merged(parts)
        if None in draw.rule.ranks:
            gate = joined(weights, gate, ~_untouched(draw, own))
        return Routed((logits, gate, used), chosen, plain)

    def _moved(self, own: Tensor, draw: Draw) -> Tensor:
        if draw.moves_logits:
            return draw.moved_logits(own)
        return draw.moved_scores(own if self.late else own.softmax(-1))


def _untouched(draw: Draw, own: Tensor) -> Bool[Tensor, " tokens"]:
    """Tokens that are neither noisy nor of other ranks."""
    ranked = torch.tensor([r is None for r in draw.rule.ranks], device=own.device)
    kept = ranked.repeat(len(own) // len(ranked))
    return kept if draw.noisy is None else kept & ~draw.noisy


@torch.no_grad()
def softmax_way(rule: Rule, output: Any) -> Softmax | None:
    """The short way, where a router's rule and what it gave on trial allow it."""
    if not isinstance(output, tuple) or len(output) != 3 or rule.indices_at != 2 or not rule.monotone:
        return None
    logits, weights, indices = output
    if logits.is_meta or logits.shape[-1] != rule.experts or weights.shape != indices.shape:
        return None
    for renormalise in (False, True):
        if torch.allclose(gates(logits, indices, renormalise), weights.float(), rtol=1e-2, atol=1e-6):
            return Softmax(renormalise, rule.family.startswith("logits"))
    return None
