"""Prefill without padding: prompts, or parts of them, stand one behind the other in one row of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from transformers.cache_utils import Cache, CacheLayerMixin

from tokenscale.models.attention import Layout, Projected
from tokenscale.models.partial import attend, merged, nothing, with_sinks
from tokenscale.models.segments import Chain, length

QUERIES = 512  # at once, so that scores take a bounded part of memory


@dataclass(frozen=True)
class Piece:
    """The tokens of a prompt that come behind a chain."""

    ids: tuple[int, ...]
    chain: Chain

    @property
    def new(self) -> tuple[int, ...]:
        return self.ids[length(self.chain) :]


class PackedLayer(CacheLayerMixin):  # type: ignore[misc]
    """Hands on what it is given, and remembers it."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.keys, self.values, self.is_initialized = key_states, value_states, True
        return key_states, value_states

    def get_seq_length(self) -> int:
        return 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_max_length(self) -> int:
        return -1


class PackedCache(Cache):  # type: ignore[misc]
    """The keys and values that one prefill makes; `layer` is the one that it has reached, `made` its keys."""

    layer: int
    made: Tensor

    def __init__(self, layers: int) -> None:
        super().__init__(layers=[PackedLayer() for _ in range(layers)])

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        self.layer, self.made = layer_idx, key_states
        return self.layers[layer_idx].update(key_states, value_states)


class PackedLayout(Layout):
    """Each piece sees its chain and, causally, itself."""

    def __init__(self, cache: PackedCache, pieces: Sequence[Piece], windows: Sequence[int | None]) -> None:
        self.cache, self.pieces, self.windows = cache, pieces, windows

    def attend(self, given: Projected) -> Float[Tensor, "one tokens heads value_dim"]:
        outs, at = [], 0
        for piece in self.pieces:
            here = slice(at, at + len(piece.new))
            at = here.stop
            q, k, v = (t[:, :, here] for t in (given.queries, given.keys, given.values))
            own = Projected(q, k, v, given.scale, given.softcap, given.sinks)
            outs.append(self._piece(own, piece.chain).transpose(1, 2))
        return torch.cat(outs, 1)

    def _piece(self, given: Projected, chain: Chain) -> Float[Tensor, "one heads tokens value_dim"]:
        window, count = self.windows[self.cache.layer], given.queries.shape[2]
        plain = not chain and not given.softcap and given.sinks is None
        if plain and (window is None or window >= count):
            grouped = given.queries.shape[1] != given.keys.shape[1]
            return F.scaled_dot_product_attention(
                given.queries, given.keys, given.values, is_causal=True, scale=given.scale, enable_gqa=grouped
            )
        outs = [self._block(given, chain, window, at) for at in range(0, count, QUERIES)]
        return torch.cat(outs, 2)

    def _block(self, given: Projected, chain: Chain, window: int | None, at: int) -> Tensor:
        """QUERIES queries from `at` on."""
        queries = given.queries[:, :, at : at + QUERIES]
        end, before = at + queries.shape[2], length(chain)
        device = queries.device
        asked = torch.arange(at, end, device=device)[:, None] + before
        part = nothing(queries, given.values.shape[-1])
        oldest = before + at - window + 1 if window is not None else 0
        for segment, tokens in chain:
            begin = max(0, oldest - segment.start)
            if begin >= tokens:
                continue
            keys, values = (t[self.cache.layer][None, :, begin:tokens] for t in (segment.keys, segment.values))
            places = torch.arange(segment.start + begin, segment.start + tokens, device=device)
            visible = None if window is None else (places > asked - window)[None]
            part = merged(part, attend(queries, keys, values, given.scale, visible, given.softcap))
        begin = 0 if window is None else max(0, at - window + 1)
        places = torch.arange(begin, end, device=device) + before
        visible = (places <= asked) if window is None else (places <= asked) & (places > asked - window)
        keys, values = given.keys[:, :, begin:end], given.values[:, :, begin:end]
        part = merged(part, attend(queries, keys, values, given.scale, visible[None], given.softcap))
        if given.sinks is not None:
            part = with_sinks(part, given.sinks)
        return part.out.to(queries.dtype)
