"""Who joins a batch: bounds that hold, forwards that are counted, and refusals."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.beams import Beams
from tests.core.asks import NOISY, PROMPTS, ask
from tests.core.scarce import ScarceModel
from tokenscale.core import admission
from tokenscale.core.admission import AUTO_BATCH_SIZE, Admission, Contents, Held, Need, check_bounds
from tokenscale.core.decode import LocalBackend
from tokenscale.core.errors import ArgumentError
from tokenscale.core.model import Holding
from tokenscale.models.toy import ToyModel
from tokenscale.token_level.decoders import Greedy
from tokenscale.token_level.plain import Plain
from tokenscale.token_level.prompt_ensemble import PromptEnsemble
from tokenscale.token_level.roe import RoE

MANY = 10**9


def model(**layout: bool) -> ToyModel:
    lm = ToyModel(moe_layers=1, experts=2, top_k=1, width=2)
    for name, value in layout.items():
        setattr(lm, name, value)
    return lm


@dataclass
class Search:
    """A search that takes `left` more steps."""

    need: Need
    left: int = 0


searches = st.lists(
    st.tuples(
        st.lists(st.tuples(st.integers(0, 1), st.integers(0, 3), st.integers(1, 3)), min_size=1, max_size=4),
        st.integers(1, 5),
        st.integers(1, 3),
    ),
    max_size=6,
)


@given(searches, st.booleans(), st.booleans())
def test_what_a_batch_may_hold_equals_a_count_of_every_token(drawn: Any, shares: bool, pads: bool) -> None:
    """Brute force: every cache of every beam as a set of (cache, position), shared prompts by their content."""
    lms = [model(shares_prompts=shares, pads_caches=pads), model()]
    contents, needs, rooms, prompts = Contents(), [], [], set()
    for number, (caches, new, beams) in enumerate(drawn):
        holdings = [Holding(lms[which], (7,) * length, source) for which, source, length in caches]
        needs.append(contents.need(holdings, new, beams))
        for beam in range(beams):
            for place, holding in enumerate(holdings):
                own, length = (number, beam, place), len(holding.prompt)
                together = shares and holding.lm is lms[0]
                if together:
                    prompts |= {(holding.source, holding.prompt, i) for i in range(length)}
                rooms.append((holding.lm is lms[0], own, new + (0 if together else length)))
    wanted = len(prompts)
    for first in (True, False):
        sizes = [room for is_first, _, room in rooms if is_first is first]
        wanted += len(sizes) * max(sizes, default=0) if pads and first else sum(sizes)
    assert Held(contents.models, needs).tokens == wanted


@pytest.mark.parametrize("kind", ["plain", "private", "beams", "templates"])
@pytest.mark.parametrize("bound", [1, 30, 60, 200])
def test_caches_never_hold_more_than_the_bound(kind: str, bound: int) -> None:
    """Whatever runs, the states of every step are counted; a search that exceeds the bound by itself runs alone."""
    lm = ScarceModel(("a", "b", "1"), spelling="", moe_layers=1, experts=4, width=4)
    proposer: Any = Plain()
    if kind == "private":
        proposer = RoE(3, tau=1.0, clean_layers=0, cache="private", prefill="noisy")
    if kind == "templates":
        proposer = PromptEnsemble(("{prompt}", "a{prompt}bb"))
    decoder: Any = Beams(2) if kind == "beams" else Greedy()
    backend = LocalBackend(lm, proposer, proposer.default_aggregator, decoder, batch_size=100, max_batch_tokens=bound)
    for i, prompt in enumerate(PROMPTS * 2):
        backend.submit(ask(prompt, 3 + 2 * (i % 4), ("bound", i)))
    most, alone = 0, 0
    while backend._groups or backend._queue:
        lm.held = 0
        backend.tick()
        most = max(most, lm.held)
        if lm.held > bound:
            alone += 1
            assert len(backend._groups) <= 1
    assert alone == 0 or bound < 60
    assert backend.schedule.most_tokens >= most
    assert bound == 1 or backend.schedule.most_tokens <= max(bound, 60)


def run(lengths: list[int], size: int, lm: ToyModel, arrive: int = 0) -> tuple[int, int]:
    """Steps and joins that searches of these lengths take, the first of which are there from the start."""
    bounds, steps, joins = Admission(size, MANY), 0, 0
    make = [Search(bounds.contents.need([Holding(lm, (i,))], n, 1), n) for i, n in enumerate(lengths)]
    waiting, running = deque(make), list[Search]()
    while waiting or running:
        count = bounds.admit(running, waiting)
        running += [waiting.popleft() for _ in range(count)]
        joins += count > 0
        assert 0 < len(running) <= size
        for search in running:
            search.left -= 1
        running = [search for search in running if search.left]
        steps += 1
    return steps, joins


@pytest.mark.parametrize(
    ("most", "size", "count"), [(8, 16, 64), (40, 16, 64), (200, 16, 64), (100, 24, 100), (30, 4, 40)]
)
def test_mixed_lengths_take_close_to_the_fewest_forwards(most: int, size: int, count: int) -> None:
    """Steps and joins against the best rule of its kind in hindsight: let in whenever so many places are free."""
    total, fewest = 0, 0
    for seed in range(4):
        lengths = np.random.default_rng(seed).integers(max(1, most // 8), most, count).tolist()
        steps, joins = run(lengths, size, model())
        best = min(by_threshold(lengths, size, free) for free in range(1, size + 1))
        assert steps + joins <= 1.15 * best
        assert steps < sum(max(lengths[i : i + size]) for i in range(0, count, size))
        # In whatever order they come, the last ones run alone (Graham 1969: at most sum / B + max).
        assert steps <= 1.3 * sum(lengths) / size + max(lengths)
        total, fewest = total + steps + joins, fewest + best
    assert total <= 1.08 * fewest


def by_threshold(lengths: list[int], size: int, free: int) -> int:
    """Steps and joins where newcomers are let in when `free` places are."""
    waiting, running, forwards = deque(lengths), list[int](), 0
    while waiting or running:
        if waiting and (not running or size - len(running) >= free):
            running += [waiting.popleft() for _ in range(min(size - len(running), len(waiting)))]
            forwards += 1
        running = [left - 1 for left in running if left > 1]
        forwards += 1
    return forwards


def test_long_texts_are_joined_one_by_one_and_short_ones_together() -> None:
    _, long = run([400 + 37 * (i % 5) for i in range(32)], 8, model())
    _, short = run([3 + i % 5 for i in range(320)], 8, model())
    assert long > 16
    assert short < 160


def test_a_prompt_that_a_running_search_holds_costs_nothing() -> None:
    """Where prompts are shared, samples of one join as soon as there is a place."""
    lm = model(shares_prompts=True)
    bounds = Admission(4, MANY)
    same = [Search(bounds.contents.need([Holding(lm, (1, 2))], 50, 1)) for _ in range(9)]
    other = Search(bounds.contents.need([Holding(lm, (3,))], 50, 1))
    assert bounds.admit([], deque(same)) == 4
    assert bounds.admit(same[:3], deque(same[4:])) == 1
    assert bounds.admit(same[:3], deque([other, *same[4:]])) == 0
    assert bounds.admit(same[:2], deque([same[4], other])) == 1


def test_a_batch_whose_newcomers_run_apart_runs_to_its_end() -> None:
    lm = model(joins_apart=True)
    lengths = [3, 9, 4, 5, 6, 7]
    assert run(lengths, 3, lm) == (9 + 7, 2)


@given(st.integers(1, 6), st.integers(1, 40), st.lists(st.tuples(st.integers(1, 5), st.integers(1, 9)), min_size=1))
def test_every_search_is_admitted_in_its_turn(size: int, tokens: int, drawn: list[tuple[int, int]]) -> None:
    """First come, first served; the bounds hold for any two that run together; something always runs."""
    lm, bounds = model(), Admission(size, tokens)
    waiting = deque(
        Search(bounds.contents.need([Holding(lm, (i,) * prompt)], new, 1), new) for i, (prompt, new) in enumerate(drawn)
    )
    order, running, seen = list(waiting), list[Search](), list[Search]()
    while waiting or running:
        joined = [waiting.popleft() for _ in range(bounds.admit(running, waiting))]
        running, seen = running + joined, seen + joined
        assert running
        held = sum(s.need.parts[0].prompt_tokens + s.need.new_tokens for s in running)
        assert len(running) == 1 or (len(running) <= size and held <= tokens)
        for search in running:
            search.left -= 1
        running = [search for search in running if search.left]
    assert [id(s) for s in seen] == [id(s) for s in order]


def test_the_bound_is_chosen_once_from_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, float]] = []
    monkeypatch.setattr(admission, "tokens_that_fit", lambda devices, size: asked.append((devices, size)) or 123)
    lm = ScarceModel(moe_layers=1)
    backend = LocalBackend(lm, NOISY, NOISY.default_aggregator, Greedy(), batch_size="auto")
    for _ in range(2):
        backend.submit(ask((1, 2), 3))
        backend.advance()
    assert asked == [(lm.cache_devices, lm.shape.kv_bytes)]
    schedule = backend.schedule
    assert (schedule.batch_size, schedule.max_batch_tokens, schedule.chosen) == (AUTO_BATCH_SIZE, 123, True)
    given = LocalBackend(lm, NOISY, NOISY.default_aggregator, Greedy(), batch_size=3, max_batch_tokens=77)
    given.submit(ask((1, 2), 3))
    given.advance()
    assert len(asked) == 1
    assert (given.schedule.batch_size, given.schedule.max_batch_tokens, given.schedule.chosen) == (3, 77, False)


@pytest.mark.parametrize(
    ("batch_size", "tokens", "message"),
    [
        (0, "auto", r"run\(batch_size=0\): batch_size must be at least 1"),
        ("many", "auto", r"run\(batch_size='many'\): batch_size must be an integer or \"auto\"\n  fix: write \"auto\""),
        (None, "auto", r"run\(batch_size=None\): batch_size must be an integer"),
        (16, -1, r"run\(max_batch_tokens=-1\): max_batch_tokens must be at least 1"),
        (16, 1.5, r"run\(max_batch_tokens=1.5\): max_batch_tokens must be an integer"),
        (16, "4096", r"run\(max_batch_tokens='4096'\).*\n.*write max_batch_tokens=4096"),
        (16, True, r"run\(max_batch_tokens=True\): max_batch_tokens must be an integer"),
    ],
)
def test_wrong_bounds_are_refused(batch_size: Any, tokens: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        check_bounds("run", batch_size, tokens)
