"""MC dropout: several dropout masks for one token, averaged; RoE's analogue for dense models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from tokenscale.core.errors import ArgumentError, at_least, finite
from tokenscale.core.model import DROPOUT, LanguageModel
from tokenscale.core.noise import DROPOUT_DOMAIN, RowNoiseReader, Stream
from tokenscale.core.plan import Dropout, RowPlan
from tokenscale.core.starting import start_all
from tokenscale.core.strategy import Aggregator, Proposals, TokenProposer
from tokenscale.token_level.aggregators import MeanProbability
from tokenscale.token_level.one_cache import OneCacheProposals, RowRule, forced_plan
from tokenscale.token_level.options import require
from tokenscale.token_level.plain import Plain


@dataclass(frozen=True)
class MCDropout(TokenProposer):
    """n rows of every token: row 0 is the model, the others drop units of its feed-forward blocks.

    Each unit that a decoder layer's feed-forward (or MoE) block adds to the residual stream is set to 0
    with probability `rate`, else divided by 1 - rate, drawn per row, token, layer and unit. The mean of
    the rows' probabilities is Gal and Ghahramani's predictive distribution (2016, arXiv 1506.02142)
    with the clean row as one of n. They drop in every layer of a model trained with dropout; here models
    are taken as they are. The clean cache holds row 0's keys and values alone, as RoE's
    does. n = 1 or rate = 0 is the model itself. Cost: n rows per token in one forward, one cache.
    """

    n: int
    rate: float = 0.1

    needs: ClassVar[frozenset[str]] = frozenset({DROPOUT})

    def __post_init__(self) -> None:
        at_least("MCDropout", "n", self.n, 1)
        rate = finite("MCDropout", "rate", self.rate, 0.1)
        if not 0 <= rate < 1:
            message = f"MCDropout(rate={self.rate!r}): rate must be at least 0 and below 1"
            raise ArgumentError(message, "write rate=0.1, or rate=0 for no dropout")
        object.__setattr__(self, "rate", rate)

    @property
    def random(self) -> bool:
        return self.n > 1 and self.rate > 0

    @property
    def clean_row(self) -> bool:
        return True

    @property
    def default_aggregator(self) -> Aggregator:
        return MeanProbability()

    def check(self, lm: LanguageModel) -> None:
        require(lm, "MCDropout", DROPOUT, "drops units of feed-forward blocks")

    def start(self, lm: LanguageModel, prompts: Sequence[tuple[int, ...]], streams: Sequence[Stream]) -> Proposals:
        self.check(lm)
        if not self.random:
            return Plain().start(lm, prompts, streams)
        readers = [RowNoiseReader(s, DROPOUT_DOMAIN, self.n - 1, lm.layers, lm.hidden_size) for s in streams]
        return OneCacheProposals(lm, Masks(self.rate), *start_all(lm, prompts), readers)

    def row_plan(
        self, lm: LanguageModel, stream: Stream, prompt_tokens: int, positions: range
    ) -> tuple[RowPlan, Bool[Tensor, "positions rows"] | None] | None:
        if not self.random:
            return Plain().row_plan(lm, stream, prompt_tokens, positions)
        reader = RowNoiseReader(stream, DROPOUT_DOMAIN, self.n - 1, lm.layers, lm.hidden_size)
        return forced_plan(Masks(self.rate), reader, prompt_tokens, positions)


@dataclass(frozen=True)
class Masks(RowRule):
    """A row without dropout, and as many with it as the readers draw for."""

    rate: float

    def plan(self, readers: Sequence[RowNoiseReader], positions: Sequence[int]) -> RowPlan:
        drawn = np.stack([reader.at(p) for reader, p in zip(readers, positions, strict=True)])
        masks: Tensor = torch.from_numpy(drawn).permute(2, 0, 1, 3)
        clean = torch.ones_like(masks[:, :, :1])
        uniforms = torch.cat([clean, masks], dim=2)
        return RowPlan(uniforms.shape[2], dropout=Dropout(self.rate, uniforms))
