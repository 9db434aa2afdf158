"""Query rows: the n rows of a token are n queries of one sequence at one position, over the clean cache.

For models whose layers store plain keys and values. A mask lets each new key be seen by its own row
alone, and the past by all, so the cache is never copied and memory does not grow with n.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from tokenscale.core.model import State
from tokenscale.core.plan import Routing, RowPlan
from tokenscale.core.step import Step
from tokenscale.models.clean_cache import CleanCache, CleanState
from tokenscale.models.masks import additive, prefill_mask, row_mask
from tokenscale.models.network import Network, at, left_padded, reordered
from tokenscale.models.prompt_routing import batches, kind, padded


class QueryRows:
    """Runs prompts and steps of one network; `windows[l]` is cache layer l's sliding window, None for all keys."""

    def __init__(self, network: Network, windows: Sequence[int | None]) -> None:
        self.network, self.windows = network, list(windows)
        self._kinds = set(self.windows)

    def prefill(self, prompts: Sequence[Sequence[int]], routing: Sequence[Routing] | None, most: int) -> CleanState:
        """The clean cache of all prompts, at most `most` tokens a forward."""
        kinds = [kind(routing[i] if routing else None) for i in range(len(prompts))]
        # The batch of the longest prompts comes first: the others then fit into its buffers.
        groups = batches([len(p) for p in prompts], kinds, most)
        groups.sort(key=lambda group: -max(len(prompts[i]) for i in group))
        state: CleanState | None = None
        for group in groups:
            part = self._prefill([prompts[i] for i in group], [routing[i] for i in group] if routing else None)
            state = part if state is None else state.join(part)
        assert state is not None
        places = {index: place for place, index in enumerate(i for group in groups for i in group)}
        return state.select([places[i] for i in range(len(prompts))])

    def _prefill(self, prompts: list[Sequence[int]], routing: list[Routing] | None) -> CleanState:
        """One forward over left-padded prompts, without lm_head."""
        network, length = self.network, max(len(p) for p in prompts)
        cache = CleanCache(len(self.windows), len(prompts))
        cache.first = [length - len(p) for p in prompts]
        order = list(range(len(prompts)))
        if length == 0:
            return CleanState(cache, order, network.no_prefills(len(prompts)))
        ids, positions, first = left_padded(prompts, network.device)
        mask = None
        if any(cache.first) or any(self.windows):
            mask = self.per_kind({w: prefill_mask(first, length, w) for w in self._kinds})
        plan = RowPlan(length, padded(routing, [len(p) for p in prompts]) if routing else None)
        with network.varied(plan) as record:
            network.run(network.blocks.decoder, cache, ids, positions, mask)
        cache.commit(length)
        cache.frame.start = min(cache.first)
        real = torch.arange(length, device=first.device) >= first[:, None]
        return CleanState(cache, order, network.prefills(record, real))

    def step(self, state: State, tokens: Int[Tensor, " batch"], plan: RowPlan) -> Step:
        """One forward of `plan.n` rows of every sequence."""
        assert isinstance(state, CleanState)
        cache, network, n = state.cache, self.network, plan.n
        if not state.in_order:
            tokens = torch.empty_like(tokens).index_copy_(0, torch.tensor(state.order), tokens)
            plan = reordered(plan, torch.tensor(state.order).argsort().tolist())
        batch, device = len(tokens), network.device
        cache.reserve(n)
        current = cache.frame.width if plan.commit else cache.frame.width - 1
        positions = torch.tensor([current - column for column in cache.first], device=device)
        heads = network.heads(batch, plan)
        with network.varied(plan) as record:
            out = network.run(
                heads.decoder if heads else network.model,
                cache,
                tokens.to(device)[:, None].expand(batch, n),
                positions[:, None].expand(batch, n),
                self.row_masks(cache, plan),
            )
        if plan.commit:
            cache.commit(1)
        step = network.step(network.logits(out, heads), record, plan)
        return step if state.in_order else at(step, state.order)

    def row_masks(self, cache: CleanCache, plan: RowPlan) -> Any:
        """None where one row sees everything that is stored."""
        n, device = plan.n, self.network.device
        if n == 1 and plan.commit and not any(self.windows) and max(cache.first) == cache.frame.start:
            return None
        return self.per_kind({w: row_mask(cache, n, w, device, plan) for w in self._kinds})

    def per_kind(self, visible: dict[int | None, Tensor]) -> Any:
        """One mask, or for a model of mixed layers a mask per kind, by the names of transformers."""
        masks = {w: additive(v, self.network.model.dtype) for w, v in visible.items()}
        if len(masks) == 1:
            return next(iter(masks.values()))
        return {"full_attention" if window is None else "sliding_attention": mask for window, mask in masks.items()}
