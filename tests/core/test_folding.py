"""Large logits are read in tiles: the same aggregates, and never more of them at once than the bound."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokenscale.core import unread
from tokenscale.core.folding import aggregated
from tokenscale.core.step_records import entropy_and_disagreement
from tokenscale.core.strategy import Aggregator, Rows
from tokenscale.core.unread import Unread
from tokenscale.token_level.aggregators import (
    CleanAnchored,
    ContrastRows,
    DoLaContrast,
    EntropyWeighted,
    LogSumExpLogits,
    MaxProbability,
    MeanLogit,
    MeanProbability,
    MedianProbability,
    MinProbability,
    TokenVote,
    Weighted,
)

ROWS, VOCAB = 5, 11
AGGREGATORS: list[Aggregator] = [
    CleanAnchored(0.3),
    DoLaContrast(),
    EntropyWeighted(),
    LogSumExpLogits(),
    MaxProbability(),
    MeanLogit(),
    MeanProbability(),
    MedianProbability(),
    MinProbability(),
    TokenVote(),
    Weighted((1.0, 2.0, 0.0, 1.0, 0.5)),
]


@dataclass(frozen=True)
class Told(Unread):
    """Logits that are there, and the sizes in which they were read."""

    logits: Tensor
    sizes: list[int] = field(default_factory=list)

    @property
    def shape(self) -> torch.Size:
        return self.logits.shape

    @property
    def device(self) -> torch.device:
        return self.logits.device

    def read(self) -> Tensor:
        self.sizes.append(self.logits.numel())
        return self.logits

    def part(self, sequences: slice, rows: slice) -> Unread:
        return Told(self.logits[sequences, rows], self.sizes)

    def at(self, places: Tensor) -> Unread:
        return Told(self.logits[places], self.sizes)

    def in_rows(self, n: int) -> Unread:
        return Told(self.logits.view(-1, n, self.shape[-1]), self.sizes)


@pytest.fixture(autouse=True)
def _bound() -> Iterator[None]:
    """The bound is what each test says."""
    before = unread.LOGITS_BYTES
    yield
    unread.LOGITS_BYTES = before


def rows(seed: int, batch: int, holes: bool) -> tuple[Tensor, Tensor]:
    """Logits, some of them minus infinity, and which rows are valid: at least one each."""
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(batch, ROWS, VOCAB, generator=generator)
    if holes:
        logits[torch.rand(logits.shape, generator=generator) < 0.4] = -math.inf
        logits[..., 0] = logits[..., 0].clamp_min(-5.0)
        logits[0] = torch.where(torch.eye(ROWS, VOCAB, dtype=torch.bool), 0.0, -math.inf)  # nothing in common
    valid = torch.rand(batch, ROWS, generator=generator) < 0.7
    valid[torch.arange(batch), torch.randint(ROWS, (batch,), generator=generator)] = True
    return logits, valid


@pytest.mark.parametrize("aggregator", AGGREGATORS, ids=lambda a: type(a).__name__)
@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 4), st.booleans(), st.integers(1, 24))
def test_tiles_say_what_all_rows_say(aggregator: Aggregator, seed: int, batch: int, holes: bool, most: int) -> None:
    logits, valid = rows(seed, batch, holes)
    given_rows, sizes = Rows(logits, valid), list[int]()
    wanted, fell_back = aggregator.aggregate(given_rows), aggregator.fell_back(given_rows).tolist()
    unread.LOGITS_BYTES = 4 * VOCAB * most
    found, fell = aggregated(aggregator, Rows.of(Told(logits, sizes), valid))
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5)  # log-probabilities to -40, float32
    assert fell == fell_back
    assert sum(sizes) == logits.numel()  # each row went through lm_head once
    assert max(sizes) <= VOCAB * (max(most, ROWS) if not aggregator.folds else most)


def test_two_rows_are_contrasted_in_tiles() -> None:
    logits, valid = rows(3, 4, False)
    pair = Rows(logits[:, :2], torch.ones_like(valid[:, :2]))
    wanted = ContrastRows().aggregate(pair)
    unread.LOGITS_BYTES = 4 * VOCAB
    found, _ = aggregated(ContrastRows(), Rows.of(Told(pair.logits), pair.valid))
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 24))
def test_traces_are_summed_over_tiles(seed: int, batch: int, most: int) -> None:
    logits, valid = rows(seed, batch, False)
    log_probs = MeanProbability().aggregate(Rows(logits, valid))
    wanted, sizes = entropy_and_disagreement(Rows(logits, valid), log_probs), list[int]()
    unread.LOGITS_BYTES = 4 * VOCAB * most
    found = entropy_and_disagreement(Rows.of(Told(logits, sizes), valid), log_probs)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert max(sizes) <= VOCAB * most


def test_logits_are_read_once_and_kept() -> None:
    logits, valid = rows(0, 2, False)
    told = Told(logits)
    given_rows = Rows.of(told, valid)
    assert given_rows.held is told
    assert given_rows.logits is given_rows.logits is given_rows.held
    assert told.sizes == [logits.numel()]
    with pytest.raises(AttributeError, match="no attribute 'logit'"):
        _ = given_rows.logit  # type: ignore[attr-defined]


class Lone(MeanLogit):
    """Folds, and says only as a function who has fallen back."""

    fold_fell_back = Aggregator.fold_fell_back


def test_a_fold_that_does_not_tell_who_fell_back_is_not_used() -> None:
    logits, valid = rows(0, 2, True)
    valid[:] = True
    unread.LOGITS_BYTES = 4 * VOCAB
    found, fell = aggregated(Lone(), Rows.of(Told(logits), valid))
    assert fell == Lone().fell_back(Rows(logits, valid)).tolist()
    assert fell[0]
    torch.testing.assert_close(found, MeanLogit().aggregate(Rows(logits, valid)))
