"""The suite for decoders catches planted faults, each by the promise it breaks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from tests.beams import Beams
from tokenscale.core.strategy import Choice, Decoder
from tokenscale.sequence_level.beam_search import BeamSearch
from tokenscale.sequence_level.diverse_beam_search import DiverseBeamSearch
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


@pytest.mark.parametrize(
    "decoder",
    [Beams(3), BeamSearch(1), BeamSearch(4, 0.0, 2, "never"), DiverseBeamSearch(4, 2), DiverseBeamSearch(3, 3)],
)
def test_beam_searches_conform(decoder: Decoder) -> None:
    check_decoder(decoder, examples=30)


@dataclass(frozen=True)
class FaultySearch(Decoder):
    """A diverse beam search of two parts, with something wrong."""

    fault: str
    width: int = 4
    parts: int = 2
    num_return: int = 1

    @property
    def search(self) -> DiverseBeamSearch:
        return DiverseBeamSearch(4, 2)

    def rank(self, score: float, length: int) -> float:
        return -score if self.fault == "rank" else score

    def settled(self, finished: Any, running: float, length: int, limit: int) -> bool:
        return self.fault == "settled"

    def choose(self, log_probs: Any, scores: Any, uniforms: Any, parts: Any = (0,), endings: int = 1) -> Choice:
        choice = self.search.choose(log_probs, scores, uniforms, parts, endings)
        if self.fault == "uneven":
            return Choice(choice.parents[:, 1:], choice.tokens[:, 1:], choice.margin, choice.scores[:, 1:])
        if self.fault == "order":
            return Choice(choice.parents.flip(-1), choice.tokens.flip(-1), choice.margin, choice.scores.flip(-1))
        if self.fault == "owner":
            return replace(choice, **{f: getattr(choice, f).roll(4, -1) for f in ("parents", "tokens", "scores")})
        return replace(choice, **{f: getattr(choice, f)[:, [0, 0, 4, 5]] for f in ("parents", "tokens", "scores")})


@pytest.mark.parametrize(
    ("fault", "promise"),
    [
        ("rank", "of texts of one length, the one of the higher score ranks above"),
        ("settled", "a part goes on while no text is finished"),
        ("uneven", "every part has as many candidates"),
        ("order", "best first|continue its own beams"),
        ("owner", "a part's candidates continue its own beams"),
        ("twice", "no beam is chosen twice|best first"),
    ],
)
def test_faulty_searches_are_caught(fault: str, promise: str) -> None:
    with pytest.raises(AssertionError, match=promise):
        check_decoder(FaultySearch(fault))


def test_more_texts_than_beams_are_caught() -> None:
    with pytest.raises(AssertionError, match="num_return is at least 1, and at most width"):
        check_decoder(FaultySearch("", num_return=5))
