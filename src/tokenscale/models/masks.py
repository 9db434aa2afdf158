"""Attention masks over a clean cache, additive, in the form [batch, 1, queries, keys]."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokenscale.core.plan import PLAIN, RowPlan
from tokenscale.models.clean_cache import CleanCache


def additive(visible: Bool[Tensor, "batch queries keys"], dtype: torch.dtype) -> Float[Tensor, "batch 1 queries keys"]:
    """0 where a query sees a key, the type's most negative number elsewhere (finite: a padding query sees none)."""
    hidden = torch.finfo(dtype).min
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, hidden)[:, None]


def first_columns(cache: CleanCache, device: torch.device) -> Int[Tensor, " batch"]:
    """Each row's first column."""
    return torch.tensor(cache.first, device=device)


def row_mask(
    cache: CleanCache, rows: int, window: int | None, device: torch.device, plan: RowPlan = PLAIN
) -> Bool[Tensor, "batch queries keys"]:
    """For `rows` query rows of one position: each sees its sequence's past and one key of the current token.

    That key is its own, or row 0's, or where nothing is committed the stored one in the last column,
    as the plan says; a row's own key is hidden where it sees another's. A window of w keys counts the
    current token's.
    """
    frame = cache.frame
    current = frame.width if plan.commit else frame.width - 1
    stored = torch.arange(frame.start, frame.width, device=device)
    seen = (stored >= first_columns(cache, device)[:, None]) & (stored < current)
    if window is not None:
        seen &= stored > current - window
    clean = plan.current_kv == "clean"
    if clean and not plan.commit:
        seen |= stored == current
    fresh = torch.eye(rows, dtype=torch.bool, device=device)
    if clean:
        fresh = torch.zeros_like(fresh)
        fresh[:, 0] = plan.commit
    return torch.cat(
        [seen[:, None].expand(frame.rows, rows, len(stored)), fresh.expand(frame.rows, rows, rows)], dim=-1
    )


def prefill_mask(first: Int[Tensor, " batch"], length: int, window: int | None) -> Bool[Tensor, "batch queries keys"]:
    """The causal mask of left-padded prompts of `length` columns that begin at `first`."""
    columns = torch.arange(length, device=first.device)
    causal = columns[None] <= columns[:, None]
    if window is not None:
        causal &= columns[None] > columns[:, None] - window
    return causal & (columns >= first[:, None])[:, None]


def text_mask(
    cache: CleanCache, positions: int, rows: int, window: int | None, device: torch.device, clean_key: bool
) -> Bool[Tensor, "batch queries keys"]:
    """For `rows` query rows of each of the next `positions` tokens, position by position, row 0 being the clean row.

    A row sees what is stored and the clean rows' keys before its position; of its own token it sees its
    own key, or with `clean_key` the clean row's. No noisy key is seen by another row.
    """
    first, frame = first_columns(cache, device), cache.frame
    place = torch.arange(positions, device=device).repeat_interleave(rows)
    clean = torch.arange(rows, device=device).repeat(positions) == 0
    stored = torch.arange(frame.start, frame.width, device=device)
    ago = place[:, None] - place
    past, fresh = (stored >= first[:, None])[:, None], clean & (ago > 0)
    if window is not None:
        past = past & (stored > frame.width + place[:, None] - window)
        fresh &= ago < window
    fresh |= clean & (ago == 0) if clean_key else torch.eye(len(place), dtype=torch.bool, device=device)
    batch, queries = frame.rows, len(place)
    return torch.cat([past.expand(batch, queries, len(stored)), fresh.expand(batch, queries, queries)], dim=-1)
