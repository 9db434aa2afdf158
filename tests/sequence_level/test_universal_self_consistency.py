"""Universal self-consistency: what the model is asked, and what its reply chooses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.choosing import ASK, ROOT, candidate, choose, drive, served
from tokenscale.core.errors import ArgumentError, UnknownNameError
from tokenscale.core.greedy import Greedy
from tokenscale.sequence_level.universal_self_consistency import UniversalSelfConsistency, chosen, listed

TEXTS = ["a poem of 3 lines", "a sonnet {responses}", "a haiku"]
CANDIDATES = [candidate(text, place) for place, text in enumerate(TEXTS)]


def test_the_model_is_asked_directly_with_all_responses_in_its_prompt() -> None:
    strategy = UniversalSelfConsistency(3, template="\n{responses}\nWhich?", max_new_tokens=5)
    rounds, winner = drive(strategy, served(CANDIDATES, "The most consistent response is Response 2."))
    first, [asked] = rounds
    assert first == [replace(ASK, k=3)]
    assert asked.prompt.text == f"{ASK.prompt.text}\n{listed(TEXTS)}\nWhich?"
    assert (asked.direct, asked.free, asked.stop_strings, asked.k) == (True, True, (), 1)
    assert (asked.decoder, asked.max_new_tokens, asked.stream) == (Greedy(), 5, ROOT.child("choice"))
    assert (winner.text, winner.answer, winner.notes, winner.votes) == (TEXTS[1], None, (), ())
    assert [m.text for m in winner.members] == TEXTS


def test_responses_are_listed_from_one() -> None:
    assert listed([" a\n", "b"]) == "Response 1: a\n\nResponse 2: b"


@pytest.mark.parametrize(
    ("reply", "place"),
    [
        ("The most consistent response is Response 3", 2),
        ("Response 1 says 5 and Response 3 says 6. The most consistent response is Response 2.", 1),
        ("the most consistent response is: **Response 2**", 1),
        ("Response #3 agrees with most.", 2),
        ("response 1, since Response 2 is wrong", 0),
        (" 2.", 1),
        ("(3)", 2),
        ("Response 4", None),
        ("Response 0", None),
        ("Response 12", None),
        ("The most consistent response is Response 9, not Response 1", None),
        ("I like 2 of them", None),
        ("", None),
    ],
)
def test_what_a_reply_chooses(reply: str, place: int | None) -> None:
    assert chosen(reply, 3) == place


def test_a_reply_that_chooses_nothing_means_the_first_with_a_note() -> None:
    winner = choose(UniversalSelfConsistency(3), CANDIDATES, "They are all good.")
    assert (winner.text, winner.answer) == (TEXTS[0], "3")
    [note] = winner.notes
    assert note.startswith("the model named none of its 3 responses, so the first was taken: raise max_new_tokens")


@pytest.mark.parametrize("candidates", [CANDIDATES[:1], [candidate("same", place) for place in range(3)]])
def test_equal_responses_need_no_question(candidates: Any) -> None:
    rounds, winner = drive(UniversalSelfConsistency(len(candidates)), served(candidates))
    assert len(rounds) == 1
    assert (winner.token_ids, winner.notes) == ((0,), ())


def test_a_shortfall_is_said() -> None:
    assert choose(UniversalSelfConsistency(4), CANDIDATES, "Response 1").notes[0].startswith("3 of 4 candidates")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k must be at least 1"),
        ({"k": 2, "template": "which?"}, r"template must be a text with \{responses\}"),
        ({"k": 2, "max_new_tokens": 0}, "max_new_tokens must be at least 1"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        UniversalSelfConsistency(**arguments)
    with pytest.raises(UnknownNameError, match="unknown kind of answer"):
        UniversalSelfConsistency(2, answers="letters")
