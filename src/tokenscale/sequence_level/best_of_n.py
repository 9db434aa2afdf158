"""Best-of-n: the candidate, or the answer, that a scorer likes best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from tokenscale.core.data import Ask, Candidate
from tokenscale.core.errors import ArgumentError, PipelineError, at_least
from tokenscale.core.scorer import Scorer
from tokenscale.core.stage import Kind
from tokenscale.core.strategy import Asks, SequenceStrategy
from tokenscale.sequence_level.scorers.log_prob import LogProb
from tokenscale.sequence_level.scorers.scored import scored
from tokenscale.sequence_level.voting import answered, check_kind, shortfall, unanswered, vote


@dataclass(frozen=True)
class BestOfN(SequenceStrategy):
    """The one of n candidates that a scorer likes best.

    `scorer` is one of `LogProb`, `SelfCertainty`, `RewardModelScorer`, `ProcessRewardScorer`, `LLMJudge` and
    `FunctionScorer`. Of equal scores the first candidate wins. `answers` says what is looked for (see
    `sequence_level.answers`): a candidate without an answer never wins against one with an answer. None
    looks for nothing, for open-ended output. The result's `members` are all n, their `score` filled in.

    Use it with a scorer that is better than the majority; the default needs nothing, and is a weak one.
    Costs n continuations of one shared prompt, and what the scorer costs. Raises ArgumentError for n < 1 and
    UnknownNameError; PipelineError in the run for a scorer that gives NaN.

    Source: Cobbe et al., arXiv 2110.14168, section 4.2 (a verifier); the default: Adiwardana et al., arXiv
    2001.09977 (sample and rank), normalised by length.
    """

    kind = Kind.CHOOSING
    reads_text = True

    n: int
    scorer: Scorer = field(default_factory=LogProb)
    answers: str | None = "number"

    def __post_init__(self) -> None:
        at_least("BestOfN", "n", self.n, 1)
        _check_scorer("BestOfN", self.scorer)
        if self.answers is not None:
            check_kind("BestOfN", self.answers)

    @property
    def signals(self) -> frozenset[str]:
        return self.scorer.signals

    def solve(self, ask: Ask) -> Asks:
        [candidates] = yield [replace(ask, k=self.n)]
        members = yield from scored(self.scorer, ask, candidates)
        notes = (*self.scorer.notes(_scores(members)), *shortfall(members, self.n))
        if self.answers is not None:
            members = answered(members, self.answers)
            if all(c.answer is None for c in members):
                notes = (*unanswered(members), *notes)
        winner = max(members, key=lambda c: (self.answers is None or c.answer is not None, c.score))
        return [replace(winner, members=tuple(members), notes=(*winner.notes, *notes))]


@dataclass(frozen=True)
class WeightedBestOfN(SequenceStrategy):
    """The answer whose n candidates have the highest sum of scores.

    A vote whose weights are a scorer's scores, which must be 0 or more: a sum of scores below 0 would punish
    answers for being frequent. Ties and the result are as for SelfConsistency; `members` have their `score`.
    Candidates without an answer do not vote unless none has one.

    Use it where answers can be compared and the scorer's scores are like chances, as ProcessRewardScorer's
    are. Costs as BestOfN. Raises ArgumentError for n < 1 and for scorers whose scores are below 0 (LogProb,
    RewardModelScorer), and UnknownNameError; PipelineError in the run for a score that is NaN, infinite or
    below 0.

    Source: Li et al., arXiv 2206.02336, section 3.2 (the voting verifier); as weighted best-of-n in Snell et
    al., arXiv 2408.03314.
    """

    kind = Kind.CHOOSING
    reads_text = True

    n: int
    scorer: Scorer
    answers: str = "number"

    def __post_init__(self) -> None:
        at_least("WeightedBestOfN", "n", self.n, 1)
        _check_scorer("WeightedBestOfN", self.scorer)
        check_kind("WeightedBestOfN", self.answers)
        if self.scorer.signed:
            message = f"WeightedBestOfN adds scores up, and those of {self.scorer!r:.200} may be below 0"
            hint = 'use ProcessRewardScorer, whose scores are chances, or SelfConsistency(k=8, weight="logprob")'
            raise ArgumentError(message, hint)

    @property
    def signals(self) -> frozenset[str]:
        return self.scorer.signals

    def solve(self, ask: Ask) -> Asks:
        [candidates] = yield [replace(ask, k=self.n)]
        members = yield from scored(self.scorer, ask, candidates)
        scores = _scores(members)
        for number, score in enumerate(scores, 1):
            if not 0 <= score < float("inf"):
                message = f"{self.scorer!r:.200} scored candidate {number} of {len(members)} as {score}"
                raise PipelineError(message, "WeightedBestOfN adds scores up: give finite ones of 0 or more")
        winner = vote(answered(members, self.answers), self.answers, scores, self.n)
        return [replace(winner, notes=(*winner.notes, *self.scorer.notes(scores)))]


def _scores(members: Sequence[Candidate]) -> list[float]:
    return [c.score for c in members if c.score is not None]


def _check_scorer(owner: str, scorer: object) -> None:
    if not isinstance(scorer, Scorer):
        message = f"{owner}(scorer={scorer!r:.80}): scorer must be a scorer"
        raise ArgumentError(message, f"write {owner}(n=8, scorer=SelfCertainty()), or FunctionScorer(function)")
