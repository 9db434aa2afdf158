"""Early-stopping self-consistency against windows cut out of a list of answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.choosing import ASK, candidate, choose, drive, served
from tokenscale.core.errors import ArgumentError, UnknownNameError
from tokenscale.sequence_level.early_stopping_self_consistency import EarlyStoppingSelfConsistency
from tokenscale.sequence_level.self_consistency import SelfConsistency


def windows(texts: list[str], size: int) -> list[list[str]]:
    return [texts[start : start + size] for start in range(0, len(texts), size)]


@given(st.lists(st.sampled_from(["1", "1", "1", "2", "none"]), min_size=1, max_size=20), st.integers(1, 7))
def test_it_draws_up_to_the_first_window_that_agrees(texts: list[str], window: int) -> None:
    window = min(window, len(texts))
    candidates = [candidate(text, place, -place / 7) for place, text in enumerate(texts)]
    rounds, winner = drive(EarlyStoppingSelfConsistency(window, len(texts)), served(candidates))
    cut = windows(texts, window)
    agreeing = [i for i, answers in enumerate(cut) if len(set(answers)) == 1 and answers[0] != "none"]
    wanted = cut[: agreeing[0] + 1] if agreeing else cut
    assert rounds == [[replace(ASK, k=len(part), first=i * window)] for i, part in enumerate(wanted)]
    # The vote is over all that was drawn, and all that was drawn is a member.
    assert winner == choose(SelfConsistency(sum(map(len, wanted))), candidates)


def test_the_vote_is_over_all_windows_not_the_last() -> None:
    texts = ["1", "1", "3", "1", "1", "3", "2", "2", "2", "3"]
    winner = choose(EarlyStoppingSelfConsistency(window=3, max_k=10), [candidate(t, i) for i, t in enumerate(texts)])
    assert (winner.answer, winner.votes) == ("1", (("1", 4.0), ("2", 3.0), ("3", 2.0)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window": 0}, "window must be at least 1"),
        ({"max_k": 0}, "max_k must be at least 1"),
        ({"window": 5, "max_k": 4}, r"\(window=5, max_k=4\): max_k is below window\n.*max_k=5"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        EarlyStoppingSelfConsistency(**arguments)
    with pytest.raises(UnknownNameError, match="unknown kind of answer"):
        EarlyStoppingSelfConsistency(answers="letters")
