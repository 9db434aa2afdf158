"""The model itself as a proposer: one row per token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from tokenscale.core.cost import Cached
from tokenscale.core.model import LanguageModel, State
from tokenscale.core.noise import Stream
from tokenscale.core.step import Work
from tokenscale.core.strategy import Aggregator, Proposals, Rows, TokenProposer, all_valid, start_all
from tokenscale.token_level.aggregators import MeanProbability


class PlainProposals(Proposals):
    """A cache and the model that fills it."""

    def __init__(self, lm: LanguageModel, state: State, cached: Sequence[Cached]) -> None:
        self._lm, self._state, self._cached = lm, state, list(cached)

    def propose(self, tokens: Int[Tensor, " batch"]) -> tuple[Rows, tuple[Work, ...]]:
        step = self._lm.step(self._state, tokens)
        return all_valid(step.logits), (step.work(self._lm.shape),)

    @property
    def cached(self) -> list[tuple[Cached, ...]]:
        return [(one,) for one in self._cached]

    @property
    def lengths(self) -> list[int]:
        return self._state.lengths

    def select(self, index: Sequence[int]) -> PlainProposals:
        return PlainProposals(self._lm, self._state.select(index), [self._cached[i] for i in index])

    def join(self, other: Proposals) -> PlainProposals:
        assert isinstance(other, PlainProposals)
        return PlainProposals(self._lm, self._state.join(other._state), self._cached + other._cached)


@dataclass(frozen=True)
class Plain(TokenProposer):
    """The model's own distribution, unchanged. Works with every model."""

    @property
    def default_aggregator(self) -> Aggregator:
        return MeanProbability()

    def start(self, lm: LanguageModel, prompts: Sequence[tuple[int, ...]], streams: Sequence[Stream]) -> PlainProposals:
        return PlainProposals(lm, *start_all(lm, prompts))
