"""Where memory runs out: the same candidates, bills and tokens told as if it had not."""

from __future__ import annotations

import itertools
import warnings
from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.beams import Beams
from tests.core.asks import NOISY, PROMPTS, ask
from tests.core.scarce import ScarceModel
from tokenscale.core import memory
from tokenscale.core.backend import Completion
from tokenscale.core.data import Ask
from tokenscale.core.decode import LocalBackend
from tokenscale.core.errors import OutOfMemoryError, TokenscaleWarning
from tokenscale.core.step_records import StepRecords
from tokenscale.sequence_level.constrained import Constrained
from tokenscale.sequence_level.deepconf import LowConfidence
from tokenscale.token_level.adaptive_roe import AdaptiveRoE
from tokenscale.token_level.decoders import Greedy, Sample
from tokenscale.token_level.plain import Plain
from tokenscale.token_level.roe import RoE

KINDS: dict[str, tuple[Any, Any]] = {
    "greedy": (Plain(), Greedy()),
    "sampled": (NOISY, Sample(1.0)),
    "private": (RoE(3, tau=1.0, clean_layers=0, cache="private", prefill="noisy"), Sample(1.0)),
    "beams": (NOISY, Beams(3)),
    "adaptive": (AdaptiveRoE(4, tau=1.0, clean_layers=0, exact=False), Sample(0.9)),
}
Told = list[tuple[int, int, int]]


