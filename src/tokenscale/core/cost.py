"""What an answer costs, in units that do not depend on batch, machine or schedule.

All figures are for the scenario *alone*: one problem by itself, all its live candidates and rows in
lockstep, one prefill per distinct prompt shared by all, no padding. A step's experts are the union
over everything that runs in it, taken from the experts recorded per candidate, step and layer. So
bills of different problems add up; within a problem `bytes` and `expert_loads` are unions, not sums.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace

import numpy as np
from numpy.typing import NDArray

Packed = NDArray[np.uint8]


@dataclass(frozen=True)
class Cost:
    """A bill; bills of different problems add with `+`.

    flops: floating-point operations, a multiply-add being 2 (matrix products only).
    bytes: what an ideal kernel must read: weights once per forward (of experts the union), and once per
        step the keys and values in each layer's window, a shared prompt's once for all that share it.
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


@dataclass(frozen=True)
class Prefill:
    """What a prefill ran: experts, packed bits [moe_layers, ceil(experts / 8)], and its token-expert products."""

    experts: Packed
    runs: int


@dataclass(frozen=True)
class Cached:
    """One cache of a candidate as its prefill left it; a candidate has one, or several in lockstep.

    `model` is the fingerprint of the model it belongs to, `shape` that model's. `prompt` is all that
    was prefilled, and the token stepped first. Caches with equal model, prompt and `source` hold the
    same prompt, whose prefill and storage they share.
    """

    model: str
    shape: ModelShape
    prompt: tuple[int, ...]
    prefill: Prefill
    source: Hashable = ""

    @property
    def content(self) -> Hashable:
        """What caches that share their prompt have in common."""
        return self.model, self.prompt, self.source


@dataclass(frozen=True)
class Ran:
    """What one step ran over one cache, for all beams of a group: counts, and experts as packed bits."""

    rows: int
    heads: int
    runs: int
    experts: Packed


@dataclass(frozen=True)
class Lane:
    """What really ran over one cache, step by step.

    `rows[i]` rows, `heads[i]` of them with logits, `runs[i]` products of a row with an expert, `experts`
    as packed bits, shape [steps, moe_layers, ceil(experts / 8)]; `beams[i]` the beams that step i
    ran, where they were not one.
    """

    cached: Cached
    rows: tuple[int, ...]
    heads: tuple[int, ...]
    runs: tuple[int, ...]
    experts: Packed
    beams: tuple[int, ...] = ()

    @classmethod
    def of(cls, cached: Cached, ran: Sequence[Ran], beams: tuple[int, ...]) -> Lane:
        """A lane of its steps."""
        return cls(
            cached,
            rows=tuple(r.rows for r in ran),
            heads=tuple(r.heads for r in ran),
            runs=tuple(r.runs for r in ran),
            experts=np.stack([r.experts for r in ran]),
            beams=beams,
        )

    @property
    def beam_counts(self) -> NDArray[np.int64]:
        return np.asarray(self.beams or [1] * len(self.rows), np.int64)

    @property
    def ran(self) -> NDArray[np.bool_]:
        return np.asarray(self.rows) > 0


@dataclass(frozen=True)
class Usage:
    """What one candidate (or search) really ran: the record that bills are made from. Its lanes ran in lockstep.

    `texts` are the token ids that it generated, one entry a finished text.
    """

    lanes: tuple[Lane, ...]
    texts: tuple[tuple[int, ...], ...] = ()

    @property
    def steps(self) -> int:
        return len(self.lanes[0].rows)

    def decode_cost(self) -> Cost:
        """The bill of decoding this candidate by itself, its prefill left out."""
        ledger = Ledger()
        ledger.add([self], start=0)
        return ledger.decode()


def popcount(bits: Packed) -> int:
    return int(np.bitwise_count(bits).sum())


