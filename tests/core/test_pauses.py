"""Asks that go on with a text: pauses, suffixes, stop strings across the border, and where a context is full."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from tests.core.asks import END, ask
from tokenscale.core.constraint import Constraint, Guide
from tokenscale.core.data import Ask, Candidate
from tokenscale.core.errors import ArgumentError
from tokenscale.models.toy import ToyModel
from tokenscale.token_level.decoders import Sample

WORDS = ToyModel(("a", "ab", "b", "1", "\n\n"), spelling="Q\n", moe_layers=2, sharpness=2.0, context_length=60)
PAUSES = ("b", "\n")


def continued(run: Any, first: Ask, model: ToyModel = WORDS) -> list[Candidate]:
    """The candidates of an ask and of those that go on with it behind every pause, until it ends otherwise."""
    found, done = [], 0
    while True:
        prefix = tuple(token for c in found for token in c.token_ids)
        [completion] = run([replace(first, prefix_ids=prefix, max_new_tokens=first.max_new_tokens - done)], model=model)
        found += completion.candidates
        done = len(prefix) + len(found[-1].token_ids)
        if found[-1].finish_reason != "pause":
            return found


def test_a_text_with_pauses_is_the_text_without(run: Any) -> None:
    """Draws are a function of the position, so a text goes on as it would have: stop strings across borders too."""
    reasons, pauses = set[str](), 0
    for seed in range(40):
        stops = ("\n\n1", "bb1", "ab\n")
        one = ask((3, 1), 4 + seed % 20, ("pauses", seed), decoder=Sample(1.5), stop_strings=stops)
        [whole] = run([one], model=WORDS)[0].candidates
        parts = continued(run, replace(one, pauses=PAUSES))
        assert sum((c.token_ids for c in parts), ()) == whole.token_ids
        assert sum((c.log_probs for c in parts), ()) == pytest.approx(whole.log_probs, abs=1e-6)
        last = parts[-1]
        assert (last.text, last.finish_reason, last.stopped_by) == (whole.text, whole.finish_reason, whole.stopped_by)
        assert all(c.stopped_by in PAUSES for c in parts[:-1])
        reasons.add(last.finish_reason)
        pauses += len(parts) - 1
    assert reasons == {"eos", "length", "stop_string"}
    assert pauses > 40


def test_the_ending_is_what_goes_beyond_the_text(run: Any) -> None:
    rests, crossed = set[str](), 0
    for seed in range(40):
        one = ask((3,), 20, (seed,), decoder=Sample(1.5), prefix_ids=(1, 2), stop_strings=("b1", "\n1"), pauses=("bb",))
        [found] = run([one], model=WORDS)[0].candidates
        kept = found.token_ids[: len(found.token_ids) - found.ending]
        begun = len(found.text) < len("aab")  # the stop string begins in the prefix
        assert WORDS.decode((1, 2, *kept)) + found.rest == ("aab" if begun else found.text)
        if found.stopped_by:  # and one token more would go too far
            assert not found.text.startswith(WORDS.decode((1, 2, *found.token_ids[: len(kept) + 1])))
        crossed += begun
        assert (found.finish_reason == "eos") <= (found.token_ids[-1] == END and found.ending == 1)
        assert (found.finish_reason == "length") <= (found.ending == 0)
        rests.add(found.rest)
    assert rests == {"", "a", "\n"}
    assert crossed > 2


def test_there_is_no_pause_where_nothing_may_follow(run: Any) -> None:
    always = ToyModel(("b",), spelling="a", suppressed_ids=(END,), context_length=6)
    [stopped, paused, full] = run(
        [
            ask((1,), 1, stop_strings=("b",), pauses=("b",)),
            ask((1,), 2, pauses=("b",)),
            ask((1,), 1, pauses=("b",)),
        ],
        model=always,
    )
    assert [c.candidates[0].finish_reason for c in (stopped, paused, full)] == ["stop_string", "pause", "length"]
    assert [c.candidates[0].text for c in (stopped, paused, full)] == ["", "", "b"]
    parts = continued(run, ask((1,), 100, pauses=("b",)), always)
    assert [c.finish_reason for c in parts] == ["pause"] * 4 + ["length"]


def test_a_suffix_is_text_behind_the_prefix(run: Any) -> None:
    one = ask((3, 1), 8, ("suffix",), k=3, prefix_ids=(2, 4), suffix="ab1Q", decoder=Sample(1.0))
    ids = (2, 4, 6)
    assert WORDS.decode(ids) == "ab1Q"
    with_suffix, by_hand = run([one, replace(one, suffix="", prefix_ids=(2, 4, *ids))], model=WORDS)
    assert [c.suffix_ids for c in with_suffix.candidates] == [ids] * 3
    assert [replace(c, suffix_ids=()) for c in with_suffix.candidates] == by_hand.candidates
    assert all(c.text.startswith("ab1ab1Q") for c in with_suffix.candidates)
    [first] = run([ask((3, 1), 4, suffix="1")], model=WORDS)[0].candidates
    assert (first.suffix_ids, first.text[:1]) == ((4,), "1")


def test_a_text_that_fills_the_context_gets_no_token(run: Any, lm: ToyModel) -> None:
    asks = [ask((1,) * 20, k=2, prefix_ids=(2,) * 4), ask((1,), 3), ask((1,) * 20, suffix="a" * 30)]
    full, other, over = run(asks, batch_size=1)
    assert [(c.text, c.token_ids, c.finish_reason) for c in full.candidates] == [("bbbb", (), "length")] * 2
    assert [c.stream for c in full.candidates] == [one.stream for one in asks[0].copies()]
    assert len(other.candidates[0].token_ids) == 3
    assert (over.candidates[0].text, over.candidates[0].suffix_ids) == ("a" * 30, (1,) * 30)


@dataclass
class Alternating(Guide):
    """Never the same token twice."""

    size: int
    last: int = -1

    def allowed(self) -> Any:
        mask = torch.ones(self.size, dtype=torch.bool)
        if self.last >= 0:
            mask[self.last] = False
        return mask

    def advance(self, token: int) -> None:
        self.last = token

    def fork(self) -> Guide:
        return replace(self)

    met = True
    over = False


@dataclass(frozen=True)
class NoRepeats(Constraint):
    """A constraint on the whole answer."""

    def start(self, lm: Any) -> Guide:
        return Alternating(lm.vocab_size)


@pytest.mark.parametrize("beginning", [{"prefix_ids": (2,)}, {"suffix": "b"}])
def test_a_constraint_holds_for_the_whole_answer(run: Any, beginning: dict[str, Any]) -> None:
    one = ask((1,), 1, k=40, decoder=Sample(2.0), **beginning)
    assert any(c.token_ids == (2,) for c in run([one])[0].candidates)
    assert all(c.token_ids != (2,) for c in run([replace(one, constraint=NoRepeats())])[0].candidates)


def test_pauses_are_a_tuple_of_texts() -> None:
    with pytest.raises(ArgumentError, match=r"pauses='b': pauses are a tuple.*\n.*write pauses=\(\"\\\\n\",\)"):
        ask(pauses="b")
