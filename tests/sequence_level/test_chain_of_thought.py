"""What a model sees under chain of thought, for each form of prompt."""

from __future__ import annotations

from typing import Any

import pytest

from tokenscale.core.data import Ask, Candidate, Prompt
from tokenscale.core.errors import ArgumentError, PromptError
from tokenscale.core.noise import Stream
from tokenscale.sequence_level.chain_of_thought import ChainOfThought

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
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        ChainOfThought(**arguments)
