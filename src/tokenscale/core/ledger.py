"""One problem's bill: every prompt once, every step once for all that runs in it."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from tokenscale.core.cost import Cached, Cost, Lane, Usage, popcount
from tokenscale.core.held import Held


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


def decode_cost(usage: Usage) -> Cost:
    """The bill of decoding one candidate by itself, its prefill left out."""
    ledger = Ledger()
    ledger.add([usage], start=0)
    return ledger.decode()
