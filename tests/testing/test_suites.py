"""The conformance suites pass good parts and catch planted faults, each by the promise it breaks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, settings
from scipy.special import log_softmax, logsumexp

from tokenscale.core.backend import Completion
from tokenscale.core.data import Ask, Candidate, Prompt
from tokenscale.core.decode import LocalBackend
from tokenscale.core.model import PLAIN, RowPlan, State, Step
from tokenscale.core.noise import Stream
from tokenscale.core.strategy import Aggregator, Asks, Choice, Decoder, Kind, Rows, SequenceStrategy
from tokenscale.models.toy import ToyModel, ToyState
from tokenscale.testing import (
    INVARIANTS,
    check_aggregator,
    check_backend,
    check_decoder,
    check_language_model,
    check_proposer,
    check_sequence_strategy,
)
from tokenscale.token_level.aggregators import MeanProbability
from tokenscale.token_level.decoders import Greedy, Sample
from tokenscale.token_level.plain import Plain, PlainProposals
from tokenscale.token_level.roe import RoE, RoEProposals


@pytest.fixture(autouse=True)
def _no_shrinking() -> Iterator[None]:
    """The first counterexample will do; making it small takes most of the time."""
    usual = settings.get_current_profile_name()
    settings.register_profile("first counterexample", parent=settings(), phases=[Phase.generate])
    settings.load_profile("first counterexample")
    yield
    settings.load_profile(usual)


PROMPTS = [Prompt(token_ids=(1, 2, 3)), Prompt(token_ids=(4, 5))]


def mean(logits: np.ndarray) -> np.ndarray:
    return logsumexp(log_softmax(logits, -1), axis=0) - np.log(len(logits))


# Aggregators


@dataclass(frozen=True)
class Faulty(MeanProbability):
    """A mean with something wrong; `folds` off, so that only `aggregate` counts."""

    fault: str = ""
    folds = False

    def aggregate(self, rows: Rows) -> torch.Tensor:
        return FAULTS[self.fault](rows)


def good(rows: Rows) -> torch.Tensor:
    return MeanProbability().aggregate(rows)


def weighted(rows: Rows) -> torch.Tensor:
    """Row 0 counts twice."""
    doubled = Rows(torch.cat([rows.logits[:, :1], rows.logits], 1), torch.cat([rows.valid[:, :1], rows.valid], 1))
    return good(doubled)


def largest(rows: Rows) -> torch.Tensor:
    return rows.logits.float().masked_fill(~rows.valid[..., None], float("-inf")).amax(1).log_softmax(-1)


def in_place(rows: Rows) -> torch.Tensor:
    found = good(rows)
    rows.logits.sub_(rows.logits.amax(-1, keepdim=True))
    return found


def row_sums(rows: Rows) -> torch.Tensor:
    """Adds probabilities, and forgets to divide."""
    return good(rows) + rows.valid.sum(1, keepdim=True).log()


def raw_logits(rows: Rows) -> torch.Tensor:
    """The log-sum-exp of raw logits, which is no average of probabilities."""
    z = rows.logits.float().masked_fill(~rows.valid[..., None], float("-inf"))
    return z.logsumexp(1).log_softmax(-1)


def smoothed(rows: Rows) -> torch.Tensor:
    return (0.999 * good(rows).exp() + 0.001 / rows.logits.shape[-1]).log()


def sharpened(rows: Rows) -> torch.Tensor:
    return (good(rows) * (1 + 0.1 * (rows.valid.sum(1, keepdim=True) > 1))).log_softmax(-1)


def padding_too(rows: Rows) -> torch.Tensor:
    return good(Rows(rows.logits, torch.ones_like(rows.valid)))


FAULTS: dict[str, Callable[[Rows], torch.Tensor]] = {
    f.__name__: f for f in (weighted, largest, in_place, row_sums, raw_logits, smoothed, sharpened, padding_too)
}


@pytest.mark.parametrize(
    ("fault", "caught_by"),
    [
        ("weighted", {"permutation", "padding", "duplication", "oracle"}),
        ("largest", {"shift", "oracle", "lower bound", "upper bound"}),
        ("in_place", {"pure"}),
        ("row_sums", {"normalised", "equal rows", "upper bound", "duplication", "oracle"}),
        ("raw_logits", {"shift", "oracle"}),
        ("smoothed", {"one row", "equal rows", "impossible", "oracle", "upper bound", "lower bound"}),
        ("sharpened", {"equal rows", "duplication", "oracle", "upper bound", "lower bound"}),
        ("padding_too", {"padding", "oracle", "lower bound", "upper bound", "normalised", "impossible"}),
    ],
)
def test_faulty_aggregators_are_caught(fault: str, caught_by: set[str]) -> None:
    """Each invariant by itself, so that none hides behind another."""
    caught = {name for name in INVARIANTS if is_caught(fault, name)}
    assert caught & caught_by
    assert "oracle" in caught or fault == "in_place"


def is_caught(fault: str, name: str) -> bool:
    try:
        check_aggregator(Faulty(fault=fault), mean, without=set(INVARIANTS) - {name}, examples=8)
    except AssertionError as error:
        return f"Faulty breaks {name!r}" in str(error)
    return False


def test_a_wrong_fold_is_caught() -> None:
    @dataclass(frozen=True)
    class Forgetful(MeanProbability):
        """Its fold starts anew with every chunk."""

        def update(self, accumulator: Any, rows: Rows) -> Any:
            return super().update(self.init(*rows.logits.shape[::2]), rows)

    with pytest.raises(AssertionError, match="Forgetful breaks 'fold'"):
        check_aggregator(Forgetful(), mean)


def test_half_precision_sums_are_caught() -> None:
    @dataclass(frozen=True)
    class Half(MeanProbability):
        """Computes in the precision of its rows."""

        folds = False

        def aggregate(self, rows: Rows) -> torch.Tensor:
            probs = torch.softmax(rows.logits, -1).masked_fill(~rows.valid[..., None], 0)
            return (probs.sum(1) / rows.valid.sum(1, keepdim=True)).log().float()

    with pytest.raises(AssertionError, match="Half breaks 'half precision'"):
        check_aggregator(Half(), mean, without={"lower bound", "oracle"})


def test_the_names_of_invariants_are_checked() -> None:
    with pytest.raises(AssertionError, match="`without` names invariants: \\['symmetry'\\] are none of"):
        check_aggregator(MeanProbability(), mean, without={"symmetry"})


def test_a_stage_that_is_not_frozen_is_caught() -> None:
    class Loose(Aggregator):
        """No dataclass."""

        def aggregate(self, rows: Rows) -> torch.Tensor:
            return good(rows)

    with pytest.raises(AssertionError, match="Loose is a frozen dataclass"):
        check_aggregator(Loose(), mean)


# Decoders


@dataclass(frozen=True)
class FaultyDecoder(Greedy):
    """The most likely token, with something wrong."""

    fault: str

    def choose(self, log_probs: Any, scores: Any, uniforms: Any) -> Choice:
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
    @dataclass(frozen=True)
    class Beams(Decoder):
        """The w best of all."""

        w: int

        @property
        def width(self) -> int:
            return self.w

        def choose(self, log_probs: Any, scores: Any, uniforms: Any) -> Choice:
            best = (scores[..., None] + log_probs).flatten(1).topk(self.w)
            vocab = log_probs.shape[-1]
            return Choice(best.indices // vocab, best.indices % vocab, best.values[:, 0] - best.values[:, -1])

    check_decoder(Beams(3), examples=30)


# Language models


class FaultyModel(ToyModel):
    """The toy model with something wrong."""

    def __init__(self, fault: str) -> None:
        super().__init__(moe_layers=3)
        self.fault = fault
        if fault == "capability":
            self.shape = replace(self.shape, moe_layers=0)

    def step(self, state: State, tokens: torch.Tensor, plan: RowPlan = PLAIN) -> Step:
        assert isinstance(state, ToyState)
        if self.fault == "batch":
            mix_up(state)
        step = super().step(state, tokens, plan)
        if self.fault == "noisy cache" and plan.shift is not None:
            for s in state.sequences:
                s.past = s.past + 1e-3
        return STEP_FAULTS.get(self.fault, lambda step: step)(step)

    def prefill(self, prompts: Any) -> ToyState:
        state = super().prefill(prompts)
        if self.fault == "prefill":
            for s in state.sequences:
                s.past = s.past + 1e-3
        if self.fault == "prefill experts":
            for s in state.sequences:
                s.prefill_experts = s.prefill_experts * 0
        return state


def mix_up(state: ToyState) -> None:
    """Short sequences see the first token of the longest, as with padding on the wrong side."""
    longest = max(state.sequences, key=lambda s: len(s.past)).past
    for sequence in state.sequences:
        if len(sequence.past) < len(longest):
            sequence.past = np.concatenate([longest[:1], sequence.past])[: len(sequence.past)]


STEP_FAULTS: dict[str, Callable[[Step], Step]] = {
    "row 0": lambda step: step if step.changed is None else replace(step, logits=step.logits.flip(1)),
    "rows": lambda step: replace(step, logits=step.logits + 1e-3 * torch.arange(step.logits.shape[1])[:, None]),
    "no change": lambda step: step if step.changed is None else replace(step, changed=step.changed & False),
    "experts": lambda step: replace(step, experts=torch.ones_like(step.experts)),
    "half": lambda step: replace(step, logits=step.logits.half()),
}


@pytest.mark.parametrize(
    ("fault", "promise"),
    [
        ("batch", "a batch equals its sequences alone"),
        ("noisy cache", "noise leaves nothing in the cache"),
        ("row 0", "row 0 is the model itself"),
        ("rows", "rows without noise equal the model"),
        ("no change", "changed marks the rows that run other experts"),
        ("experts", "each row runs top_k experts"),
        ("half", "logits are float32"),
        ("prefill", "a prefill equals its tokens one by one"),
        ("prefill experts", "prefill_experts are those its tokens ran"),
        ("capability", "inspect_layers|dense"),
    ],
)
def test_faulty_models_are_caught(fault: str, promise: str) -> None:
    with pytest.raises(AssertionError, match=promise):
        check_language_model(FaultyModel(fault))


def test_a_tolerance_is_granted() -> None:
    check_language_model(FaultyModel("rows"), atol=3e-3)


# Proposers


class FaultyProposals(PlainProposals):
    """Plain proposals that do not keep their sequences apart."""

    def propose(self, tokens: Any) -> Any:
        rows, step = super().propose(tokens)
        return replace(rows, logits=rows.logits + 1e-3 * (len(tokens) - 1)), step


class MixedUp(RoEProposals):
    """RoE that forgets to move its noise along with its sequences."""

    def select(self, index: Any) -> MixedUp:
        return MixedUp(self._lm, self._tau, self._state.select(index), (self._readers * 2)[: len(index)])

    def join(self, other: Any) -> MixedUp:
        return MixedUp(self._lm, self._tau, self._state.join(other.state), self._readers + other._readers)


def test_faulty_proposers_are_caught() -> None:
    @dataclass(frozen=True)
    class Batched(Plain):
        """Rows that depend on the batch."""

        def start(self, lm: Any, prompts: Any, streams: Any) -> FaultyProposals:
            started = super().start(lm, prompts, streams)
            return FaultyProposals(lm, started.state)

    @dataclass(frozen=True)
    class Shuffled(RoE):
        """Noise that stays where it was."""

        def start(self, lm: Any, prompts: Any, streams: Any) -> MixedUp:
            started = super().start(lm, prompts, streams)
            return MixedUp(lm, started._tau, started.state, started._readers)

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


# Sequence strategies


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


# Backends


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
