"""What an answer costs, in units that do not depend on batch, machine or schedule.

All figures are for the scenario *alone*: one problem by itself, all its live candidates and rows in
lockstep, one prefill per distinct prompt shared by all, nothing prefilled that a cache of the problem
holds, no padding. Where a step takes several forwards, the first ones of all candidates are one, the
second ones another. A forward's experts are the union over everything that runs in it, taken from the
experts recorded per candidate, forward and layer. So bills of different problems add up; within a
problem `bytes` and `expert_loads` are unions, not sums.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace

import numpy as np
from numpy.typing import NDArray

from tokenscale.core.held import Held
from tokenscale.core.shape import ModelShape

Packed = NDArray[np.uint8]


@dataclass(frozen=True)
class Cost:
    """A bill; bills of different problems add with `+`.

    flops: floating-point operations, a multiply-add being 2 (matrix products only).
    bytes: what an ideal kernel must read: weights once per forward (of experts the union), and as often the keys
        and values in each layer's window, a shared prompt's once for all that share it.
    expert_loads: distinct experts, summed over layers and forwards.
    prompt_tokens: prompt tokens prefilled or stepped, once per distinct prompt; of a prompt that begins like
        an earlier one, or goes on with an ended text, only the new ones.
    new_tokens: tokens generated, discarded candidates and beams included (a beam counts once per step).
    rows: token rows run while decoding (n per token under RoE(n)).
    sequential_steps: forwards that must follow one another: those of decoding steps, one each unless a
        proposer takes more (`AdaptiveRoE`), and a prefill at each time at which a prompt is new.
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
    """What a forward of a step ran over one cache, for all beams of a group: counts, and experts as packed bits.

    `later` are the step's other forwards over the same cache, in order, where it took several; `beams` says
    how many beams such a later one ran.
    """

    rows: int
    heads: int
    runs: int
    experts: Packed
    later: tuple[Ran, ...] = ()
    beams: int = 1


