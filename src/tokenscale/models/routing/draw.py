"""Which experts the tokens of one MoE layer run: the rules of a `Routing`, for routers of any kind."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokenscale.core.errors import RoutingError
from tokenscale.core.plan import Routing


@dataclass(frozen=True)
class Draw:
    """A `Routing` as one MoE layer sees it, its tokens being [batch, rows] flattened.

    `noise` is zero where a token is not `noisy`. `ranks[i]` is of row i, so of every token t with
    t mod rows = i.
    """

    rule: Routing
    noise: Float[Tensor, "tokens experts"] | None
    noisy: Bool[Tensor, " tokens"] | None

    @classmethod
    def of(cls, routing: Routing, layer: int, noisy: bool) -> Draw | None:
        """Layer `layer` of a routing; None where all its tokens choose as the model does."""
        if routing.noise is None or routing.noisy is None or not noisy:
            return cls(routing, None, None) if any(routing.ranks) else None
        marks = routing.noisy[layer].flatten()
        noise = routing.noise[layer].flatten(0, 1).float()
        return cls(routing, noise.masked_fill(~marks[:, None], 0), marks)

    @property
    def moves_logits(self) -> bool:
        """Whether noise is added to the router logits, and so passes through all that the router does with them."""
        return self.noise is not None and self.rule.noise_on == "logits"

    @property
    def needs_order(self) -> bool:
        """Whether noisy tokens are bound by the router's own order of experts."""
        return self.noise is not None and (self.rule.keep_head > 0 or self.rule.candidate_pool is not None)

    @property
    def perturbs_weights(self) -> bool:
        return self.noise is not None and self.rule.weights == "perturbed"

    def check(self, tokens: int, experts: int, top_k: int, name: str) -> None:
        """Refuses noise of the wrong size, and a head or a pool that cannot be."""
        if self.noise is not None and self.noise.shape[0] != tokens:
            raise RoutingError(
                f"the router {name} chose for {tokens} tokens, and the noise is of {self.noise.shape[0]}",
                "give noise of every sequence and row of the forward",
            )
        if self.noise is not None and self.noise.shape[1] < experts:
            message = f"the noise is of {self.noise.shape[1]} experts, and the router {name} has {experts}"
            raise RoutingError(message, "give noise of every expert")
        head, pool = self.rule.keep_head, self.rule.candidate_pool
        if self.noise is not None and (head > top_k or (pool is not None and pool < top_k)):
            raise RoutingError(
                f"keep_head={head} and candidate_pool={pool} do not leave the router {name} its {top_k} experts",
                f"give a keep_head of at most {top_k} and a candidate_pool of at least {top_k}",
            )
        if self.rule.ranks and tokens % len(self.rule.ranks):
            message = f"the router {name} chose for {tokens} tokens, which are not rows of {len(self.rule.ranks)}"
            raise RoutingError(message, "give one entry of ranks per row")
        wide = [r for r in self.rule.ranks if r is not None and not 1 <= r[0] <= r[1] <= experts]
        if wide:
            raise RoutingError(f"the router {name} has {experts} experts, and no ranks {wide[0]}", "give smaller ranks")

    def shaped(self, like: Tensor) -> Float[Tensor, "*tokens width"]:
        """The noise in the shape of scores [..., width]; what is beyond the experts (shared ones) gets none."""
        noise, width = self.noise, like.shape[-1]
        assert noise is not None
        if noise.shape == like.shape:
            return noise
        if noise.shape[-1] != width:
            noise = torch.nn.functional.pad(noise[:, :width], (0, max(0, width - noise.shape[-1])))
        return noise.view(like.shape)

    def marked(self, like: Tensor) -> Bool[Tensor, "*tokens one"]:
        """The noisy tokens, for tensors [..., width]."""
        assert self.noisy is not None
        return self.noisy.view(*like.shape[:-1], 1)

    def moved_logits(self, logits: Tensor) -> Tensor:
        """R + noise; for noise on nothing the noise alone, where a token is noisy."""
        if self.rule.noise_on != "nothing":
            return logits.float() + self.shaped(logits)
        assert self.noise is not None
        noisy = self.marked(logits).expand(logits.shape).clone()
        noisy[..., self.noise.shape[-1] :] = False
        return torch.where(noisy, self.shaped(logits), logits.float())

    def moved_scores(self, own: Float[Tensor, "*tokens experts"]) -> Float[Tensor, "*tokens experts"]:
        """What noisy tokens rank, where noise is not on the logits."""
        noise = self.shaped(own)
        return noise if self.rule.noise_on == "nothing" else own.float() + noise

    def widths(self, top_k: int, tokens: int, device: torch.device) -> list[tuple[int, Bool[Tensor, " tokens"] | None]]:
        """How many experts tokens run, and which tokens run so many; None: all do."""
        ranks = self.rule.ranks or (None,)
        numbers = [top_k if r is None else r[1] - r[0] + 1 for r in ranks]
        if len(set(numbers)) == 1:
            return [(numbers[0], None)]
        per_token = torch.tensor(numbers, device=device).repeat(tokens // len(ranks))
        return [(width, per_token == width) for width in sorted(set(numbers))]

    def choose(
        self,
        own: Float[Tensor, "*tokens experts"],
        moved: Float[Tensor, "*tokens experts"] | None,
        plain: Int[Tensor, "*tokens top_k"],
        width: int,
        beyond: Float[Tensor, "*tokens experts"] | None = None,
    ) -> Int[Tensor, "*tokens width"]:
        """The experts of all tokens that run `width` of them; what other tokens get means nothing.

        `own` is what the router ranks without noise, `moved` with it, and `plain` its own choice.
        Experts that tie, as those outside the router's groups do, are in the order of `beyond`.
        """
        order = ordered(own, beyond) if self.needs_order or any(self.rule.ranks) else None
        chosen = plain
        if width != plain.shape[-1]:
            assert order is not None
            chosen = order[..., :width]
        elif moved is not None:
            drawn = self._within(order, moved, width)
            chosen = torch.where(self.marked(own), drawn, chosen)
        for row, ranks in enumerate(self.rule.ranks):
            if ranks is not None and ranks[1] - ranks[0] + 1 == width:
                assert order is not None
                here = torch.arange(tokens(own), device=own.device) % len(self.rule.ranks) == row
                chosen = torch.where(here.view(*own.shape[:-1], 1), order[..., ranks[0] - 1 : ranks[1]], chosen)
        return chosen

    def _within(self, order: Tensor | None, moved: Tensor, top_k: int) -> Tensor:
        """The best of `moved`: the head before all others, nothing beyond the pool."""
        if order is None or not self.needs_order:
            return moved.topk(top_k, dim=-1).indices
        # What the router excludes (-inf) still comes before what is beyond the pool.
        keys = moved.float().gather(-1, order).clamp_min(torch.finfo(torch.float32).min)
        keys[..., : self.rule.keep_head] = torch.inf
        if self.rule.candidate_pool is not None:
            keys[..., self.rule.candidate_pool :] = -torch.inf
        return order.gather(-1, keys.argsort(dim=-1, descending=True, stable=True)[..., :top_k])


def ordered(
    own: Float[Tensor, "*tokens experts"], beyond: Float[Tensor, "*tokens experts"] | None
) -> Int[Tensor, "*tokens experts"]:
    """Experts from the best to the worst; those that tie in `own` by `beyond`, then by number."""
    if beyond is None:
        return own.argsort(dim=-1, descending=True, stable=True)
    first = beyond.argsort(dim=-1, descending=True, stable=True)
    return first.gather(-1, own.gather(-1, first).argsort(dim=-1, descending=True, stable=True))


def tokens(hidden: Tensor) -> int:
    """How many tokens [tokens, width] or [batch, rows, width] are."""
    return math.prod(hidden.shape[:-1])


def on(routing: Routing, device: torch.device) -> Routing:
    """The routing with its tensors on a device."""
    if routing.noise is None or routing.noisy is None:
        return routing
    return replace(routing, noise=routing.noise.to(device), noisy=routing.noisy.to(device))
