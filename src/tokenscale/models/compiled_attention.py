"""The attention of a compiled step over buffers of one size: heads that share keys are queries of one product.

transformers repeats keys and values for every query head that reads them. Where its attention can be ours
(`supported.shared_form`), h/g heads of n rows are h/g x n queries of their kv head, so that nothing is
repeated, and sinks need no attention without fused kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from tokenscale.models.attention import Layout, Projected
from tokenscale.models.masks import additive


class BufferLayout(Layout):
    """All columns of a layer's buffers, under the mask of the layer's window."""

    def __init__(
        self, cache: Any, visible: dict[int | None, Bool[Tensor, "batch rows columns"]], windows: Sequence[int | None]
    ) -> None:
        self.cache, self._visible, self._windows = cache, visible, windows
        self._masks: dict[tuple[int | None, int], Tensor] = {}

    def attend(self, given: Projected) -> Float[Tensor, "batch rows heads value_dim"]:
        batch, count, rows, _ = given.queries.shape
        layer, kv_heads = self.cache.layers[self.cache.layer], given.keys.shape[1]
        queries = given.queries.reshape(batch, kv_heads, count // kv_heads * rows, -1)
        mask = self._mask(self._windows[self.cache.layer], count // kv_heads, given.queries.dtype)
        if given.sinks is None and not given.softcap:
            out = F.scaled_dot_product_attention(queries, layer.keys, layer.values, mask, scale=given.scale)
        else:
            out = _plainly(queries, layer.keys, layer.values, mask, given)
        return out.reshape(batch, count, rows, -1).transpose(1, 2).contiguous()

    def _mask(self, window: int | None, repeats: int, dtype: torch.dtype) -> Float[Tensor, "batch 1 queries columns"]:
        key = window, repeats
        if key not in self._masks:
            self._masks[key] = additive(self._visible[window].repeat(1, repeats, 1), dtype)
        return self._masks[key]


def _plainly(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor, given: Projected) -> Tensor:
    """By products and a softmax in float32, with what fused kernels do not do: sinks and capped scores."""
    scores = (queries @ keys.transpose(-1, -2)).float() * given.scale
    if given.softcap:
        scores = given.softcap * torch.tanh(scores / given.softcap)
    scores = scores + mask.float()
    if given.sinks is not None:
        rows = given.queries.shape[2]
        sinks = given.sinks.float().view(1, keys.shape[1], -1, 1).expand(len(queries), -1, -1, rows).flatten(2)
        scores = torch.cat([scores, sinks[..., None]], -1)
    weights = scores.softmax(-1)[..., : keys.shape[2]]
    return weights.to(values.dtype) @ values
