"""Joining a text and its continuation, and taking an ending away."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenscale.core.cost import Cost
from tokenscale.core.data import Candidate, RoutingStats, Trace
from tokenscale.core.errors import ArgumentError
from tokenscale.core.noise import Stream
from tokenscale.sequence_level.steps import join, separators, without_ending

ROOT = Stream((0,))


@st.composite
def candidates(draw: st.DrawFn, least: int = 0) -> Candidate:
    """Candidates whose every per-token record has one entry a token."""
    size = draw(st.integers(least, 5))
    numbers = st.lists(st.floats(-9, 0), min_size=size, max_size=size).map(tuple)
    ids = st.lists(st.integers(0, 9), min_size=size, max_size=size).map(tuple)
    return Candidate(
        text=draw(st.text("ab", max_size=3)),
        token_ids=draw(ids),
        log_probs=draw(numbers),
        finish_reason=draw(st.sampled_from(["eos", "pause", "length"])),
        stream=ROOT.child(draw(st.integers(0, 3))),
        ending=draw(st.integers(0, size)),
        suffix_ids=draw(st.lists(st.integers(0, 9), max_size=3).map(tuple)),
        cost=Cost(flops=float(draw(st.integers(0, 9))), new_tokens=size),
        signals=(("confidence", draw(numbers)),),
        near_ties=draw(st.integers(0, 3)),
        fallbacks=draw(st.integers(0, 3)),
        routing=RoutingStats(draw(st.integers(0, 9))),
        trace=Trace(draw(numbers), draw(numbers), draw(ids), draw(numbers)),
        notes=draw(st.lists(st.text("xy", max_size=1), max_size=2).map(tuple)),
    )


@given(candidates(), candidates())
def test_a_joined_candidate_has_all_of_both(first: Candidate, second: Candidate) -> None:
    first = join(None, first)
    whole, given_ids = join(first, second), second.suffix_ids
    assert whole.token_ids == (*first.token_ids, *given_ids, *second.token_ids)
    assert whole.log_prob == pytest.approx(first.log_prob + second.log_prob)
    assert whole.log_probs[len(first.token_ids) :][: len(given_ids)] == (0.0,) * len(given_ids)
    assert (whole.text, whole.finish_reason, whole.stream) == (second.text, second.finish_reason, second.stream)
    assert (whole.ending, whole.suffix_ids) == (second.ending, ())
    assert whole.cost == first.cost + second.cost
    assert (whole.near_ties, whole.fallbacks) == (
        first.near_ties + second.near_ties,
        first.fallbacks + second.fallbacks,
    )
    assert whole.routing == first.routing + second.routing
    assert set(whole.notes) == {*first.notes, *second.notes}
    check_lengths(whole)
    if whole.signal("confidence"):  # else no token of either was chosen
        assert len(whole.signal("confidence")) == len(whole.token_ids)
    if whole.trace is not None:
        assert whole.trace.rows[len(first.token_ids) :][: len(given_ids)] == (0,) * len(given_ids)


def check_lengths(candidate: Candidate) -> None:
    count = len(candidate.token_ids)
    assert len(candidate.log_probs) == count
    if candidate.trace is not None:
        trace = candidate.trace
        columns = (trace.entropy, trace.disagreement, trace.rows, trace.distinct_experts)
        assert [len(column) for column in columns] == [count] * 4


@given(candidates(), candidates(), candidates())
def test_joining_is_associative(one: Candidate, two: Candidate, three: Candidate) -> None:
    one, two, three = (replace(c, routing=RoutingStats()) for c in (one, two, three))
    left = join(join(join(None, one), two), three)
    right = join(join(None, one), join(two, three)) if not two.suffix_ids else left
    assert left.token_ids == right.token_ids
    assert left.log_probs == right.log_probs
    assert left.trace == right.trace
    assert left.cost == right.cost


@given(candidates())
def test_the_ending_goes_and_its_bill_stays(candidate: Candidate) -> None:
    begun = without_ending(candidate)
    kept = len(candidate.token_ids) - candidate.ending
    assert (begun.token_ids, begun.log_probs) == (candidate.token_ids[:kept], candidate.log_probs[:kept])
    assert begun.signals == (("confidence", candidate.signal("confidence")[:kept]),)
    assert (begun.cost, begun.near_ties, begun.ending) == (candidate.cost, candidate.near_ties, 0)
    check_lengths(begun)


def test_a_trace_is_kept_where_all_parts_have_one() -> None:
    bare = Candidate("a", (1,), (-1.0,), "pause", ROOT)
    traced = replace(bare, trace=Trace((0.5,), (0.1,), (2,), (1.5,)))
    empty = Candidate("a", (), (), "length", ROOT, suffix_ids=(7, 8))
    assert join(bare, traced).trace is None
    assert join(traced, bare).trace is None
    assert join(traced, empty).trace == Trace((0.5, 0.0, 0.0), (0.1, 0.0, 0.0), (2, 0, 0), (1.5, 0.0, 0.0))
    assert join(replace(traced, members=(bare,), votes=((None, 1.0),)), traced).members == ()


@pytest.mark.parametrize("step", ["", (), ("",), ("a", ""), 3, None])
def test_bad_steps_are_refused(step: Any) -> None:
    with pytest.raises(ArgumentError, match=r"Search\(step=.*\): step must be a text that ends a step"):
        separators("Search", step)
    assert separators("Search", ["a", "b"]) == ("a", "b")
