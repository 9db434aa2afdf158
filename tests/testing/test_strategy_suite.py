"""The suite for sequence strategies catches planted faults, each by the promise it breaks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from tokenscale.core.data import Ask, Candidate
from tokenscale.core.noise import Stream
from tokenscale.core.strategy import Asks, Kind, SequenceStrategy
from tokenscale.testing import check_sequence_strategy


@dataclass(frozen=True)
class Best(SequenceStrategy):
    """The most likely of three, with something wrong."""

    fault: str = ""
    kind = Kind.CHOOSING

    def solve(self, ask: Ask) -> Asks:
        asks = [replace(ask, stream=ask.stream.child(i)) for i in range(3)]
        if self.fault == "equal streams":
            asks = [ask] * 3
        if self.fault == "own streams":
            asks = [replace(ask, stream=Stream((i,))) for i in range(3)]
        answers = yield (tuple(asks) if self.fault == "tuple" else asks)  # type: ignore[misc]
        if self.fault == "memory":
            SEEN.append(answers[0][0])
            return SEEN[-2:-1] or SEEN[-1:]
        if self.fault == "endless":
            while True:
                yield []
        candidates = [c for answer in answers for c in answer]
        best = max(candidates, key=lambda c: c.log_prob)
        return candidates if self.fault == "all" else [best]


SEEN: list[Candidate] = []


@pytest.mark.parametrize(
    ("fault", "promise"),
    [
        ("equal streams", "no two copies draw the same numbers"),
        ("own streams", "streams extend the ask's stream"),
        ("tuple", "it yields lists of asks"),
        ("memory", "the same twice|problems do not know of each other"),
        ("endless", "it ends within 1000 rounds"),
        ("all", "as many candidates as were asked for"),
    ],
)
def test_faulty_strategies_are_caught(fault: str, promise: str) -> None:
    with pytest.raises(AssertionError, match=promise):
        check_sequence_strategy(Best(fault))


def test_a_good_strategy_passes() -> None:
    check_sequence_strategy(Best())
