"""The suite for proposers catches planted faults, each by the promise it breaks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from tokenscale.models.toy import ToyModel
from tokenscale.testing import (
    check_proposer,
)
from tokenscale.token_level.plain import Plain, PlainProposals
from tokenscale.token_level.roe import RoE, RoEProposals


class FaultyProposals(PlainProposals):
    """Plain proposals that do not keep their sequences apart."""

    def propose(self, tokens: Any) -> Any:
        rows, step = super().propose(tokens)
        return replace(rows, logits=rows.logits + 1e-3 * (len(tokens) - 1)), step


class MixedUp(RoEProposals):
    """RoE that forgets to move its noise along with its sequences."""

    def select(self, index: Any) -> MixedUp:
        caches, readers = [self._cached[i] for i in index], (self._readers * 2)[: len(index)]
        return MixedUp(self._lm, self._tau, self._state.select(index), caches, readers)

    def join(self, other: Any) -> MixedUp:
        state = self._state.join(other._state)
        return MixedUp(self._lm, self._tau, state, self._cached + other._cached, self._readers + other._readers)


def test_faulty_proposers_are_caught() -> None:
    @dataclass(frozen=True)
    class Batched(Plain):
        """Rows that depend on the batch."""

        def start(self, lm: Any, prompts: Any, streams: Any) -> FaultyProposals:
            started = super().start(lm, prompts, streams)
            return FaultyProposals(lm, started._state, started._cached)

    @dataclass(frozen=True)
    class Shuffled(RoE):
        """Noise that stays where it was."""

        def start(self, lm: Any, prompts: Any, streams: Any) -> MixedUp:
            started = super().start(lm, prompts, streams)
            return MixedUp(lm, started._tau, started._state, started._cached, started._readers)

    @dataclass(frozen=True)
    class Secretive(RoE):
        """Says that it is not random."""

        random = False

        def start(self, lm: Any, prompts: Any, streams: Any) -> Any:
            return RoE(self.n, self.tau).start(lm, prompts, streams)

    lm = ToyModel()
    with pytest.raises(AssertionError, match="rows do not depend on batch and order"):
        check_proposer(Batched(), lm)
    with pytest.raises(AssertionError, match="joined, selected and forked sequences go on as if alone"):
        check_proposer(Shuffled(4, 1.0), lm)
    with pytest.raises(AssertionError, match=r"`random` \(False\) says whether rows depend on the stream"):
        check_proposer(Secretive(4, 1.0), lm)
