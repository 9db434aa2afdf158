"""Early-stopping self-consistency: a vote that ends with the first window of candidates that all agree."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tokenscale.core.data import Ask, Candidate
from tokenscale.core.errors import ArgumentError, at_least
from tokenscale.core.stage import Kind
from tokenscale.core.strategy import Asks, SequenceStrategy
from tokenscale.sequence_level.voting import answered, check_kind, grouped, vote


@dataclass(frozen=True)
class EarlyStoppingSelfConsistency(SequenceStrategy):
    """Majority vote that draws windows of candidates until all answers of one window are equal.

    Windows of `window` candidates follow each other without overlap, up to `max_k` candidates (the last
    window may be shorter). The vote is over all that were drawn; votes, ties and the result are as for
    SelfConsistency(max_k), whose first candidates these are. A window with a candidate without an answer
    does not agree.

    Use it as SelfConsistency, where most problems are easy: a window is one batch, so it takes fewer rounds
    than AdaptiveSelfConsistency, and draws `window` candidates at least. Where the likeliest answer has
    probability p, one window stops the vote with a probability of at least p^window.

    Costs as many continuations as it draws. Raises ArgumentError for window < 1 or max_k < window, and
    UnknownNameError.

    Source: Li et al., arXiv 2401.10480.
    """

    kind = Kind.CHOOSING
    reads_text = True

    window: int = 5
    max_k: int = 40
    answers: str = "number"

    def __post_init__(self) -> None:
        name = "EarlyStoppingSelfConsistency"
        at_least(name, "window", self.window, 1)
        at_least(name, "max_k", self.max_k, 1)
        if self.max_k < self.window:
            message = f"{name}(window={self.window}, max_k={self.max_k}): max_k is below window"
            raise ArgumentError(message, f"write max_k={self.window}, or more")
        check_kind(name, self.answers)

    @property
    def in_rounds(self) -> bool:
        return True

    def solve(self, ask: Ask) -> Asks:
        members: list[Candidate] = []
        for first in range(0, self.max_k, self.window):
            k = min(self.window, self.max_k - first)
            [found] = yield [replace(ask, k=k, first=first)]
            window = answered(found, self.answers)
            members += window
            if max(map(len, grouped(window, self.answers)), default=0) == len(window):
                break
        return [vote(members, self.answers, wanted=first + k)]
