"""What an answer costs, in units that do not depend on batch, machine or schedule.

All figures are for the scenario *alone*: one problem by itself, all its live candidates and rows in
lockstep, one prefill per distinct prompt shared by all, no padding. A step's experts are the union
over everything that runs in it, taken from the experts recorded per candidate, step and layer. So
bills of different problems add up; within a problem `bytes` and `expert_loads` are unions, not sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Cost:
    """A bill; bills of different problems add with `+`.

    flops: floating-point operations, a multiply-add being 2 (matrix products only).
    bytes: what an ideal kernel must read: weights once per forward (of experts the union), the KV
        cache once per step, a shared prompt's part of it once for all candidates.
    expert_loads: distinct experts, summed over layers and forwards.
    prompt_tokens: prompt tokens prefilled or stepped, once per distinct prompt.
    new_tokens: tokens generated, discarded candidates included.
    rows: token rows run while decoding (n per token under RoE(n)).
    sequential_steps: forwards that must follow one another.
    """

    flops: float = 0.0
    bytes: float = 0.0
    expert_loads: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    rows: int = 0
    sequential_steps: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class ModelShape:
    """A model's size as the bill needs it; a "row" is one token position of one forward.

    dense_flops: per row, all matrix products but attention scores, experts and lm_head.
    head_flops: per row whose logits are computed.
    expert_flops: per row, the top-k experts of all MoE layers together.
    attention: (FLOPs per row and visible key, sliding window in keys or None), one pair per kind.
    dense_bytes, expert_bytes: weights outside experts (the input embedding table left out), and of
        ONE expert of one layer.
    kv_bytes: keys and values of one cached token, all layers.
    moe_layers, experts, top_k: 0 for a dense model.
    """

    dense_flops: float
    head_flops: float
    expert_flops: float
    attention: tuple[tuple[float, int | None], ...]
    dense_bytes: float
    expert_bytes: float
    kv_bytes: float
    moe_layers: int
    experts: int
    top_k: int

    def attention_flops(self, context: int) -> float:
        """Per row that sees `context` keys (its own included)."""
        return sum(per_key * min(context, window or context) for per_key, window in self.attention)

    def step_flops(self, rows: int, context: int) -> float:
        """One decoding step of `rows` rows, each seeing `context` keys (its own included)."""
        per_row = self.dense_flops + self.head_flops + self.expert_flops + self.attention_flops(context)
        return rows * per_row

    def prefill_flops(self, tokens: int) -> float:
        """`tokens` prompt positions under the causal mask, without logits."""
        scores = sum(self.attention_flops(context) for context in range(1, tokens + 1))
        return tokens * (self.dense_flops + self.expert_flops) + scores


Packed = NDArray[np.uint8]


@dataclass(frozen=True)
class Usage:
    """What one candidate really ran: the record that bills are made from.

    `prompt` is the prefilled and stepped prompt (all of it); `rows[i]` the rows of decoding step i;
    `experts` the experts of each step as packed bits, shape [steps, moe_layers, ceil(experts / 8)];
    `prefill_experts` likewise for the prompt's prefill, shape [moe_layers, ceil(experts / 8)].
    """

    prompt: tuple[int, ...]
    rows: tuple[int, ...]
    experts: Packed
    prefill_experts: Packed

    def decode_cost(self, shape: ModelShape) -> Cost:
        """The bill of decoding this candidate by itself, its prefill left out."""
        ledger = Ledger(shape)
        ledger.add([self], start=0)
        return ledger.decode()


def popcount(bits: Packed) -> int:
    return int(np.bitwise_count(bits).sum())


@dataclass
class Ledger:
    """One problem's bill while it grows. `add` returns the logical time at which its candidates end."""

    shape: ModelShape
    _entries: list[tuple[int, Usage]] = field(default_factory=list)
    _prefills: dict[tuple[int, ...], tuple[int, Packed]] = field(default_factory=dict)

    def add(self, usages: Sequence[Usage], start: int) -> int:
        """Enters candidates that ran in lockstep from logical time `start` (in sequential forwards)."""
        end = start
        for usage in usages:
            first, _ = self._prefills.setdefault(usage.prompt, (start, usage.prefill_experts))
            decode_start = start + (first == start and len(usage.prompt) > 1)
            self._entries.append((decode_start, usage))
            end = max(end, decode_start + len(usage.rows))
        return end

    def bill(self) -> Cost:
        """The whole bill, prefills included."""
        total = self.decode()
        for prompt, (_, experts) in self._prefills.items():
            total += self._prefill(len(prompt) - 1, experts)
        end = max((start + len(u.rows) for start, u in self._entries), default=0)
        return Cost(**{**total.to_dict(), "sequential_steps": end})  # type: ignore[arg-type]

    def _prefill(self, tokens: int, experts: Packed) -> Cost:
        if tokens == 0:
            return Cost(prompt_tokens=1)
        loads = popcount(experts)
        weights = self.shape.dense_bytes + loads * self.shape.expert_bytes
        return Cost(self.shape.prefill_flops(tokens), weights, loads, prompt_tokens=tokens + 1)

    def decode(self) -> Cost:
        """Decoding alone: every step once, for all candidates that are live in it."""
        if not self._entries:
            return Cost()
        flops, new_tokens, rows = 0.0, 0, 0
        end = max(start + len(u.rows) for start, u in self._entries)
        union = np.zeros((end, *self._entries[0][1].experts.shape[1:]), np.uint8)
        kv_tokens, prompts_read = np.zeros(end), [set[tuple[int, ...]]() for _ in range(end)]
        for start, usage in self._entries:
            steps, prompt_tokens = len(usage.rows), len(usage.prompt)
            union[start : start + steps] |= usage.experts
            kv_tokens[start : start + steps] += np.arange(steps)
            for step, count in enumerate(usage.rows):
                prompts_read[start + step].add(usage.prompt)
                flops += self.shape.step_flops(count, prompt_tokens + step)
            new_tokens += steps
            rows += sum(usage.rows)
        live = sum(1 for prompts in prompts_read if prompts)
        shared = sum(len(prompt) for prompts in prompts_read for prompt in prompts)
        loads = popcount(union)
        read = live * self.shape.dense_bytes + loads * self.shape.expert_bytes
        read += (float(kv_tokens.sum()) + shared) * self.shape.kv_bytes
        return Cost(flops, read, loads, new_tokens=new_tokens, rows=rows, sequential_steps=live)
