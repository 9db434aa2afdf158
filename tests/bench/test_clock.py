"""Rounds in turn, paired ratios, and what the machine's limits mean."""

from __future__ import annotations

import gc
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenscale.bench import bandwidth, clock
from tokenscale.bench.bandwidth import Limits
from tokenscale.bench.clock import Ratio, interleaved, milliseconds, times_faster
from tokenscale.bench.machine import compiler, machine


class Arm:
    """Takes `seconds` on a clock of its own, and notes when it ran."""

    def __init__(self, name: str, seconds: float, events: list[str], now: list[float]) -> None:
        self.name, self.seconds, self.events, self.now = name, seconds, events, now

    def prepare(self) -> None:
        self.now[0] += 100.0  # must not be timed
        self.events.append(f"prepare {self.name}")

    def __call__(self) -> None:
        assert not gc.isenabled()
        self.now[0] += self.seconds * (1 + len(self.events))
        self.events.append(self.name)


def test_arms_take_turns_in_alternating_order_and_the_first_round_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events, now = list[str](), [0.0]
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])
    arms = {name: Arm(name, seconds, events, now) for name, seconds in (("a", 1.0), ("b", 2.0))}
    seconds = interleaved(arms, rounds=2)
    assert [event for event in events if not event.startswith("prepare")] == ["a", "b", "b", "a", "a", "b"]
    # An arm that is called as event number i takes (1 + i) times its seconds; each call follows its own preparation.
    assert seconds == {"a": [8.0, 10.0], "b": [12.0, 24.0]}
    assert times_faster(seconds, "b", "a").median == pytest.approx((12 / 8 + 24 / 10) / 2)
    assert milliseconds(seconds, "a") == 9000.0
    assert gc.isenabled()


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=20))
def test_quartiles_are_those_of_numpy(values: list[float]) -> None:
    found = Ratio.of(values)
    np.testing.assert_allclose([found.lower, found.median, found.upper], np.quantile(values, (0.25, 0.5, 0.75)))


def test_bandwidth_is_bytes_over_seconds_of_the_fastest_round(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = itertools.count()
    monkeypatch.setattr(clock.time, "perf_counter", lambda: float(next(counter)))  # every call takes a second
    found = bandwidth.measured(threads=2, dtype=torch.float32, megabytes=1, rounds=1)
    assert set(found.ways.values()) == {2e6}
    assert found.bytes_per_second == 2e6
    assert found.flops_per_second == 2.0 * 64**3


def test_threads_are_as_they_were_and_real_figures_are_plausible() -> None:
    before = torch.get_num_threads()
    found = bandwidth.measured(threads=1, dtype=torch.bfloat16, megabytes=4, rounds=1)
    assert torch.get_num_threads() == before
    assert found.way in found.ways
    assert 1e7 < found.bytes_per_second < 1e13


def test_the_limit_is_the_slower_of_reading_and_computing() -> None:
    limits = Limits(1, "", bytes_per_second=10.0, flops_per_second=100.0, ways={})
    assert limits.seconds(20.0) == 2.0
    assert limits.seconds(20.0, 100.0) == 2.0
    assert limits.seconds(20.0, 300.0) == 3.0


def test_the_machine_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, Any] = machine()
    assert {"processor", "cores", "torch", "transformers", "tokenscale", "date", "compiler"} <= set(found)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert compiler() is None
