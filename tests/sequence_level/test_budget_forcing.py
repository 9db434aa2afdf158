"""Budget forcing over the toy model: what is put in, what is taken away, and exact log-probabilities all along."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.sequence_level.trees import ASK
from tokenscale.core.data import Candidate, Result
from tokenscale.core.errors import ArgumentError
from tokenscale.core.prompt import Prompt
from tokenscale.models.toy import ToyModel
from tokenscale.pipeline import Pipeline
from tokenscale.sequence_level.beam_search import BeamSearch
from tokenscale.sequence_level.budget_forcing import BudgetForcing
from tokenscale.sequence_level.self_consistency import SelfConsistency
from tokenscale.token_level.decoders import Sample

# "b</" begins the end in the middle of a token, as tokens of real vocabularies do.
LM = ToyModel(("a", "b</", "t>", "</t>", "7", " "), spelling="WaitQb</>", moe_layers=2, experts=4, sharpness=1.5)
END = 0
PROMPTS = [Prompt(text="Q", key=f"problem {i}") for i in range(25)]


def run(strategy: Any, **options: Any) -> list[Result]:
    stages = [strategy] if strategy is not None else []
    pipe = Pipeline(Sample(1.0), *stages)
    return pipe.run(LM, PROMPTS, max_new_tokens=18, **options)


def check_exact(candidate: Candidate, given: int, prompt: tuple[int, ...]) -> None:
    """All log-probabilities are the model's own, but 0 for those tokens that were put in."""
    zeros = 0
    for place, (token, log_prob) in enumerate(zip(candidate.token_ids, candidate.log_probs, strict=True)):
        exact = LM.exact_log_probs((*prompt, *candidate.token_ids[:place]))[token]
        zeros += log_prob == 0
        assert log_prob == 0 or log_prob == pytest.approx(exact, abs=1e-6)
    assert zeros == given


def test_a_budget_that_never_takes_hold_changes_no_token() -> None:
    for plain, forced in zip(run(None), run(BudgetForcing(max=18, end="</t>")), strict=True):
        assert forced.winner.token_ids == plain.winner.token_ids
        assert forced.winner.log_probs == pytest.approx(plain.winner.log_probs, abs=1e-6)
        assert (forced.text, forced.winner.finish_reason) == (plain.text, plain.winner.finish_reason)


def test_thinking_is_capped() -> None:
    capped = 0
    for plain, forced in zip(run(None), run(BudgetForcing(max=3, end="</t>", closing=" </t>7")), strict=True):
        early = LM.decode(plain.winner.token_ids[:3])
        if "</t>" in early or END in plain.winner.token_ids[:3]:
            assert forced.winner.token_ids == plain.winner.token_ids
            continue
        assert forced.winner.token_ids[:3] == plain.winner.token_ids[:3]
        assert forced.text.startswith(early + " </t>7")
        assert len(forced.winner.token_ids) <= 18 + 3  # what is put in does not count
        check_exact(forced.winner, 3, LM.encode(Prompt(text="Q")))
        capped += 1
    assert capped > 3


def test_thinking_is_made_to_go_on() -> None:
    forced_ends = 0
    for plain, forced in zip(run(None), run(BudgetForcing(min=8, end="</t>")), strict=True):
        found = forced.winner
        thought = forced.text.split("</t>")[0]
        markers = thought.count("Wait")
        check_exact(found, 4 * markers + thought.count("bWait"), LM.encode(Prompt(text="Q")))
        if len(plain.winner.token_ids) >= 8 and "</t>" not in LM.decode(plain.winner.token_ids[:8]):
            assert found.token_ids == plain.winner.token_ids
        if found.finish_reason == "eos":
            place = next((n for n in range(len(found.token_ids)) if "</t>" in LM.decode(found.token_ids[:n])), None)
            assert (place or len(found.token_ids)) > 8
        assert END not in found.token_ids[:-1]
        forced_ends += markers
    assert forced_ends > 10


def test_what_stands_before_an_end_in_its_token_is_kept() -> None:
    [b] = LM.encode(Prompt(text="b"))
    rounds = [r.winner for r in run(BudgetForcing(min=20, end="</t>")) if "bWait" in r.text]
    assert rounds
    # Spelled anew, since its token went with the end.
    assert all(b in c.token_ids and LM.decode(c.token_ids[: len(c.token_ids) - c.ending]) == c.text for c in rounds)


