"""The suite for proposers catches planted faults, each by the promise it breaks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from tokenscale.core.model import ROUTING_NOISE
from tokenscale.core.starting import start_all
from tokenscale.models.toy import ToyModel
from tokenscale.testing import check_proposer
from tokenscale.token_level.expert_sample import ExpertSample
from tokenscale.token_level.one_cache import OneCacheProposals, SameRows
from tokenscale.token_level.plain import Plain
from tokenscale.token_level.roe import RoE, Samples

LM = ToyModel()


class Faulty(OneCacheProposals):
    """Proposals that stay faulty when they are selected and joined."""

    def propose(self, tokens: Any) -> Any:
        return self.spoil(*super().propose(tokens))

    def spoil(self, rows: Any, works: Any) -> Any:
        return rows, works

    def again(self, other: OneCacheProposals, readers: Any = None) -> Any:
        readers = other._readers if readers is None else readers
        return type(self)(other._lm, other._rule, other._state, other._cached, readers)

    def select(self, index: Any) -> Any:
        return self.again(super().select(index))

    def join(self, other: Any) -> Any:
        return self.again(super().join(other))


class Batched(Faulty):
    """Rows that depend on the batch."""

    def spoil(self, rows: Any, works: Any) -> Any:
        return replace(rows, logits=rows.logits + 1e-3 * (len(rows.logits) - 1)), works


class Shuffled(Faulty):
    """Noise that stays where it was."""

    def select(self, index: Any) -> Any:
        return self.again(super().select(index), (self._readers * 2)[: len(index)])


class Cheap(Faulty):
    """A bill that forgets all rows but one."""

    def spoil(self, rows: Any, works: Any) -> Any:
        return rows, tuple(replace(w, heads=torch.ones_like(w.heads)) for w in works)


class BilledByBatch(Faulty):
    """A bill in which the others of the batch appear."""

    def spoil(self, rows: Any, works: Any) -> Any:
        return rows, tuple(replace(w, rows=w.rows + len(w.rows)) for w in works)


class Doubled(Faulty):
    """A work too many."""

    def spoil(self, rows: Any, works: Any) -> Any:
        return rows, works * 2


class Overwritten(Faulty):
    """Proposals that change the model."""

    def propose(self, tokens: Any) -> Any:
        self._lm.sharpness *= 1 + 1e-6  # type: ignore[attr-defined]
        return super().propose(tokens)


@dataclass(frozen=True, repr=False)
class Broken(RoE):
    """RoE whose proposals are of the class `kind`."""

    kind_: type[Faulty] = Faulty

    def start(self, lm: Any, prompts: Any, streams: Any) -> Faulty:
        noise = self.routing_noise(lm)
        readers = [noise.reader(stream) for stream in streams]
        return self.kind_(lm, Samples(noise), *start_all(lm, prompts), readers)


@dataclass(frozen=True, repr=False)
class Secretive(RoE):
    """Says that it is not random."""

    random = False

    def start(self, lm: Any, prompts: Any, streams: Any) -> Any:
        return RoE(self.n, self.tau).start(lm, prompts, streams)


@dataclass(frozen=True)
class Unclean(ExpertSample):
    """Says that its one noisy row is the model itself."""

    clean_row = True


@dataclass(frozen=True)
class Careless(Plain):
    """Needs a capability and does not look for it."""

    needs = frozenset({ROUTING_NOISE})

    def start(self, lm: Any, prompts: Any, streams: Any) -> Any:
        return OneCacheProposals(lm, SameRows(), *start_all(lm, prompts))


def test_a_proposer_without_fault_passes() -> None:
    check_proposer(Broken(4, 1.0), LM)


FAULTS: list[tuple[Callable[[], Any], str]] = [
    (lambda: Broken(4, 1.0, kind_=Batched), "rows do not depend on batch and order"),
    (lambda: Broken(4, 1.0, kind_=Shuffled), "joined, selected and forked sequences go on as if alone"),
    (lambda: Broken(4, 1.0, kind_=Cheap), "every valid row's logits are billed"),
    (lambda: Broken(4, 1.0, kind_=BilledByBatch), "rows do not depend on batch and order: what is billed"),
    (lambda: Broken(4, 1.0, kind_=Doubled), "one work per cache"),
    (lambda: Secretive(4, 1.0), r"`random` \(False\) says whether rows depend on the stream"),
    (lambda: Unclean(keep_head=1), "the clean row is the model's own distribution"),
    (lambda: Careless(), "check refuses a model that lacks routing_noise"),
]


@pytest.mark.parametrize(("proposer", "promise"), FAULTS, ids=[promise for _, promise in FAULTS])
def test_faulty_proposers_are_caught(proposer: Callable[[], Any], promise: str) -> None:
    with pytest.raises(AssertionError, match=promise):
        check_proposer(proposer(), LM)


def test_a_model_that_is_changed_is_caught() -> None:
    # What differs from run to run stays within atol, and so is not noticed before the end.
    with pytest.raises(AssertionError, match="the model is as it was"):
        check_proposer(Broken(2, 1.0, kind_=Overwritten), ToyModel(), atol=1e-2)
