"""Scorers against numpy and by hand, what a judge is asked, and the errors of other people's functions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.choosing import ASK, ROOT, candidate, scores_of
from tokenscale.core.constraint import Constraint, Guide
from tokenscale.core.data import Candidate
from tokenscale.core.errors import ArgumentError, PipelineError, UnknownNameError
from tokenscale.core.greedy import Greedy
from tokenscale.core.model import LanguageModel
from tokenscale.core.prompt import Prompt
from tokenscale.sequence_level.questions import followed_by
from tokenscale.sequence_level.scorers.function import FunctionScorer
from tokenscale.sequence_level.scorers.judge import LLMJudge
from tokenscale.sequence_level.scorers.log_prob import LogProb
from tokenscale.sequence_level.scorers.scored import scored
from tokenscale.sequence_level.scorers.self_certainty import SelfCertainty


@dataclass(frozen=True)
class Digits(Constraint):
    """Stands for a constraint."""

    def start(self, lm: LanguageModel) -> Guide:
        raise NotImplementedError


def length(prompt: Prompt, answer: Candidate) -> int:
    return len(answer.text) - len(prompt.text or "")


def fails(prompt: Prompt, answer: Candidate) -> float:
    raise ZeroDivisionError("by zero")


@given(st.lists(st.lists(st.floats(-50, 0), max_size=5), max_size=4))
def test_log_probabilities(drawn: list[list[float]]) -> None:
    candidates = [candidate("", token_ids=(0,) * len(lps), log_probs=tuple(lps)) for lps in drawn]
    means = [float(np.mean(lps)) if lps else 0.0 for lps in drawn]
    assert scores_of(LogProb(), candidates) == ([], pytest.approx(means))
    assert scores_of(LogProb(reduce="sum"), candidates) == ([], pytest.approx([float(np.sum(lps)) for lps in drawn]))
    with pytest.raises(UnknownNameError, match=r"unknown reduction 'max' in LogProb\n.*mean, sum"):
        LogProb(reduce="max")


def test_self_certainty_is_the_mean_over_tokens() -> None:
    assert SelfCertainty().signals == {"self_certainty"}
    drawn = [candidate("", signals=(("self_certainty", values),)) for values in ((1.0, 2.5), (4.0,), ())]
    assert scores_of(SelfCertainty(), drawn) == ([], [1.75, 4.0, 0.0])
    with pytest.raises(PipelineError, match="SelfCertainty reads the self_certainty of every token"):
        scores_of(SelfCertainty(), [candidate("")])


def test_a_function_sees_the_prompt_and_the_candidate() -> None:
    assert scores_of(FunctionScorer(length), [candidate("four"), candidate("")]) == ([], [-7.0, -11.0])
    assert scores_of(FunctionScorer(lambda prompt, answer: np.float32(0.5)), [candidate("")])[1] == [0.5]


def test_functions_that_fail_or_return_no_number_are_named() -> None:
    with pytest.raises(PipelineError, match=r"scorer fails failed on candidate 1 of 2: ZeroDivisionError: by zero\n"):
        scores_of(FunctionScorer(fails), [candidate("")] * 2)
    with pytest.raises(PipelineError, match=r"<lambda> failed on candidate 1 of 1: TypeError: .*\n.*return a number"):
        scores_of(FunctionScorer(lambda prompt, answer: None), [candidate("")])  # type: ignore[arg-type, return-value]
    with pytest.raises(ArgumentError, match=r"function must be callable\n.*file.py:name"):
        FunctionScorer("length")  # type: ignore[arg-type]


def test_a_judge_is_asked_directly_once_per_different_text() -> None:
    judge = LLMJudge(template="\nAnswer: {answer}\nFrom 1 to {scale}: ", scale=5, max_new_tokens=3)
    drawn = [candidate("a {scale}", 0), candidate("b", 1), candidate("a {scale}", 2)]
    replies = {"a {scale}": "4, I think. 5 at most", "b": "3.5"}

    def respond(ask: Any) -> list[Candidate]:
        return [candidate(next(reply for text, reply in replies.items() if f"Answer: {text}\n" in ask.prompt.text))]

    [asks], scores = scores_of(judge, drawn, respond)
    assert scores == [4.0, 3.5, 4.0]
    assert {ask.prompt.text for ask in asks} == {f"{ASK.prompt.text}\nAnswer: {t}\nFrom 1 to 5: " for t in replies}
    bound = replace(judge, constraint=Digits())
    [asks_bound], _ = scores_of(bound, drawn, respond)
    assert asks_bound == [replace(ask, constraint=Digits()) for ask in asks]
    for ask in asks:
        assert (ask.direct, ask.free, ask.constraint, ask.stop_strings) == (True, True, None, ())
        assert (ask.decoder, ask.max_new_tokens, ask.k) == (Greedy(), 3, 1)
    assert {ask.stream.path[:-1] for ask in asks} == {(*ROOT.path, "judge")}
    assert len({ask.stream.path for ask in asks}) == 2
    assert scores_of(judge, []) == ([], [])


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("8", 8.0),
        (" 8/10", 8.0),
        ("Rating: **10**.", 10.0),
        ("7.5 of 10", 7.5),
        ("1", 1.0),
        ("0", 0.0),
        ("11", 0.0),
        ("100", 0.0),
        ("very good", 0.0),
        ("GPT4", 0.0),
        ("", 0.0),
    ],
)
def test_the_first_number_of_a_reply_is_the_score(reply: str, score: float) -> None:
    _, scores = scores_of(LLMJudge(), [candidate("x")], lambda ask: [candidate(reply)])
    assert scores == [score]
    unread = LLMJudge().notes([3.0, *scores])
    assert unread == () if score else unread[0].startswith("the judge gave no number from 1 to 10 for 1 of 2 candid")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"template": "rate it"}, r"template must be a text with \{answer\} in it\n.*put \{answer\}"),
        ({"template": None}, "template must be a text"),
        ({"scale": 1}, "scale must be at least 2"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"constraint": Greedy()}, "constraint must be a constraint"),
    ],
)
def test_bad_arguments_of_a_judge_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        LLMJudge(**arguments)


def test_a_question_follows_any_form_of_prompt() -> None:
    assert followed_by(Prompt(text="a"), "\nb?") == Prompt(text="a\nb?")
    assert followed_by(Prompt(token_ids=(1,), key="k"), "\nb?") == Prompt(token_ids=(1,), suffix="\nb?", key="k")
    user, begun = {"role": "user", "content": "a"}, {"role": "assistant", "content": "Well"}
    assert followed_by(Prompt.of([user]), "\nb?").chat() == [{"role": "user", "content": "a\nb?"}]
    assert followed_by(Prompt.of([user, begun]), "\nb?").chat() == [user, begun, {"role": "user", "content": "b?"}]


def test_scores_are_checked() -> None:
    def of(values: list[Any]) -> Any:
        scorer = FunctionScorer(lambda prompt, answer: values[answer.token_ids[0]])
        generator = scored(scorer, ASK, [candidate("", place) for place in range(len(values))])
        with pytest.raises(StopIteration) as end:
            next(generator)
        return [c.score for c in end.value.value]

    assert of([1, float("-inf"), True]) == [1.0, float("-inf"), 1.0]
    with pytest.raises(PipelineError, match=r"FunctionScorer\(.*lambda.*scored candidate 2 of 2 as NaN\n.*-inf"):
        of([1.0, float("nan")])

    class Short(LogProb):
        def grade(self, ask: Any, candidates: Any) -> Any:
            yield from ()
            return [0.0]

    with pytest.raises(PipelineError, match=r"Short\(reduce='mean'\) gave 1 scores for 2 candidates"):
        next(scored(Short(), ASK, [candidate("")] * 2))
