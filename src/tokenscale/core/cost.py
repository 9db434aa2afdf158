"""What an answer costs, in units that do not depend on batch, machine or schedule.

All figures are for the scenario *alone*: one problem by itself, all its live candidates and rows in
lockstep, one prefill per distinct prompt shared by all, no padding. A step's experts are the union
over everything that runs in it, taken from the experts recorded per candidate, step and layer. So
bills of different problems add up; within a problem `bytes` and `expert_loads` are unions, not sums.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Cost:
    """A bill; bills of different problems add with `+`.

    flops: floating-point operations, a multiply-add being 2 (matrix products only).
    bytes: what an ideal kernel must read: weights once per forward (of experts the union), the KV
        cache once per step, a shared prompt's part of it once for all candidates and beams.
    expert_loads: distinct experts, summed over layers and forwards.
    prompt_tokens: prompt tokens prefilled or stepped, once per distinct prompt.
    new_tokens: tokens generated, discarded candidates and beams included (a beam counts once per step).
    rows: token rows run while decoding (n per token under RoE(n)).
    sequential_steps: forwards that must follow one another: decoding steps, and a prefill at each time
        at which a prompt is new.
    """

    flops: float = 0.0
    bytes: float = 0.0
    expert_loads: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    rows: int = 0
    sequential_steps: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost.total([self, other])

    @classmethod
    def total(cls, bills: Iterable[Cost]) -> Cost:
        """The sum of bills, the same in whatever order they come (math.fsum rounds once)."""
        parts = list(bills)
        return cls(
            math.fsum(bill.flops for bill in parts),
            math.fsum(bill.bytes for bill in parts),
            *(sum(getattr(bill, f.name) for bill in parts) for f in fields(cls)[2:]),
        )

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

    def attention_flops(self, contexts: Sequence[int] | range) -> NDArray[np.float64]:
        """Per row that sees so many keys (its own included), for each entry of `contexts`."""
        keys, total = np.asarray(contexts, np.float64), np.zeros(len(contexts))
        for per_key, window in self.attention:
            total += per_key * (keys if window is None else np.minimum(keys, window))
        return total

    def decode_flops(self, rows: Sequence[int], context: int) -> float:
        """Decoding steps of `rows[i]` rows, each row of step i seeing `context + i` keys (its own included)."""
        scores = self.attention_flops(range(context, context + len(rows)))
        per_row = self.dense_flops + self.head_flops + self.expert_flops + scores
        return float(np.asarray(rows, np.float64) @ per_row)

    def prefill_flops(self, tokens: int) -> float:
        """`tokens` prompt positions under the causal mask, without logits."""
        scores = float(self.attention_flops(range(1, tokens + 1)).sum())
        return tokens * (self.dense_flops + self.expert_flops) + scores


Packed = NDArray[np.uint8]


@dataclass(frozen=True)
class Usage:
    """What one candidate really ran: the record that bills are made from.

    `prompt` is the prefilled and stepped prompt (all of it); `rows[i]` the rows of decoding step i;
    `experts` the experts of each step as packed bits, shape [steps, moe_layers, ceil(experts / 8)];
    `prefill_experts` likewise for the prompt's prefill, shape [moe_layers, ceil(experts / 8)];
    `beams[i]` the beams that step i ran, where they were not one.
    """

    prompt: tuple[int, ...]
    rows: tuple[int, ...]
    experts: Packed
    prefill_experts: Packed
    beams: tuple[int, ...] = ()

    def decode_cost(self, shape: ModelShape) -> Cost:
        """The bill of decoding this candidate by itself, its prefill left out."""
        ledger = Ledger(shape)
        ledger.add([self], start=0)
        return ledger.decode()


def popcount(bits: Packed) -> int:
    return int(np.bitwise_count(bits).sum())


@dataclass
class Ledger:
    """One problem's bill while it grows; the order in which candidates are entered does not matter."""

    shape: ModelShape
    _entries: list[tuple[int, Usage]] = field(default_factory=list)

    def add(self, usages: Sequence[Usage], start: int) -> int:
        """Enters candidates that ran in lockstep from `start`; returns when the last of them ends.

        Times count decoding steps. A prompt is prefilled when it is first needed, while all else waits.
        """
        self._entries += [(start, usage) for usage in usages]
        return max((start + len(usage.rows) for usage in usages), default=start)

    def bill(self) -> Cost:
        """The whole bill, prefills included."""
        first: dict[tuple[int, ...], tuple[int, Packed]] = {}
        for start, usage in sorted(self._entries, key=lambda entry: entry[0]):
            first.setdefault(usage.prompt, (start, usage.prefill_experts))
        prefills = [self._prefill(len(prompt) - 1, experts) for prompt, (_, experts) in first.items()]
        total = Cost.total([self.decode(), *prefills])
        times = {start for prompt, (start, _) in first.items() if len(prompt) > 1}
        return replace(total, sequential_steps=total.sequential_steps + len(times))

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
        end = max(start + len(usage.rows) for start, usage in self._entries)
        union = np.zeros((end, *self._entries[0][1].experts.shape[1:]), np.uint8)
        live: dict[tuple[int, ...], NDArray[np.bool_]] = {}
        flops, new_tokens, rows, keys = list[float](), 0, 0, 0
        for start, usage in self._entries:
            steps = len(usage.rows)
            beams = np.asarray(usage.beams or [1] * steps)
            union[start : start + steps] |= usage.experts
            live.setdefault(usage.prompt, np.zeros(end, np.bool_))[start : start + steps] = True
            flops.append(self.shape.decode_flops(usage.rows, len(usage.prompt)))
            new_tokens += int(beams.sum())
            rows += sum(usage.rows)
            keys += int(beams @ np.arange(steps))
        keys += sum(len(prompt) * int(times.sum()) for prompt, times in live.items())
        forwards = int(np.any(list(live.values()), axis=0).sum())
        loads = popcount(union)
        read = forwards * self.shape.dense_bytes + loads * self.shape.expert_bytes + keys * self.shape.kv_bytes
        return Cost(math.fsum(flops), read, loads, new_tokens=new_tokens, rows=rows, sequential_steps=forwards)
