"""The suite for sequence strategies catches planted faults, each by the promise it breaks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from tokenscale.core.data import Ask, Candidate
from tokenscale.core.noise import Stream
from tokenscale.core.stage import Kind
from tokenscale.core.strategy import Asks, SequenceStrategy
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
        if self.fault == "nothing":
            return []
        if self.fault == "none":
            return None  # type: ignore[return-value]
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
        ("tuple", "Best.solve yields lists of asks"),
        ("memory", "the same twice|problems do not know of each other"),
        ("endless", "Best.solve ends within 1000 rounds"),
        ("all", r"Best.solve returns a list of as many candidates as were asked for \(1\), not 3"),
        ("nothing", r"Best.solve returns .* asked for \(1\), not 0"),
        ("none", r"Best.solve returns .* asked for \(1\), not None"),
    ],
)
def test_faulty_strategies_are_caught(fault: str, promise: str) -> None:
    with pytest.raises(AssertionError, match=promise):
        check_sequence_strategy(Best(fault))


@dataclass(frozen=True)
class Plain(SequenceStrategy):
    """Its `solve` is no generator, or it has no kind."""

    def solve(self, ask: Ask) -> Asks:
        return []  # type: ignore[return-value]


@dataclass(frozen=True)
class PlainChoice(Plain):
    kind = Kind.CHOOSING


def test_what_is_no_generator_or_has_no_kind_is_named() -> None:
    with pytest.raises(AssertionError, match=r"PlainChoice.solve is a generator"):
        check_sequence_strategy(PlainChoice())
    with pytest.raises(AssertionError, match=r"Plain has a kind, such as `kind = Kind.CHOOSING`"):
        check_sequence_strategy(Plain())


def test_a_good_strategy_passes() -> None:
    check_sequence_strategy(Best())
