"""Attention in parts: over some of the keys, with what is needed to merge it with attention over others.

softmax over all keys = the parts' results weighted by e^(lse_j - lse), lse_j being the log-sum-exp of part j's
scores. So all rows can attend to a shared past without a mask, and their own keys are merged in.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class Partial(NamedTuple):
    """The attention over some keys, and the log-sum-exp of their scores; minus infinity where there were none."""

    out: Float[Tensor, "batch heads queries value_dim"]
    lse: Float[Tensor, "batch heads queries"]


def attend(
    queries: Float[Tensor, "batch heads queries dim"],
    keys: Float[Tensor, "batch kv_heads keys dim"],
    values: Float[Tensor, "batch kv_heads keys value_dim"],
    scale: float,
    visible: Bool[Tensor, "batch queries keys"] | None = None,
    softcap: float = 0.0,
) -> Partial:
    """Attention of queries over keys, in float32; kv heads serve neighbouring heads. `visible` None: all see all.

    `softcap` c > 0 makes a score s to c tanh(s / c). Cost: scores of the shape [batch, heads, queries, keys].
    """
    batch, heads, count, _ = queries.shape
    groups = heads // keys.shape[1]
    grouped = queries.float().reshape(batch, keys.shape[1], groups * count, -1)
    scores = (grouped * scale) @ keys.float().transpose(-1, -2)
    scores = scores.view(batch, heads, count, -1)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    if visible is not None:
        scores = scores.masked_fill(~visible[:, None], float("-inf"))
    lse = scores.logsumexp(-1)
    weights = (scores - lse.nan_to_num(neginf=0.0)[..., None]).exp()
    out = weights.view(batch, keys.shape[1], groups * count, -1) @ values.float()
    return Partial(out.view(batch, heads, count, -1), lse)


def nothing(queries: Tensor, value_dim: int) -> Partial:
    """Attention over no keys."""
    shape = queries.shape[:3]
    return Partial(
        queries.new_zeros(*shape, value_dim, dtype=torch.float32),
        queries.new_full(shape, float("-inf"), dtype=torch.float32),
    )


def merged(one: Partial, other: Partial) -> Partial:
    """The attention over the keys of both."""
    lse = torch.logaddexp(one.lse, other.lse)
    base = lse.nan_to_num(neginf=0.0)
    weights = [(part.lse - base).exp()[..., None] for part in (one, other)]
    return Partial(weights[0] * one.out + weights[1] * other.out, lse)


def with_sinks(part: Partial, sinks: Float[Tensor, " heads"]) -> Partial:
    """A logit per head takes part in the sum of the softmax, and adds nothing (GPT-OSS)."""
    logits = sinks.float()[None, :, None].expand(part.lse.shape)
    return merged(part, Partial(torch.zeros_like(part.out), logits))