@dataclass
class Ledger:
    """One problem's bill while it grows; the order in which candidates are entered does not matter."""

    _entries: list[tuple[int, Usage]] = field(default_factory=list)

    def add(self, usages: Sequence[Usage], start: int) -> int:
        """Enters candidates that ran in lockstep from `start`; returns when the last of them ends.

        Times count decoding steps. A prompt is prefilled when it is first needed, while all else waits.
        """
        self._entries += [(start, usage) for usage in usages]
        return max((start + usage.steps for usage in usages), default=start)

    def bill(self) -> Cost:
        """The whole bill, prefills included."""
        first: dict[Hashable, tuple[int, Cached]] = {}
        for start, usage in sorted(self._entries, key=lambda entry: entry[0]):
            for lane in usage.lanes:
                first.setdefault(lane.cached.content, (start, lane.cached))
        total = Cost.total([self.decode(), *(_prefill_cost(cached) for _, cached in first.values())])
        times = {start for start, cached in first.values() if len(cached.prompt) > 1}
        return replace(total, sequential_steps=total.sequential_steps + len(times))

    def decode(self) -> Cost:
        """Decoding alone: every step once, for all candidates and models that are live in it."""
        if not self._entries:
            return Cost()
        end = max(start + usage.steps for start, usage in self._entries)
        models: dict[str, list[tuple[int, Lane]]] = {}
        for start, usage in self._entries:
            for lane in usage.lanes:
                models.setdefault(lane.cached.model, []).append((start, lane))
        parts = [_decode_cost(lanes, end) for lanes in models.values()]
        live = np.zeros(end, np.bool_)
        for start, usage in self._entries:
            live[start : start + usage.steps] = True
        new_tokens = sum(int(usage.lanes[0].beam_counts.sum()) for _, usage in self._entries)
        return replace(Cost.total(parts), new_tokens=new_tokens, sequential_steps=int(live.sum()))


def _prefill_cost(cached: Cached) -> Cost:
    tokens, shape = len(cached.prompt) - 1, cached.shape
    if tokens == 0:
        return Cost(prompt_tokens=1)
    loads = popcount(cached.prefill.experts)
    weights = shape.dense_bytes + loads * shape.expert_bytes
    return Cost(shape.prefill_flops(tokens, cached.prefill.runs), weights, loads, prompt_tokens=tokens + 1)


def _decode_cost(lanes: Sequence[tuple[int, Lane]], end: int) -> Cost:
    """FLOPs, bytes, experts and rows of all lanes of one model, in a run of `end` steps."""
    shape = lanes[0][1].cached.shape
    union = np.zeros((end, *lanes[0][1].experts.shape[1:]), np.uint8)
    live = np.zeros(end, np.bool_)
    for start, lane in lanes:
        times = slice(start, start + len(lane.rows))
        union[times] |= lane.experts
        live[times] |= lane.ran
    flops = [shape.decode_flops(lane.rows, len(lane.cached.prompt), lane.heads, lane.runs) for _, lane in lanes]
    loads = popcount(union)
    read = int(live.sum()) * (shape.dense_bytes + shape.head_bytes) + loads * shape.expert_bytes
    scores = sum(per_key for per_key, _ in shape.attention)
    read += sum(shape.kv_bytes * part / scores * _keys_read(lanes, window, end) for part, window in shape.attention)
    return Cost(math.fsum(flops), read, loads, rows=sum(sum(lane.rows) for _, lane in lanes))


def _keys_read(lanes: Sequence[tuple[int, Lane]], window: int | None, end: int) -> int:
    """Keys read by layers of one window: a prompt's once for all that share it, those of beams one by one."""
    prompts, own = dict[Hashable, NDArray[np.int64]](), 0
    for start, lane in lanes:
        steps, length = np.arange(len(lane.rows)), len(lane.cached.prompt)
        visible = length + len(steps) if window is None else window
        of_prompt = np.clip(visible - steps, 0, length) * lane.ran
        read = prompts.setdefault(lane.cached.content, np.zeros(end, np.int64))[start : start + len(steps)]
        np.maximum(read, of_prompt, out=read)
        own += int((lane.beam_counts * lane.ran) @ np.minimum(steps, visible))
    return own + sum(int(read.sum()) for read in prompts.values())
