"""Searches over steps against searches written out, and what they ask for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.sequence_level.trees import ASK, Hashed, drive, hashed, one
from tokenscale.core.data import Ask, Candidate
from tokenscale.core.errors import ArgumentError
from tokenscale.core.noise import Stream
from tokenscale.sequence_level.dvts import DVTS
from tokenscale.sequence_level.scorers.log_prob import LogProb
from tokenscale.sequence_level.step_beam import StepBeam

PROBLEMS = [replace(ASK, stream=Stream((0, i))) for i in range(25)]


def grown(ask: Ask, ids: tuple[int, ...], last: bool, *path: int) -> tuple[tuple[int, ...], bool]:
    """The tokens with one step more, drawn at `path`, and whether they may go on."""
    stream = Stream((*ask.stream.path, "step", *path))
    pauses = () if last else ("3",)
    found = one(
        replace(ask, prefix_ids=ids, stream=stream, pauses=pauses, max_new_tokens=ask.max_new_tokens - len(ids))
    )
    return (*ids, *found.token_ids), found.finish_reason == "pause"


def beam(ask: Ask, width: int, expand: int, steps: int) -> list[tuple[int, ...]]:
    """The answers that a step beam keeps, best first: all children, sorted, cut."""
    kept = [grown(ask, (), steps == 1, 0, 0, j) for j in range(width * expand)]
    kept = sorted(kept, key=lambda pair: -hashed(pair[0]))[:width]
    for step in range(1, steps):
        open_ids = [ids for ids, going in kept if going]
        children = [
            grown(ask, ids, step == steps - 1, step, b, j) for b, ids in enumerate(open_ids) for j in range(expand)
        ]
        kept = [pair for pair in kept if not pair[1]] + children
        kept = sorted(kept, key=lambda pair: -hashed(pair[0]))[:width]
    return [ids for ids, _ in kept]


@pytest.mark.parametrize(("width", "expand", "steps"), [(1, 1, 40), (1, 4, 40), (3, 2, 40), (4, 4, 3), (2, 3, 1)])
def test_a_step_beam_is_the_search_written_out(width: int, expand: int, steps: int) -> None:
    for ask in PROBLEMS:
        _, winner = drive(StepBeam(width, expand, Hashed(), step="3", max_steps=steps), ask)
        assert [m.token_ids for m in winner.members] == beam(ask, width, expand, steps)
        assert winner.token_ids == winner.members[0].token_ids
        assert [m.score for m in winner.members] == [hashed(m.token_ids) for m in winner.members]


def greedy(ask: Ask, tree: int, expand: int, steps: int) -> tuple[int, ...]:
    ids, going = (), True
    for step in range(steps):
        if going:
            children = [grown(ask, ids, step == steps - 1, step, tree, j) for j in range(expand)]
            ids, going = max(children, key=lambda pair: hashed(pair[0]))
    return ids


@pytest.mark.parametrize(("subtrees", "expand", "steps"), [(1, 3, 40), (4, 2, 40), (3, 3, 2), (2, 2, 1)])
def test_every_subtree_is_greedy_by_itself(subtrees: int, expand: int, steps: int) -> None:
    for ask in PROBLEMS:
        rounds, winner = drive(DVTS(subtrees, expand, Hashed(), step="3", max_steps=steps), ask)
        wanted = [greedy(ask, tree, expand, steps) for tree in range(subtrees)]
        assert [m.token_ids for m in winner.members] == wanted
        assert winner.token_ids == max(wanted, key=hashed)
        assert len(rounds) <= steps


def test_one_subtree_is_a_beam_of_one() -> None:
    for ask in PROBLEMS:
        assert drive(DVTS(1, 4, Hashed(), step="3"), ask) == drive(StepBeam(1, 4, Hashed(), step="3"), ask)


def test_the_first_subtrees_of_more_are_those_of_fewer() -> None:
    few, many = (drive(DVTS(n, 2, Hashed(), step="3"))[1].members for n in (2, 5))
    assert many[:2] == few


@pytest.mark.parametrize("search", [StepBeam(3, 2, Hashed(), step="3"), DVTS(3, 2, Hashed(), step="3")])
def test_what_a_search_asks_for(search: Any) -> None:
    ask = replace(ASK, prefix_ids=(1, 2), stop_strings=("Q:",), pauses=("outer",), max_new_tokens=9, suffix="S")
    rounds, _ = drive(search, replace(ask, stream=Stream((2, "problem"))))
    assert len(rounds) > 2
    for number, asks in enumerate(rounds):
        for asked in asks:
            assert asked.pauses == ("outer", "3")
            assert asked.stop_strings == ("Q:",)
            assert asked.prefix_ids[:2] == (1, 2)
            assert asked.max_new_tokens == 9 - len(asked.prefix_ids[2:])
            assert asked.suffix == ("" if number else "S")
    streams = [(copy.stream) for asks in rounds for asked in asks for copy in asked.copies()]
    assert len(set(streams)) == len(streams)


def test_a_pause_of_the_asker_is_an_end() -> None:
    """A search inside another one hands over what pauses at the outer one's steps."""
    ask = replace(ASK, pauses=("outer",))

    def respond(asked: Ask) -> list[Candidate]:
        return [replace(one(copy), finish_reason="pause", stopped_by="outer") for copy in asked.copies()]

    rounds, winner = drive(StepBeam(2, 2, Hashed(), step="3"), ask, respond)
    assert (len(rounds), winner.finish_reason, winner.stopped_by) == (1, "pause", "outer")


def test_a_step_that_never_ends_is_told() -> None:
    def respond(asked: Ask) -> list[Candidate]:
        return [Candidate("a", (1, 0), (-1.0, -1.0), "eos", copy.stream) for copy in asked.copies()]

    for search, count in ((StepBeam(2, 3), 6), (DVTS(2, 3), 6)):
        _, winner = drive(search, respond=respond)
        assert winner.notes == (
            f"no answer had a second step: none of {count} first steps ended with '\\n\\n'; name another `step`",
        )
    assert drive(StepBeam(2, 3, Hashed(), step="3"))[1].notes == ()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StepBeam(0, 2), r"StepBeam\(width=0\): width must be at least 1"),
        (lambda: StepBeam(2, 0), "expand must be at least 1"),
        (lambda: StepBeam(2, 2, max_steps=0), "max_steps must be at least 1"),
        (lambda: StepBeam(2, 2, step=""), "step must be a text"),
        (lambda: StepBeam(2, 2, LogProb), "scorer must be a scorer"),
        (lambda: DVTS(0, 2), r"DVTS\(subtrees=0\): subtrees must be at least 1"),
        (lambda: DVTS(2, 2, scorer=None), r"DVTS\(scorer=None\): scorer must be a scorer"),
    ],
)
def test_bad_arguments_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make()
