"""Self-consistency: several answers, and the one that most of them agree on."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from tokenscale.core.data import Ask, Candidate
from tokenscale.core.errors import at_least, unknown
from tokenscale.core.stage import Kind
from tokenscale.core.strategy import Asks, SequenceStrategy
from tokenscale.sequence_level.traces import mean_log_prob, mean_signal
from tokenscale.sequence_level.voting import answered, check_kind, vote

WEIGHTS = ("logprob", "confidence")


@dataclass(frozen=True)
class SelfConsistency(SequenceStrategy):
    """Majority vote over the answers of k candidates.

    `weight` says what a candidate's vote weighs: None 1, so that the majority wins; "logprob" its
    length-normalised probability exp(mean log-probability of its tokens); "confidence" the mean of its
    tokens' confidence (see `core.signals`). One without an answer does not vote unless none has one. Ties
    go to the higher log-sum-exp of the group's total log-probabilities, then to the answer seen first. The
    result is the most likely candidate of the winning group, with `members` (all k, their answers filled
    in) and `votes`, the weight of each answer. `answers` says what is looked for: "number", "letter" or
    another kind of `sequence_level.answers`; an answer that a strategy inside has found is kept. Candidate
    j draws from child j of the stream, so k = 5 are the first five of k = 10.

    Use it where answers can be compared; for open-ended text see UniversalSelfConsistency and BestOfN.
    Costs k continuations of one shared prompt. Raises ArgumentError for k < 1 and UnknownNameError.

    Source: Wang et al., arXiv 2203.11171, section 2 and table 1 (the unweighted sum; the normalised weighted
    sum, equation 1); trace confidence: Fu et al., arXiv 2508.15260, section 3.1.
    """

    kind = Kind.CHOOSING
    reads_text = True

    k: int
    answers: str = "number"
    weight: str | None = None

    def __post_init__(self) -> None:
        at_least("SelfConsistency", "k", self.k, 1)
        if self.weight is not None and self.weight not in WEIGHTS:
            raise unknown("weight", str(self.weight), WEIGHTS, "SelfConsistency")
        check_kind("SelfConsistency", self.answers)

    @property
    def signals(self) -> frozenset[str]:
        return frozenset({"confidence"} if self.weight == "confidence" else ())

    def solve(self, ask: Ask) -> Asks:
        [candidates] = yield [replace(ask, k=self.k)]
        voters = answered(candidates, self.answers)
        return [vote(voters, self.answers, [self._weight(c) for c in voters], self.k)]

    def _weight(self, candidate: Candidate) -> float:
        if self.weight == "logprob":
            return math.exp(mean_log_prob(candidate))
        if self.weight == "confidence":
            return mean_signal(candidate, "confidence", "SelfConsistency")
        return 1.0