def test_every_copy_has_rounds_of_its_own_and_more_copies_leave_the_first_as_they_were() -> None:
    forcing = BudgetForcing(min=6, max=9, end="</t>")
    few = Pipeline(forcing, SelfConsistency(2)).run(LM, PROMPTS[:6], max_new_tokens=16)
    many = Pipeline(forcing, SelfConsistency(5)).run(LM, PROMPTS[:6], max_new_tokens=16)
    for two, five in zip(few, many, strict=True):
        assert [c.token_ids for c in five.candidates[:2]] == [c.token_ids for c in two.candidates]
        assert [c.text for c in five.candidates[:2]] == [c.text for c in two.candidates]
    assert len({c.text.count("Wait") for r in many for c in r.candidates}) > 1


def test_all_tokens_are_billed() -> None:
    decided = 0

    def count(*event: int) -> None:
        nonlocal decided
        decided += 1

    results = run(BudgetForcing(min=8, max=12, end="</t>"), on_token=count)
    assert sum(r.cost.new_tokens for r in results) == decided
    assert sum(r.winner.cost.new_tokens for r in results) == decided
    assert sum(len(r.winner.token_ids) for r in results) != decided


def test_a_text_that_goes_on_is_passed_on() -> None:
    for ask in (replace(ASK, prefix_ids=(1,)), replace(ASK, suffix="S")):
        solving = BudgetForcing(max=3).solve(ask)
        assert next(solving) == [ask]
        with pytest.raises(StopIteration) as end:
            solving.send([[answer := Candidate("a", (1,), (0.0,), "eos", ask.stream)]])
        assert end.value.value == [answer]


def test_stop_strings_and_lengths_end_as_ever() -> None:
    for plain, forced in zip(
        run(None, stop_strings=["7 "]), run(BudgetForcing(max=18, end="</t>"), stop_strings=["7 "]), strict=True
    ):
        assert (forced.text, forced.winner.finish_reason) == (plain.text, plain.winner.finish_reason)
    short = Pipeline(Sample(1.0), BudgetForcing(min=30, end="</t>")).run(LM, PROMPTS, max_new_tokens=1)
    assert all(r.cost.new_tokens == 1 for r in short)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "with neither min nor max does nothing"),
        ({"min": -1}, "min must be at least 0"),
        ({"max": 0}, "max must be at least 1"),
        ({"min": 5, "max": 4}, r"BudgetForcing\(min=5, max=4\): min is above max"),
        ({"min": 5, "marker": ""}, "marker must be a text that is not empty"),
        ({"min": 5, "end": None}, "end must be a text"),
        ({"max": 5, "closing": ""}, "closing must be a text"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        BudgetForcing(**arguments)


@pytest.mark.parametrize("reason", ["length", "constraint_unmet"])
def test_a_text_that_is_cut_off_gets_its_closing(reason: str) -> None:
    """Under a constraint on what follows the thinking, it is cut off before that is met."""
    solving = BudgetForcing(max=2, closing=" so").solve(replace(ASK, max_new_tokens=9))
    next(solving)
    [asked] = solving.send([[Candidate("ab", (1, 2), (0.0, 0.0), reason, ASK.stream)]])
    assert (asked.prefix_ids, asked.suffix, asked.max_new_tokens, asked.pauses) == ((1, 2), " so", 7, ())


def test_a_text_that_nothing_may_follow_gets_no_closing() -> None:
    solving = BudgetForcing(max=2).solve(replace(ASK, max_new_tokens=9))
    next(solving)
    found = Candidate("a", (1, 2), (0.0, 0.0), "constraint_unmet", ASK.stream, stopped_by="b", ending=1)
    with pytest.raises(StopIteration) as end:
        solving.send([[found]])
    assert end.value.value == [found]


def test_the_texts_of_one_search_are_all_forced() -> None:
    """A beam search gives its texts in one ask: asked one by one they would all be the best one."""
    search = BeamSearch(width=4, num_return=3)
    [plain] = Pipeline(search, SelfConsistency(3)).run(LM, PROMPTS[:1], max_new_tokens=18)
    loose, tight = (BudgetForcing(max=most, end="Q", closing="</t>") for most in (18, 3))
    [same] = Pipeline(search, loose, SelfConsistency(3)).run(LM, PROMPTS[:1], max_new_tokens=18)
    assert [c.token_ids for c in same.candidates] == [c.token_ids for c in plain.candidates]
    [begun] = Pipeline(search, SelfConsistency(3)).run(LM, PROMPTS[:1], max_new_tokens=3)
    [forced] = Pipeline(search, tight, SelfConsistency(3)).run(LM, PROMPTS[:1], max_new_tokens=18)
    assert [c.token_ids[:3] for c in forced.candidates] == [c.token_ids for c in begun.candidates]
    assert len({c.token_ids for c in forced.candidates}) == 3
