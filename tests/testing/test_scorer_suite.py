"""The suite for scorers catches planted faults, each by the promise it breaks; the built-in ones pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from tokenscale.core.data import Ask, Candidate
from tokenscale.core.prompt import Prompt
from tokenscale.core.scorer import Requests, Scorer
from tokenscale.dsl import to_text
from tokenscale.sequence_level.scorers.function import FunctionScorer
from tokenscale.sequence_level.scorers.judge import LLMJudge
from tokenscale.sequence_level.scorers.log_prob import LogProb
from tokenscale.sequence_level.scorers.reward import ProcessRewardScorer, RewardModelScorer
from tokenscale.sequence_level.scorers.self_certainty import SelfCertainty
from tokenscale.testing import check_scorer

SEEN: list[int] = []


@dataclass(frozen=True)
class Length(Scorer):
    """The length of the text, with something wrong."""

    fault: str = ""

    def grade(self, ask: Ask, candidates: Sequence[Candidate]) -> Requests:
        while self.fault == "endless":
            yield []
        SEEN.append(0)
        scores = [float(c.token_ids[0]) for c in candidates]
        if self.fault == "company" and candidates:
            scores = [score / max(scores) for score in scores]
        if self.fault == "memory":
            scores = [score + len(SEEN) for score in scores]
        if self.fault == "negative":
            scores = [-score for score in scores]
        if self.fault == "nan":
            scores = [float("nan") for _ in scores]
        return scores[1:] if self.fault == "short" else scores


@pytest.mark.parametrize(
    ("fault", "promise"),
    [
        ("endless", r"Length.grade ends within 1000 rounds"),
        ("company", "company changes no score"),
        ("memory", "the same twice"),
        ("negative", "Length gives scores below 0, and is not `signed`"),
        ("nan", "numbers, not NaN"),
        ("short", "one score per candidate"),
    ],
)
def test_faulty_scorers_are_caught(fault: str, promise: str) -> None:
    with pytest.raises(AssertionError, match=promise):
        check_scorer(Length(fault))


def texts(prompt: Prompt, candidate: Candidate) -> float:
    return len(candidate.text)


@pytest.mark.parametrize(
    "scorer",
    [
        Length(),
        LogProb(),
        LogProb(reduce="sum"),
        SelfCertainty(),
        FunctionScorer(texts),
        LLMJudge(),
        RewardModelScorer(),
        ProcessRewardScorer(reduce="prod"),
    ],
    ids=to_text,
)
def test_good_scorers_pass(scorer: Scorer) -> None:
    check_scorer(scorer)
    check_scorer(scorer, prompt=Prompt(token_ids=(1, 2)))
