"""Scorers of reward models: what they request, what they make of the scores, and runs of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenscale.core.cost import Cached, Lane, Prefill, Usage
from tokenscale.core.data import Ask, Candidate
from tokenscale.core.errors import ArgumentError, ModelError, UnknownNameError
from tokenscale.core.noise import Stream
from tokenscale.core.prompt import Prompt
from tokenscale.core.reward import Grade, Graded, RewardModel
from tokenscale.core.scorer import Requests, Scorer
from tokenscale.core.stage import Kind
from tokenscale.core.step import no_experts, pack_experts
from tokenscale.core.strategy import Asks, SequenceStrategy
from tokenscale.models.toy import ToyModel
from tokenscale.pipeline import Pipeline
from tokenscale.sequence_level.best_of_n import BestOfN
from tokenscale.sequence_level.scorers.reward import ProcessRewardScorer, RewardModelScorer, split_steps

ROOT = Stream((0, "p"))
ASK = Ask(Prompt(text="Q: 1 + 1\nA:"), ROOT, max_new_tokens=8)


def candidate(text: str, place: int = 0) -> Candidate:
    return Candidate(text, (place,), (-1.0,), "eos", ROOT.child(place))


def run(scorer: Scorer, texts: Sequence[str], scores: Sequence[tuple[float, ...]]) -> tuple[Grade, list[float]]:
    """The one request that is made, and the result where it is answered by `scores`."""
    candidates = [candidate(text, place) for place, text in enumerate(texts)]
    grading = scorer.grade(ASK, candidates)
    [request] = next(grading)
    assert isinstance(request, Grade)
    assert (request.prompt, request.candidates) == (ASK.prompt, tuple(candidates))
    with pytest.raises(StopIteration) as end:
        grading.send([[replace(c, step_scores=s) for c, s in zip(candidates, scores, strict=True)]])
    return request, end.value.value


def test_a_whole_answer_is_one_step_and_its_score_is_kept() -> None:
    request, found = run(RewardModelScorer("some/model"), [" 2,\n", ""], [(-3.5,), (0.25,)])
    assert request.steps == ((" 2,\n",), ("",))
    assert request.model == "some/model"
    assert found == [-3.5, 0.25]


@pytest.mark.parametrize(
    ("reduce", "expected"), [("last", 0.8), ("min", 0.2), ("prod", 0.5 * 0.2 * 0.8), ("mean", 0.5)]
)
def test_reductions_of_step_scores(reduce: str, expected: float) -> None:
    scores = tuple(math.log(p / (1 - p)) for p in (0.5, 0.2, 0.8))
    request, [found] = run(ProcessRewardScorer(reduce=reduce, steps=","), [" 1,2,3"], [scores])
    assert request.steps == ((" 1,", "2,", "3"),)
    assert request.model == "demo-verifier"
    assert found == pytest.approx(expected, rel=1e-12)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8), st.sampled_from(["last", "min", "prod", "mean"]))
def test_scores_of_steps_lie_between_0_and_1(scores: list[float], reduce: str) -> None:
    text = "\n".join("x" for _ in scores)
    _, [found] = run(ProcessRewardScorer(reduce=reduce), [text], [tuple(scores)])
    chances = torch.tensor(scores, dtype=torch.float64).sigmoid()
    oracle = {"last": chances[-1], "min": chances.min(), "prod": chances.prod(), "mean": chances.mean()}
    assert 0 <= found <= 1
    assert found == pytest.approx(oracle[reduce].item(), rel=1e-9, abs=1e-300)


def test_without_candidates_nothing_is_requested() -> None:
    for scorer in (RewardModelScorer(), ProcessRewardScorer()):
        with pytest.raises(StopIteration) as end:
            next(scorer.grade(ASK, []))
        assert end.value.value == []


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("", ("",)),
        ("one", ("one",)),
        ("one\ntwo", ("one\n", "two")),
        ("one\n", ("one\n",)),
        ("\n\none\n\n \ntwo\n\n", ("\n\none\n\n \n", "two\n\n")),
        ("\n \n", ("\n \n",)),
    ],
)
def test_steps(text: str, steps: tuple[str, ...]) -> None:
    assert split_steps(text, "\n") == steps


@given(st.text("ab, \n", max_size=20), st.sampled_from(["\n", ",", ", ", "ab"]))
def test_steps_are_the_text_and_none_is_empty(text: str, separator: str) -> None:
    steps = split_steps(text, separator)
    assert "".join(steps) == text
    marks = [step.replace(separator, "").strip() for step in steps]
    assert all(marks) or len(marks) == 1
    contents = [piece.strip() for piece in text.split(separator) if piece.strip()]
    assert len(steps) == max(1, len(contents))


@pytest.mark.parametrize("kind", [RewardModelScorer, ProcessRewardScorer])
@pytest.mark.parametrize("model", ["", None, 3])
def test_a_model_must_be_named_or_be_one(kind: type, model: object) -> None:
    with pytest.raises(ArgumentError, match=rf"(?s){kind.__name__}\(model=.*fix: write {kind.__name__}\(model="):
        kind(model=model)


def test_other_bad_arguments() -> None:
    with pytest.raises(UnknownNameError, match=r"(?s)reduction of step scores 'max'.*known: last, mean, min, prod"):
        ProcessRewardScorer(reduce="max")
    with pytest.raises(ArgumentError, match=r"(?s)steps=''\): steps must be the text.*fix: write steps="):
        ProcessRewardScorer(steps="")


class Lengths(RewardModel):
    """The score of a step is the length of the answer up to its end; a text costs its characters."""

    name, fingerprint = "lengths", "lengths"

    def __init__(self, lm: ToyModel) -> None:
        self.lm, self.calls = lm, list[int]()

    def grade(self, texts: Sequence[tuple[Prompt, tuple[str, ...]]]) -> list[Graded]:
        self.calls.append(len(texts))
        return [self._grade(prompt, steps) for prompt, steps in texts]

    def _grade(self, prompt: Prompt, steps: tuple[str, ...]) -> Graded:
        nothing = pack_experts(no_experts(1, self.lm.shape))
        ids = self.lm.encode(prompt.append("".join(steps)))
        cached = Cached(self.fingerprint, self.lm.shape, ids, Prefill(nothing[0], 0), source="its own")
        usage = Usage((Lane(cached, (1,), (1,), (0,), nothing, (0,)),))
        return Graded(tuple(float(len("".join(steps[: i + 1]))) for i in range(len(steps))), usage)


@dataclass(frozen=True)
class Longest(SequenceStrategy):
    """The candidate of the highest score, of four."""

    kind = Kind.CHOOSING
    scorer: Scorer

    def solve(self, ask: Ask) -> Asks:
        [candidates] = yield [replace(ask, k=4)]
        scores = yield from self.scorer.grade(ask, candidates)
        best = max(range(4), key=scores.__getitem__)
        return [replace(candidates[best], score=scores[best], members=tuple(candidates))]


@pytest.mark.parametrize("kind", [RewardModelScorer, ProcessRewardScorer])
def test_a_strategy_chooses_by_a_scorer_and_pays_for_it(kind: type) -> None:
    lm = ToyModel()
    model = Lengths(lm)
    prompts = ["a b", "c d", "e"]
    results = Pipeline(Longest(kind(model=model))).run(lm, prompts, max_new_tokens=6)
    plain = Pipeline(Longest(First())).run(lm, prompts, max_new_tokens=6)
    for result, other in zip(results, plain, strict=True):
        texts = [c.text for c in result.candidates]
        assert texts == [c.text for c in other.candidates]
        assert len(result.text) == max(map(len, texts))
        ids = {lm.encode(result.prompt.append(text)) for text in texts}
        assert result.cost.prompt_tokens == other.cost.prompt_tokens + sum(map(len, ids))
        assert result.cost.new_tokens == other.cost.new_tokens
    assert sum(model.calls) == 12
    assert len(model.calls) <= 3


@dataclass(frozen=True)
class First(Scorer):
    """Needs no reward model."""

    def grade(self, ask: Ask, candidates: Sequence[Candidate]) -> Requests:
        yield from ()
        return [-float(i) for i in range(len(candidates))]


@pytest.mark.parametrize("answer", [None, [], [1.0, 2.0], "short", "long"])
def test_a_reward_model_that_answers_wrongly_is_named(answer: object) -> None:
    class Wrong(Lengths):
        def grade(self, texts: Sequence[tuple[Prompt, tuple[str, ...]]]) -> list[Graded]:
            found = super().grade(texts)
            if isinstance(answer, str):
                return [replace(grade, scores=grade.scores * 2 if answer == "long" else ()) for grade in found]
            return answer  # type: ignore[return-value]

    lm = ToyModel()
    with pytest.raises(ModelError, match=r"the reward model lengths (returned|gave) .*\n.*one Graded per text"):
        Pipeline(BestOfN(2, scorer=RewardModelScorer(Wrong(lm)))).run(lm, ["a"], max_new_tokens=2)
