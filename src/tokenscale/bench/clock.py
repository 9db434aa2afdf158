"""Rounds in which arms take turns, and ratios paired by round: how everything here is timed."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

Seconds = dict[str, list[float]]


@dataclass(frozen=True)
class Ratio:
    """The median over rounds of a ratio paired by round, with the quartiles. One round is its own quartiles."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Ratio:
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, lower, upper)

    def to_dict(self) -> dict[str, float]:
        return {"median": self.median, "lower_quartile": self.lower, "upper_quartile": self.upper}


def interleaved(arms: Mapping[str, Callable[[], Any]], rounds: int) -> Seconds:
    """Seconds of every arm in every round, after one round that does not count.

    Arms take turns, in every other round in the opposite order. What an arm's `prepare` does, where it has
    one, is outside the clock; so is garbage collection.
    """
    seconds: Seconds = {name: [] for name in arms}
    order = list(arms.items())
    with collected_between():
        for round_ in range(rounds + 1):
            for name, arm in order:
                elapsed = once(arm)
                if round_:
                    seconds[name].append(elapsed)
            order.reverse()
    return seconds


@contextmanager
def collected_between() -> Iterator[None]:
    """Garbage is collected where `once` says so, and objects that are there already are not looked at again."""
    was_on = gc.isenabled()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_on:
            gc.enable()


def once(arm: Callable[[], Any]) -> float:
    """Seconds of one call."""
    prepare = getattr(arm, "prepare", None)
    if prepare is not None:
        prepare()
    gc.collect()
    _wait()
    start = time.perf_counter()
    arm()
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    """Until a GPU, where there is one, has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def times_faster(seconds: Seconds, slow: str, fast: str) -> Ratio:
    """Seconds of `slow` over those of `fast`, round by round."""
    return Ratio.of([a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)])


def milliseconds(seconds: Seconds, name: str) -> float:
    """The median of an arm."""
    return 1e3 * statistics.median(seconds[name])
