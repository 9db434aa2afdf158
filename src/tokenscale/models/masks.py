"""Attention masks over a clean cache, additive, in the form [batch, 1, queries, keys]."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokenscale.models.clean_cache import CleanCache


def additive(visible: Bool[Tensor, "batch queries keys"], dtype: torch.dtype) -> Float[Tensor, "batch 1 queries keys"]:
    """0 where a query sees a key, the type's most negative number elsewhere (finite: a padding query sees none)."""
    hidden = torch.finfo(dtype).min
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, hidden)[:, None]


def first_columns(cache: CleanCache, device: torch.device) -> Int[Tensor, " batch"]:
    """Each row's first column."""
    return torch.tensor(cache.first, device=device)


def row_mask(
    cache: CleanCache, rows: int, window: int | None, device: torch.device
) -> Bool[Tensor, "batch queries keys"]:
    """For `rows` query rows of the next position: each sees its sequence's past and itself, no other row.

    A window of w keys counts the query's own.
    """
    frame = cache.frame
    past = torch.arange(frame.start, frame.width, device=device)
    seen = past >= first_columns(cache, device)[:, None]
    if window is not None:
        seen &= past > frame.width - window
    own = torch.eye(rows, dtype=torch.bool, device=device).expand(frame.rows, rows, rows)
    return torch.cat([seen[:, None].expand(frame.rows, rows, len(past)), own], dim=-1)


def prefill_mask(first: Int[Tensor, " batch"], length: int, window: int | None) -> Bool[Tensor, "batch queries keys"]:
    """The causal mask of left-padded prompts of `length` columns that begin at `first`."""
    columns = torch.arange(length, device=first.device)
    causal = columns[None] <= columns[:, None]
    if window is not None:
        causal &= columns[None] > columns[:, None] - window
    return causal & (columns >= first[:, None])[:, None]
