"""The suite for backends catches planted faults, each by the promise it breaks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tokenscale.core.backend import Completion
from tokenscale.core.data import Ask
from tokenscale.core.decode import LocalBackend
from tokenscale.core.noise import Stream
from tokenscale.core.prompt import Prompt
from tokenscale.models.toy import ToyModel
from tokenscale.testing import check_backend
from tokenscale.token_level.aggregators import MeanProbability
from tokenscale.token_level.decoders import Sample
from tokenscale.token_level.plain import Plain

PROMPTS = [Prompt(token_ids=(1, 2, 3)), Prompt(token_ids=(4, 5))]


class FaultyBackend(LocalBackend):
    """The decode loop with something wrong."""

    fault = ""

    def submit(self, ask: Ask) -> int:
        if self.fault == "streams":
            ask = replace(ask, stream=Stream((self._tickets,)))
        if self.fault == "schedule":
            ask = replace(ask, max_new_tokens=min(ask.max_new_tokens, 1 + len(self._asks)))
        return super().submit(ask)

    def cancel(self, ticket: int) -> None:
        if self.fault != "cancel":
            super().cancel(ticket)

    def advance(self) -> list[Completion]:
        done = super().advance()
        return done[:-1] if self.fault == "lost" else done


@pytest.mark.parametrize(
    ("fault", "promise"),
    [
        ("streams", "copy j has the ask's stream's child j"),
        ("schedule", "changes no token"),
        ("cancel", "a cancelled ask never completes"),
        ("lost", "advance works until an ask is complete"),
    ],
)
def test_faulty_backends_are_caught(fault: str, promise: str) -> None:
    lm = ToyModel(moe_layers=1)

    def make() -> FaultyBackend:
        backend = FaultyBackend(lm, Plain(), MeanProbability(), Sample(1.0), batch_size=3)
        backend.fault = fault
        return backend

    with pytest.raises(AssertionError, match=promise):
        check_backend(make, PROMPTS)
