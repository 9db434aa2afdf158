"""The suite for decoders catches planted faults, each by the promise it breaks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from tests.beams import Beams
from tokenscale.core.strategy import Choice
from tokenscale.testing import check_decoder
from tokenscale.token_level.decoders import Greedy


@dataclass(frozen=True)
class FaultyDecoder(Greedy):
    """The most likely token, with something wrong."""

    fault: str

    def choose(self, log_probs: Any, scores: Any, uniforms: Any, parts: Any = (0,), endings: int = 1) -> Choice:
        choice = super().choose(log_probs, scores, uniforms)
        if self.fault == "last of batch":
            return replace(choice, tokens=choice.tokens[-1:].expand_as(choice.tokens))
        if self.fault == "impossible":
            return replace(choice, tokens=log_probs.argmin(-1))
        if self.fault == "negative margin":
            return replace(choice, margin=-choice.margin - 1)
        if self.fault == "in place":
            log_probs.sub_(1.0)
            return choice
        return replace(choice, parents=choice.parents + 1)


@pytest.mark.parametrize(
    ("fault", "promise"),
    [
        ("last of batch", "possible|other groups"),
        ("impossible", "no impossible token is chosen"),
        ("negative margin", "one margin per group, not negative"),
        ("in place", "nothing is changed in place"),
        ("parents", "parents are beams of the group"),
    ],
)
def test_faulty_decoders_are_caught(fault: str, promise: str) -> None:
    with pytest.raises(AssertionError, match=promise):
        check_decoder(FaultyDecoder(fault))


def test_a_decoder_that_hides_its_chance_is_caught() -> None:
    @dataclass(frozen=True)
    class Claims(Greedy):
        """Says that it is random."""

        random = True

    with pytest.raises(AssertionError, match="`random` says whether the choice depends on the uniform number"):
        check_decoder(Claims())


def test_beam_searches_can_conform() -> None:
    check_decoder(Beams(3), examples=30)