@pytest.fixture(autouse=True)
def no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collecting all objects of a test process takes longer than a test."""
    monkeypatch.setattr(memory, "release", lambda: None)


def tiny() -> ScarceModel:
    return ScarceModel(("a", "b", "1"), spelling="", moe_layers=1, experts=4, width=4, context_length=24)


def asks() -> list[Ask]:
    """Of many kinds: several copies, a stop string, a pause, a constraint, a stop rule, beams among samples."""
    more: list[dict[str, Any]] = [
        {},
        {"stop_strings": ("ab",)},
        {"pauses": ("b",)},
        {"constraint": Constrained(regex="(a|b|1)*1")},
    ]
    more += [{"stop_rule": LowConfidence(1.4, 2)}, {"prefix_ids": (1, 2)}, {"decoder": Beams(2)}]
    return [ask(p, 3 + i % 4, ("scarce", i), k=1 + i % 2, **more[i]) for i, p in enumerate(PROMPTS)]


def served(
    lm: ScarceModel, kind: str, batch_size: int, tokens: Any, told: Told
) -> tuple[list[Completion], LocalBackend]:
    """All asks on one backend; memory runs out only where several searches share it."""
    proposer, decoder = KINDS[kind]
    backend = LocalBackend(
        lm,
        proposer,
        proposer.default_aggregator,
        decoder,
        batch_size=batch_size,
        max_batch_tokens=tokens,
        signals=frozenset({"confidence"}),
        on_token=lambda *event: told.append(event),
    )
    fails = lm.fails
    lm.fails = lambda event, count: fails(event, count) and len(backend._groups) + len(backend._joining) > 1
    wanted = [one for one in asks() if proposer.takes_processors or one.constraint is None]
    tickets = [backend.submit(one) for one in wanted]
    done: dict[int, Completion] = {}
    while completions := backend.advance():
        done |= {c.ticket: c for c in completions}
    assert sorted(done) == tickets
    return [done[t] for t in tickets], backend


def finish(backend: LocalBackend) -> None:
    while backend.advance():
        pass


@cache
def oracle(kind: str) -> tuple[list[Completion], dict[tuple[int, int], list[int]], int]:
    """One search at a time, and no limit on memory."""
    told: Told = []
    done, backend = served(tiny(), kind, 1, 10**9, told)
    return done, by_copy(told), backend.tokens


def by_copy(told: Told) -> dict[tuple[int, int], list[int]]:
    found: dict[tuple[int, int], list[int]] = {}
    for ticket, copy, token in told:
        found.setdefault((ticket, copy), []).append(token)
    return found


def check_same(found: list[Completion], wanted: list[Completion]) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert one.candidates == other.candidates
        for usage, same in zip(one.usages, other.usages, strict=True):
            assert usage.texts == same.texts
            for lane, its in zip(usage.lanes, same.lanes, strict=True):
                assert lane.cached.content == its.cached.content
                assert (lane.rows, lane.heads, lane.runs, lane.beams) == (its.rows, its.heads, its.runs, its.beams)
                assert lane.forwards == its.forwards
                np.testing.assert_array_equal(lane.experts, its.experts)
                np.testing.assert_array_equal(lane.cached.prefill.experts, its.cached.prefill.experts)


def check_run(lm: ScarceModel, kind: str, batch_size: Any, tokens: Any) -> None:
    """Candidates, what they ran, what was told and counted are those of searches one at a time, exactly."""
    told = list[tuple[int, int, int]]()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        found, backend = served(lm, kind, batch_size, tokens, told)
    wanted, told_then, tokens_then = oracle(kind)
    check_same(found, wanted)
    assert by_copy(told) == told_then
    assert backend.tokens == tokens_then
    assert backend.ended == sum(len(completion.usages) for completion in wanted)
    assert len(warned) == backend.schedule.halvings >= lm.failures
    assert all(issubclass(w.category, TokenscaleWarning) for w in warned)


@settings(max_examples=10, phases=[Phase.generate])
@given(
    kind=st.sampled_from(list(KINDS)),
    batch_size=st.sampled_from([3, 16, "auto"]),
    tokens=st.sampled_from([40, 100, "auto"]),
    failing=st.sets(st.integers(0, 40), min_size=2, max_size=6),
)
def test_nothing_depends_on_where_memory_runs_out(kind: str, batch_size: Any, tokens: Any, failing: set[int]) -> None:
    lm = tiny()
    lm.fails = lambda event, count: lm.ran.total() - 1 in failing
    check_run(lm, kind, batch_size, tokens)


@pytest.mark.parametrize(("batch_size", "tokens"), [(1, 1), (3, 15), (16, 40), (16, "auto")])
@pytest.mark.parametrize("kind", ["sampled", "beams"])
def test_nothing_depends_on_the_bounds(kind: str, batch_size: int, tokens: Any) -> None:
    check_run(tiny(), kind, batch_size, tokens)


def test_every_place_at_which_memory_may_run_out_is_met() -> None:
    """Once at each of the first allocations: prefills, steps, selects and joins fail, and nothing changes."""
    failed = Counter[str]()
    for place in range(24):
        lm = tiny()
        lm.fails = lambda event, count, lm=lm, place=place: lm.ran.total() - 1 == place
        check_run(lm, "greedy", 5, 10**9)
        failed += lm.failed
    assert set(failed) == {"prefill", "step", "select", "join"}


@pytest.mark.parametrize("call", range(20, 48, 3))
def test_memory_that_runs_out_in_the_middle_of_a_search(call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some searches of the step have ended by then, some have new beams, and one has lost them."""
    calls, token = itertools.count(1), StepRecords.token
    oracle("beams")

    def failing(self: StepRecords, *arguments: Any) -> Any:
        if next(calls) == call:
            raise MemoryError
        return token(self, *arguments)

    monkeypatch.setattr(StepRecords, "token", failing)
    check_run(tiny(), "beams", 16, "auto")


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_what_never_fits_together_runs_in_parts_that_do(limit: int) -> None:
    lm, told = tiny(), list[tuple[int, int, int]]()
    lm.fails = lambda event, count: count > limit
    with pytest.warns(TokenscaleWarning) as warned:
        found, backend = served(lm, "greedy", 16, "auto", told)
    check_same(found, oracle("greedy")[0])
    assert backend.schedule.halved_to is not None
    assert 1 <= backend.schedule.halved_to[0] <= max(limit, 1)
    assert len(warned) == backend.schedule.halvings <= 4  # 16, 8, 4, 2: then it is one


