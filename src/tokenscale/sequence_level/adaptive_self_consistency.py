"""Adaptive-Consistency: a vote that ends as soon as its leader is probably the majority."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache

from tokenscale.core.data import Ask, Candidate
from tokenscale.core.errors import ArgumentError, at_least, finite
from tokenscale.core.stage import Kind
from tokenscale.core.strategy import Asks, SequenceStrategy
from tokenscale.sequence_level.voting import answered, check_kind, grouped, vote


@dataclass(frozen=True)
class AdaptiveSelfConsistency(SequenceStrategy):
    """Majority vote that asks for candidates until its leader is the majority with probability `confidence`.

    With a and b votes for the two leading answers, the share p of the first among the two has the posterior
    Beta(a + 1, b + 1) under a uniform prior, and sampling stops where P(p > 1/2) >= confidence: at 0.95
    after four equal answers. `min_k` candidates are drawn at least, `max_k` at most; those without an answer
    count as drawn and as no vote. Votes, ties and the result are as for SelfConsistency(max_k), whose first
    candidates these are.

    Candidates are asked for in rounds. A round is as long as the vote cannot end before its last one, so
    none is paid for that a vote in single steps would not have drawn. `batch` is the least length of a round:
    fewer rounds, but more candidates, for the vote can only end behind a round. All that are drawn vote.

    The promise holds for its prior: of two answers with p uniform, stopped votes name the likelier one in
    at least `confidence` of the problems. Near p = 1/2 they do not, and no stopped vote can. More than two
    answers are judged by the two that lead. Use it as SelfConsistency, where most problems are easy.

    Costs as many continuations as it draws, at most `max_k`. Raises ArgumentError and UnknownNameError.

    Source: Aggarwal et al., arXiv 2305.11860 (the Beta criterion).
    """

    kind = Kind.CHOOSING
    reads_text = True

    max_k: int
    confidence: float = 0.95
    min_k: int = 1
    batch: int = 1
    answers: str = "number"

    def __post_init__(self) -> None:
        name = "AdaptiveSelfConsistency"
        for field in ("max_k", "min_k", "batch"):
            at_least(name, field, getattr(self, field), 1)
        if self.min_k > self.max_k:
            message = f"{name}(min_k={self.min_k}, max_k={self.max_k}): min_k is above max_k"
            raise ArgumentError(message, f"write min_k={self.max_k}, or less")
        if not 0.5 < finite(name, "confidence", self.confidence, 0.95) < 1:
            message = f"{name}(confidence={self.confidence!r}): confidence must be above 0.5 and below 1"
            raise ArgumentError(message, "write confidence=0.95")
        object.__setattr__(self, "confidence", float(self.confidence))
        check_kind(name, self.answers)

    @property
    def in_rounds(self) -> bool:
        return True

    def solve(self, ask: Ask) -> Asks:
        members: list[Candidate] = []
        drawn = 0
        while wanted := self.next_round(drawn, map(len, grouped(members, self.answers))):
            [found] = yield [replace(ask, k=wanted, first=drawn)]
            members += answered(found, self.answers)
            drawn += wanted
        return [vote(members, self.answers, wanted=drawn)]

    def next_round(self, drawn: int, votes: Iterable[int]) -> int:
        """How many candidates to ask for next, after `drawn` with these votes per answer; 0 to stop."""
        first, second = [*sorted(votes, reverse=True), 0, 0][:2]
        needed = max(self._needed(first, second, self.max_k - drawn), self.min_k - drawn)
        return min(max(needed, self.batch), self.max_k - drawn) if needed > 0 else 0

    def _needed(self, first: int, second: int, left: int) -> int:
        """How many more votes the leader needs until it could be enough, at most `left`."""
        return next((m for m in range(left) if majority(first + m, second) >= self.confidence), left)


@cache
def majority(first: int, second: int) -> float:
    """P(p > 1/2) for p ~ Beta(first + 1, second + 1), exactly rounded.

    It is P(Binomial(n, 1/2) <= first) with n = first + second + 1. Costs n binomial coefficients.
    """
    n = first + second + 1
    ways = sum(math.comb(n, i) for i in range(first + 1))
    return ways / (1 << n)
