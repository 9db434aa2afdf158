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
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np
from numpy.typing import NDArray

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


def popcount(bits: Packed) -> int:
    return int(np.bitwise_count(bits).sum())
