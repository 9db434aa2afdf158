"""A model's size in the numbers that bills are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ModelShape:
    """A model's size as the bill needs it; a "row" is one token position of one forward.

    dense_flops: per row, all matrix products but attention scores, experts and lm_head.
    head_flops: per row whose logits are computed.
    expert_flops: per row, the top-k experts of all MoE layers together.
    attention: (FLOPs per row and visible key, sliding window in keys or None), one pair per kind.
    dense_bytes, expert_bytes, head_bytes: weights outside experts and lm_head (the input embedding table
        left out), of ONE expert of one layer, and of lm_head, which a prefill does not read.
    kv_bytes: keys and values of one cached token, all layers; a kind's share is its share of FLOPs.
    moe_layers, experts, top_k: 0 for a dense model.
    """

    dense_flops: float
    head_flops: float
    expert_flops: float
    attention: tuple[tuple[float, int | None], ...]
    dense_bytes: float
    head_bytes: float
    expert_bytes: float
    kv_bytes: float
    moe_layers: int
    experts: int
    top_k: int

    def attention_flops(self, contexts: Sequence[int] | range) -> NDArray[np.float64]:
        """Per row that sees so many keys (its own included), for each entry of `contexts`."""
        keys, total = np.asarray(contexts, np.float64), np.zeros(len(contexts))
        for per_key, window in self.attention:
            total += per_key * (keys if window is None else np.minimum(keys, window))
        return total

    def cached_bytes(self, tokens: int) -> float:
        """Keys and values of so many tokens, as far as the layers' windows reach."""
        scores = sum(per_key for per_key, _ in self.attention)
        seen = ((part, tokens if window is None else min(tokens, window)) for part, window in self.attention)
        return sum(self.kv_bytes * part / scores * keys for part, keys in seen)

    @property
    def run_flops(self) -> float:
        """FLOPs of one row in ONE expert of one layer."""
        return self.expert_flops / (self.moe_layers * self.top_k) if self.moe_layers else 0.0

    def decode_flops(
        self,
        rows: Sequence[int],
        context: int,
        heads: Sequence[int] | None = None,
        runs: Sequence[int] | None = None,
    ) -> float:
        """Decoding steps of `rows[i]` rows, each row of step i seeing `context + i` keys (its own included).

        `heads[i]` rows have their logits computed (None: all) and `runs[i]` products of a row with an
        expert are made (None: top-k in every MoE layer).
        """
        scores = self.attention_flops(range(context, context + len(rows)))
        per_row = self.dense_flops + scores
        full = self.moe_layers * self.top_k * np.asarray(rows, np.float64)
        products = full if runs is None else np.asarray(runs, np.float64)
        head = np.asarray(rows if heads is None else heads, np.float64).sum() * self.head_flops
        return float(np.asarray(rows, np.float64) @ per_row + products.sum() * self.run_flops + head)

    def prefill_flops(self, tokens: int, runs: int | None = None) -> float:
        """`tokens` prompt positions under the causal mask, without logits; `runs` as in `decode_flops`."""
        scores = float(self.attention_flops(range(1, tokens + 1)).sum())
        products = self.moe_layers * self.top_k * tokens if runs is None else runs
        return tokens * self.dense_flops + products * self.run_flops + scores
