"""What the tests of the core share: a tiny toy model, a beam search, and a way to run asks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.beams import Beams
from tokenscale.core.backend import Completion
from tokenscale.core.data import Ask
from tokenscale.core.decode import LocalBackend
from tokenscale.core.strategy import Decoder, TokenProposer
from tokenscale.models.toy import ToyModel
from tokenscale.token_level.decoders import Greedy
from tokenscale.token_level.plain import Plain


@pytest.fixture(scope="session")
def lm() -> ToyModel:
    """Four tokens (the end, a, b, 1), short contexts: all continuations can be enumerated."""
    return ToyModel(("a", "b", "1"), spelling="", moe_layers=3, experts=4, context_length=24, sharpness=2.0)


@pytest.fixture(scope="session")
def beams() -> type[Beams]:
    return Beams


Run = Callable[..., list[Completion]]


@pytest.fixture(scope="session")
def run(lm: ToyModel) -> Run:
    """Completions in the order of the asks."""

    def run_asks(
        asks: Sequence[Ask],
        decoder: Decoder | None = None,
        proposer: TokenProposer | None = None,
        *,
        model: ToyModel = lm,
        batch_size: int = 16,
        **options: Any,
    ) -> list[Completion]:
        proposer = proposer or Plain()
        backend = LocalBackend(
            model, proposer, proposer.default_aggregator, decoder or Greedy(), batch_size=batch_size, **options
        )
        tickets = [backend.submit(ask) for ask in asks]
        done: dict[int, Completion] = {}
        while completions := backend.advance():
            done |= {c.ticket: c for c in completions}
        return [done[t] for t in tickets]

    return run_asks
