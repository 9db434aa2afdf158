"""Scores of a reward model: of the whole answer, or of its steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from tokenscale.core.data import Ask, Candidate
from tokenscale.core.errors import ArgumentError, unknown
from tokenscale.core.reward import Grade, RewardModel
from tokenscale.core.scorer import Requests, Scorer

Scored = Generator[list[Ask | Grade], list[list[Candidate]], list[tuple[float, ...]]]


@dataclass(frozen=True)
class RewardModelScorer(Scorer):
    """The score that a reward model gives to the prompt with the whole answer behind it.

    `model` is "demo-verifier", a folder or a hub id of a transformers sequence classifier, or a RewardModel.
    The score is the classifier's output, a log-odds, and may be negative. The prompt is the one that the
    strategy around the scorer was asked, without what prompting strategies inside it add.

    Costs one forward of every candidate's tokens with its prompt's, in the reward model.

    Source: Cobbe et al., arXiv 2110.14168, section 4.2 (a verifier's score of a whole solution).
    """

    reads_text = True
    signed = True

    model: str | RewardModel = "demo-verifier"

    def __post_init__(self) -> None:
        _check_model(self.model, type(self).__name__)

    def grade(self, ask: Ask, candidates: Sequence[Candidate]) -> Requests:
        scored = yield from _scored(self.model, ask, candidates, [(c.text,) for c in candidates])
        return [score for (score,) in scored]


@dataclass(frozen=True)
class ProcessRewardScorer(Scorer):
    """What a process reward model's scores of an answer's steps come to.

    Step i ends behind the i-th `steps` (a text) in the answer, and the last with the answer. Its score s_i is
    that of everything up to there, and p_i = 1 / (1 + exp(-s_i)) the chance that this is right. `reduce` is
    "last" (p of the whole answer), "min" (of the worst beginning), "prod" (the product of all p_i) or "mean";
    so scores lie in [0, 1]. Under "prod" more steps mean a lower score. `model` is as for RewardModelScorer.

    Costs one forward of every candidate where the model is causal, else one for every step.

    Source: Lightman et al., arXiv 2305.20050, section 2.6 and appendix F (product and minimum); Snell et al.,
    arXiv 2408.03314, appendix E (last).
    """

    reads_text = True

    model: str | RewardModel = "demo-verifier"
    reduce: str = "last"
    steps: str = "\n"

    def __post_init__(self) -> None:
        _check_model(self.model, type(self).__name__)
        if not isinstance(self.reduce, str) or self.reduce not in REDUCTIONS:
            raise unknown("reduction of step scores", str(self.reduce), REDUCTIONS, "ProcessRewardScorer")
        if not isinstance(self.steps, str) or not self.steps:
            message = f"ProcessRewardScorer(steps={self.steps!r}): steps must be the text that ends a step"
            raise ArgumentError(message, 'write steps="\\n"')

    def grade(self, ask: Ask, candidates: Sequence[Candidate]) -> Requests:
        scored = yield from _scored(self.model, ask, candidates, [split_steps(c.text, self.steps) for c in candidates])
        return [REDUCTIONS[self.reduce]([_chance(score) for score in scores]) for scores in scored]


REDUCTIONS: dict[str, Callable[[Sequence[float]], float]] = {
    "last": lambda chances: chances[-1],
    "min": min,
    "prod": math.prod,
    "mean": lambda chances: math.fsum(chances) / len(chances),
}


def split_steps(text: str, separator: str) -> tuple[str, ...]:
    """The steps of a text, each with the separators at its end; one step where there is no separator.

    Steps of white space and separators alone belong to the step before them (at the beginning, behind them).
    """
    pieces = text.split(separator)
    steps = [""]
    for piece in [*(piece + separator for piece in pieces[:-1]), pieces[-1]]:
        if piece.replace(separator, "").strip() and steps[-1].replace(separator, "").strip():
            steps.append(piece)
        else:
            steps[-1] += piece
    return tuple(steps)


def _scored(
    model: str | RewardModel, ask: Ask, candidates: Sequence[Candidate], steps: Sequence[tuple[str, ...]]
) -> Scored:
    """The scores of every candidate's steps, from one request."""
    if not candidates:
        return []
    [graded] = yield [Grade(ask.prompt, tuple(candidates), tuple(steps), model)]
    return [candidate.step_scores for candidate in graded]


def _chance(score: float) -> float:
    """1 / (1 + exp(-score)), without overflow."""
    return 1 / (1 + math.exp(-score)) if score >= 0 else math.exp(score) / (1 + math.exp(score))


def _check_model(model: object, owner: str) -> None:
    if not isinstance(model, str | RewardModel) or not model:
        message = f"{owner}(model={model!r:.80}): model must name a reward model, or be one"
        raise ArgumentError(message, f'write {owner}(model="demo-verifier")')