def test_the_halving_is_said() -> None:
    lm = tiny()
    lm.fails = lambda event, count: event == "step" and count > 3
    backend = LocalBackend(lm, Plain(), Plain().default_aggregator, Greedy(), batch_size=6, max_batch_tokens=1000)
    for prompt in PROMPTS[:6]:
        backend.submit(ask(prompt, 8))
    with pytest.warns(TokenscaleWarning) as warned:
        finish(backend)
    held = sum(len(p) + 8 for p in PROMPTS[:6])
    assert str(warned[0].message) == (
        "memory ran out for 6 searches at once (CUDA out of memory. Tried to allocate 20.00 MiB.): at most 3 at once "
        f"go on, holding {held // 2} tokens, and nothing is lost. Lower batch_size or max_batch_tokens"
    )
    assert backend.schedule.halved_to == (3, held // 2)
    assert (backend.schedule.batch_size, backend.schedule.max_batch_tokens) == (6, 1000)


@pytest.mark.parametrize("event", ["prefill", "step"])
def test_a_search_that_does_not_fit_alone_is_an_error(event: str) -> None:
    """It names what was asked and what to lower; the others can go on, and all can be cancelled."""
    lm = tiny()
    lm.fails = lambda name, count: name == event
    backend = LocalBackend(lm, Plain(), Plain().default_aggregator, Beams(2), batch_size=4)
    first, second = backend.submit(ask((1, 2, 3), 5)), backend.submit(ask((2,), 6))
    message = "a prompt of 3 tokens and up to 5 new ones in 2 beams do not fit in memory by themselves"
    with pytest.warns(TokenscaleWarning), pytest.raises(OutOfMemoryError, match=message) as caught:
        backend.advance()
    assert "max_new_tokens" in caught.value.hint
    assert "can't allocate memory" in caught.value.message or "out of memory" in caught.value.message
    lm.fails = lambda name, count: False
    backend.cancel(first)
    [completion] = backend.advance()
    assert completion.ticket == second
    assert backend.advance() == []
    third = backend.submit(ask((1, 2, 3), 5))
    assert [c.ticket for c in backend.advance()] == [third]


def test_newcomers_that_do_not_fit_leave_those_that_run_as_they_are() -> None:
    """Where their prefill fails, only they wait again: what runs is not begun again."""
    lm = tiny()
    lm.fails = lambda event, count: event == "prefill" and lm.ran["prefill"] == 2
    backend = LocalBackend(lm, Plain(), Plain().default_aggregator, Greedy(), batch_size=4, max_batch_tokens=10**6)
    backend.submit(ask((1, 2, 3), 12))
    backend.tick()
    for prompt in PROMPTS[1:4]:
        backend.submit(ask(prompt, 3))
    with pytest.warns(TokenscaleWarning, match="memory ran out for 4 searches"):
        finish(backend)
    schedule = backend.schedule
    assert (schedule.started, schedule.halvings) == (4, 1)
    assert lm.ran["prefill"] == schedule.joins + 1


def test_other_errors_are_not_taken_for_want_of_memory() -> None:
    lm = tiny()

    def fails(event: str, count: int) -> bool:
        raise RuntimeError("expected scalar type Half but found Float")

    lm.fails = fails
    backend = LocalBackend(lm, Plain(), Plain().default_aggregator, Greedy(), batch_size=4)
    backend.submit(ask())
    with pytest.raises(RuntimeError, match="scalar type"):
        backend.advance()


def test_ctrl_c_after_a_halving_leaves_nothing() -> None:
    model = tiny()

    def fails(event: str, count: int) -> bool:
        if model.failures:
            raise KeyboardInterrupt
        return event == "step"

    model.fails = fails
    backend = LocalBackend(model, Plain(), Plain().default_aggregator, Greedy(), batch_size=4)
    tickets = [backend.submit(ask(p)) for p in PROMPTS[:4]]
    with pytest.warns(TokenscaleWarning), pytest.raises(KeyboardInterrupt):
        backend.advance()
    for ticket in tickets:
        backend.cancel(ticket)
    assert backend.advance() == []
    model.fails = lambda event, count: False
    backend.submit(ask())
    assert len(backend.advance()) == 1
