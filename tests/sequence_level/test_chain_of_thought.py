"""What a model sees under chain of thought, for each form of prompt."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tokenscale.core.data import Ask, Candidate
from tokenscale.core.errors import ArgumentError, PromptError
from tokenscale.core.noise import Stream
from tokenscale.core.prompt import Prompt
from tokenscale.models.toy import ToyModel
from tokenscale.pipeline import Pipeline
from tokenscale.sequence_level.chain_of_thought import ChainOfThought
from tokenscale.sequence_level.self_consistency import SelfConsistency
from tokenscale.token_level.decoders import Sample

ROOT = Stream((0, "p"))
STEPS = "Let's think step by step."


def seen(strategy: ChainOfThought, prompt: Prompt) -> Prompt:
    [ask] = next(strategy.solve(Ask(prompt, ROOT, max_new_tokens=8)))
    return ask.prompt


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("Q: 1 + 1\nA:", f"Q: 1 + 1\nA: {STEPS}"),
        ("Q: 1 + 1\nA: ", f"Q: 1 + 1\nA: {STEPS}"),
        ("Q: 1 + 1\n", f"Q: 1 + 1\n{STEPS}"),
        ("", STEPS),
    ],
)
def test_a_text_ends_with_the_trigger(given: str, expected: str) -> None:
    assert seen(ChainOfThought(), Prompt(text=given)).text == expected


def test_in_a_chat_the_trigger_ends_the_users_message() -> None:
    prompt = Prompt.of([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}])
    assert seen(ChainOfThought(), prompt).chat() == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": f"1 + 1?\n{STEPS}"},
    ]


def test_an_answer_that_is_begun_goes_on_with_the_trigger() -> None:
    prompt = Prompt.of([{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "Well."}])
    assert seen(ChainOfThought(), prompt).chat()[-1]["content"] == f"Well. {STEPS}"


def test_token_ids_get_a_suffix() -> None:
    prompt = seen(ChainOfThought(), Prompt(token_ids=(3, 1)))
    assert (prompt.token_ids, prompt.suffix) == ((3, 1), f" {STEPS}")


def test_examples_stand_before_the_question() -> None:
    strategy = ChainOfThought(trigger="", examples="Q: 2 + 2\nA: 2 + 2 = 4\n#### 4\n\n")
    assert seen(strategy, Prompt(text="Q: 1 + 1\nA:")).text == "Q: 2 + 2\nA: 2 + 2 = 4\n#### 4\n\nQ: 1 + 1\nA:"
    with pytest.raises(PromptError, match="before a prompt given as token ids"):
        seen(strategy, Prompt(token_ids=(3,)))


def test_the_rest_of_the_ask_is_passed_on_and_the_candidates_back() -> None:
    ask = Ask(Prompt(text="Q", key="problem-1"), ROOT, max_new_tokens=8, k=3, stop_strings=("\n",))
    solving = ChainOfThought().solve(ask)
    [passed] = next(solving)
    assert (passed.k, passed.stream, passed.stop_strings, passed.prompt.key) == (3, ROOT, ("\n",), "problem-1")
    answers = [Candidate("4", (j,), (0.0,), "eos", ROOT.child(j)) for j in range(3)]
    with pytest.raises(StopIteration) as end:
        solving.send([answers])
    assert end.value.value == answers


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"trigger": ""}, "does nothing"),
        ({"trigger": None}, r"trigger must be a string\n.*trigger=\"...\""),
        ({"examples": ["Q"]}, "examples must be a string"),
        ({"extract": None}, "extract must be a string"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        ChainOfThought(**arguments)


EXTRACT = "Therefore, the answer is"


def test_an_extraction_goes_on_with_every_chain() -> None:
    ask = Ask(Prompt(text="Q"), ROOT, max_new_tokens=8, k=3, first=2, stop_strings=("\nQ:",), prefix_ids=(9,))
    solving = ChainOfThought(extract=EXTRACT).solve(ask)
    [first] = next(solving)
    chains = [
        Candidate("so 4", (1, 2, 0), (-1.0, -2.0, -3.0), "eos", ROOT.child(2), ending=1),
        Candidate(
            "it is\n", (5, 6), (-1.0, -2.0), "stop_string", ROOT.child(3), stopped_by="\nQ:", ending=2, rest="\n"
        ),
        Candidate("", (7,), (-1.0,), "length", ROOT.child(4)),
    ]
    asks = solving.send([chains])
    assert [a.prefix_ids for a in asks] == [(9, 1, 2), (9,), (9, 7)]
    assert [a.suffix for a in asks] == [f" {EXTRACT}", f"\n{EXTRACT}", EXTRACT]
    assert [(a.k, a.free, a.max_new_tokens, a.prompt) for a in asks] == [(1, True, 32, first.prompt)] * 3
    assert [a.stop_strings for a in asks] == [("\nQ:",)] * 3
    assert [a.stream for a in asks] == [ROOT.child(j).child("extract") for j in (2, 3, 4)]
    seconds = [
        Candidate(f"so 4 {EXTRACT} $5.00.", (3, 0), (-4.0, -5.0), "eos", ROOT, suffix_ids=(8,), ending=1),
        Candidate(f"it is\n{EXTRACT}", (0,), (-4.0,), "eos", ROOT, suffix_ids=(8,), ending=1),
        Candidate(f"{EXTRACT} 7, or 8 or 9", (3,), (-4.0,), "length", ROOT, suffix_ids=(8,)),
    ]
    with pytest.raises(StopIteration) as end:
        solving.send([[c] for c in seconds])
    found = end.value.value
    assert [c.answer for c in found] == ["5", None, "7"]
    assert [c.text for c in found] == [c.text for c in seconds]
    assert found[0].token_ids == (1, 2, 8, 3, 0)
    assert found[0].log_probs == (-1.0, -2.0, 0.0, -4.0, -5.0)


def test_an_answer_that_the_chain_names_itself_is_not_the_second_calls() -> None:
    said = f"{EXTRACT} 3. No."
    solving = ChainOfThought(extract=EXTRACT).solve(Ask(Prompt(text="Q"), ROOT, max_new_tokens=8))
    next(solving)
    solving.send([[Candidate(said, (1,), (0.0,), "eos", ROOT)]])
    with pytest.raises(StopIteration) as end:
        solving.send([[Candidate(f"{said} {EXTRACT} 4. {EXTRACT} 5.", (1,), (0.0,), "eos", ROOT)]])
    [found] = end.value.value
    assert found.answer == "4"


def test_chains_that_somebody_goes_on_with_are_left_alone() -> None:
    ask = Ask(Prompt(text="Q"), ROOT, max_new_tokens=8, k=4, pauses=("\n",))
    solving = ChainOfThought(extract=EXTRACT).solve(ask)
    next(solving)
    ended = Candidate("4", (1, 0), (0.0, 0.0), "eos", ROOT.child(2), ending=1)
    chains = [replace(ended, finish_reason=reason, ending=0) for reason in ("pause", "length", "constraint_unmet")]
    assert len(solving.send([[*chains, ended]])) == 1
    with pytest.raises(StopIteration) as end:
        solving.send([[replace(ended, text=f"4 {EXTRACT} 6")]])
    assert [c.answer for c in end.value.value] == [None, None, None, "6"]


def test_a_chain_that_was_ended_early_is_not_asked_for_its_answer() -> None:
    """Its reason must stay, too: whoever ended it may not take it for a whole one."""
    stopped = Candidate("so 4", (1, 2), (-1.0, -2.0), "stop_rule", ROOT)
    solving = ChainOfThought(extract=EXTRACT).solve(Ask(Prompt(text="Q"), ROOT, max_new_tokens=8))
    next(solving)
    with pytest.raises(StopIteration) as end:
        solving.send([[stopped]])
    assert end.value.value == [stopped]


def test_an_extraction_over_a_model_has_exact_log_probabilities_and_is_billed() -> None:
    decided = []
    lm = ToyModel(("7", " ", "a"), spelling="SAEQTchefinorstuvw,lp.y'LbxU", moe_layers=2, context_length=200)
    pipe = Pipeline(Sample(1.0), ChainOfThought("So", extract=EXTRACT), SelfConsistency(2))
    results = pipe.run(lm, ["Q", "QQ"], max_new_tokens=6, on_token=lambda *event: decided.append(event))
    for result in results:
        prompt = lm.encode(Prompt(text=f"{result.prompt.text} So"))
        for found in result.candidates:
            assert found.text.count(EXTRACT) == 1
            kept = found.token_ids[: len(found.token_ids) - found.ending]
            assert lm.decode(kept) + found.rest == found.text
            for place, (token, log_prob) in enumerate(zip(found.token_ids, found.log_probs, strict=True)):
                exact = lm.exact_log_probs((*prompt, *found.token_ids[:place]))[token]
                assert log_prob == 0 or log_prob == pytest.approx(exact, abs=1e-6)
    assert sum(r.cost.new_tokens for r in results) == len(decided)
    # Every prompt once, and behind each chain what is put there.
    assert sum(r.cost.prompt_tokens for r in results) < sum(
        len(lm.encode(Prompt(text=f"{r.prompt.text} So"))) + 2 * (len(EXTRACT) + 3) for r in results
    )


def test_only_a_single_call_can_be_shown_as_it_comes() -> None:
    assert ChainOfThought().streams
    assert not ChainOfThought(extract=EXTRACT).streams