@dataclass(frozen=True)
class Lane:
    """What really ran over one cache, forward by forward.

    Forward i ran `rows[i]` rows, `heads[i]` of them with logits, `runs[i]` products of a row with an expert,
    and `experts[i]` as packed bits, shape [forwards, moe_layers, ceil(experts / 8)]; `beams[i]` the beams
    that it ran, where they were not one. Step i took `forwards[i]` of them, where it was not one each.
    """

    cached: Cached
    rows: tuple[int, ...]
    heads: tuple[int, ...]
    runs: tuple[int, ...]
    experts: Packed
    beams: tuple[int, ...] = ()
    forwards: tuple[int, ...] = ()

    @classmethod
    def of(cls, cached: Cached, ran: Sequence[Ran], beams: tuple[int, ...]) -> Lane:
        """A lane of its steps; `beams[i]` those of step i."""
        every = [forward for step in ran for forward in (step, *step.later)]
        several = len(every) > len(ran)
        if several:
            firsts = beams or (1,) * len(ran)
            pairs = zip(firsts, ran, strict=True)
            beams = tuple(count for first, step in pairs for count in (first, *(r.beams for r in step.later)))
        return cls(
            cached,
            rows=tuple(r.rows for r in every),
            heads=tuple(r.heads for r in every),
            runs=tuple(r.runs for r in every),
            experts=np.stack([r.experts for r in every]),
            beams=beams,
            forwards=tuple(1 + len(step.later) for step in ran) if several else (),
        )

    @property
    def beam_counts(self) -> NDArray[np.int64]:
        return np.asarray(self.beams or [1] * len(self.rows), np.int64)

    @property
    def ran(self) -> NDArray[np.bool_]:
        return np.asarray(self.rows) > 0

    @property
    def steps(self) -> int:
        return len(self.forwards or self.rows)

    @property
    def places(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of every forward the step that it belongs to, and its number within the step (0 is the first)."""
        counts = np.asarray(self.forwards or [1] * len(self.rows), np.int64)
        first = np.cumsum(counts) - counts
        return np.repeat(np.arange(len(counts)), counts), np.arange(len(self.rows)) - np.repeat(first, counts)

    @property
    def flops(self) -> float:
        """Those of all its forwards. A step's rows all see the same number of keys."""
        steps, _ = self.places
        rows, heads, runs = (np.bincount(steps, values).tolist() for values in (self.rows, self.heads, self.runs))
        return self.cached.shape.decode_flops(rows, len(self.cached.prompt), heads, runs)


@dataclass(frozen=True)
class Usage:
    """What one candidate (or search) really ran: the record that bills are made from. Its lanes ran in lockstep.

    `texts` are the token ids that it generated, one entry a finished text.
    """

    lanes: tuple[Lane, ...]
    texts: tuple[tuple[int, ...], ...] = ()

    @property
    def steps(self) -> int:
        return self.lanes[0].steps

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
        parts, times = [self.decode()], set[int]()
        for start, cached, known, held in self._prefills():
            parts.append(_prefill_cost(cached, known, held))
            if len(cached.prompt) - 1 > held:
                times.add(start)
        total = Cost.total(parts)
        return replace(total, sequential_steps=total.sequential_steps + len(times))

    def _prefills(self) -> Iterator[tuple[int, Cached, int, int]]:
        """(time, cache, tokens of its prompt that are known by then, tokens that a cache holds) per distinct prompt.

        With the clean cache keys and values are functions of the token ids, so what an earlier prompt or an ended
        text has in common with a prompt is not prefilled again.
        """
        prompts = [(start, 1, lane.cached, ()) for start, usage in self._entries for lane in usage.lanes]
        texts = [
            (start + usage.steps, 0, lane.cached, text)
            for start, usage in self._entries
            for lane in usage.lanes
            for text in usage.texts
        ]
        held, seen = Held(), set[Hashable]()
        for time, is_prompt, cached, text in sorted([*prompts, *texts], key=_in_time):
            shared = cached.source == ""
            if is_prompt and cached.content not in seen:
                seen.add(cached.content)
                yield time, cached, *(held.of(cached.model, cached.prompt) if shared else (0, 0))
            if shared:
                held.add(cached.model, (*cached.prompt, *text))

    def decode(self) -> Cost:
        """Decoding alone: every step once, for all candidates and models that are live in it."""
        if not self._entries:
            return Cost()
        end = max(start + usage.steps for start, usage in self._entries)
        models: dict[str, list[tuple[int, Lane]]] = {}
        live = np.zeros((end, _most(lane for _, usage in self._entries for lane in usage.lanes)), np.bool_)
        new_tokens = 0
        for start, usage in self._entries:
            live[start : start + usage.steps, 0] = True
            new_tokens += int(usage.lanes[0].beam_counts[usage.lanes[0].places[1] == 0].sum())
            for lane in usage.lanes:
                models.setdefault(lane.cached.model, []).append((start, lane))
                live[_when(start, lane)] = True
        parts = [_decode_cost(lanes, end) for lanes in models.values()]
        return replace(Cost.total(parts), new_tokens=new_tokens, sequential_steps=int(live.sum()))


def _most(lanes: Iterable[Lane]) -> int:
    """The most forwards that a step took."""
    return max(max(lane.forwards, default=1) for lane in lanes)


def _when(start: int, lane: Lane) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The time of every forward of a lane that began at `start`, and its number among those of that time.

    Forwards of one time and number run together: what they read is read once.
    """
    steps, numbers = lane.places
    return start + steps, numbers


def _in_time(event: tuple[int, int, Cached, tuple[int, ...]]) -> tuple[Hashable, ...]:
    """Texts of one time before its prompts, those in an order of their own, so that the order of entry is none."""
    time, is_prompt, cached, _ = event
    return time, is_prompt, cached.model, str(cached.source), cached.prompt


def _prefill_cost(cached: Cached, known: int, held: int) -> Cost:
    """The prefill of a prompt of which so many tokens are known, and so many held by a cache.

    Of the experts that the whole prompt ran as many are billed as its new tokens can have run, at most.
    """
    tokens, shape, prompt_tokens = len(cached.prompt) - 1, cached.shape, len(cached.prompt) - known
    if tokens <= held:
        return Cost(prompt_tokens=prompt_tokens)
    runs = cached.prefill.runs * (tokens - held) // tokens
    loads = popcount(cached.prefill.experts)
    loads = min(loads, runs) if held else loads
    flops = shape.prefill_flops(tokens, cached.prefill.runs) - shape.prefill_flops(held, cached.prefill.runs - runs)
    read = shape.dense_bytes + loads * shape.expert_bytes + shape.cached_bytes(held)
    return Cost(flops, read, loads, prompt_tokens=prompt_tokens)


def _decode_cost(lanes: Sequence[tuple[int, Lane]], end: int) -> Cost:
    """FLOPs, bytes, experts and rows of all lanes of one model, in a run of `end` steps."""
    shape = lanes[0][1].cached.shape
    size = (end, _most(lane for _, lane in lanes))
    union = np.zeros((*size, *lanes[0][1].experts.shape[1:]), np.uint8)
    live = np.zeros(size, np.bool_)
    for start, lane in lanes:
        when = _when(start, lane)
        union[when] |= lane.experts
        live[when] |= lane.ran
    loads = popcount(union)
    read = int(live.sum()) * (shape.dense_bytes + shape.head_bytes) + loads * shape.expert_bytes
    scores = sum(per_key for per_key, _ in shape.attention)
    read += sum(shape.kv_bytes * part / scores * _keys_read(lanes, window, size) for part, window in shape.attention)
    flops = math.fsum(lane.flops for _, lane in lanes)
    return Cost(flops, read, loads, rows=sum(sum(lane.rows) for _, lane in lanes))


def _keys_read(lanes: Sequence[tuple[int, Lane]], window: int | None, size: tuple[int, int]) -> int:
    """Keys read by layers of one window: a prompt's once for all that share it, those of beams one by one.

    `size`: how many times there are, and the most forwards of one time.
    """
    prompts, own = dict[Hashable, NDArray[np.int64]](), 0
    for start, lane in lanes:
        steps, length = lane.places[0], len(lane.cached.prompt)
        visible = length + lane.steps if window is None else window
        of_prompt = np.clip(visible - steps, 0, length) * lane.ran
        read, when = prompts.setdefault(lane.cached.content, np.zeros(size, np.int64)), _when(start, lane)
        read[when] = np.maximum(read[when], of_prompt)
        own += int((lane.beam_counts * lane.ran) @ np.minimum(steps, visible))
    return own + sum(int(read.sum()) for read in prompts.values())
