"""The model itself as a proposer: one row per token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Bool
from torch import Tensor

from tokenscale.core.model import LanguageModel
from tokenscale.core.noise import Stream
from tokenscale.core.plan import RowPlan
from tokenscale.core.starting import start_all
from tokenscale.core.strategy import Aggregator, Proposals, TokenProposer
from tokenscale.token_level.aggregators import MeanProbability
from tokenscale.token_level.one_cache import OneCacheProposals, SameRows, forced_plan


@dataclass(frozen=True)
class Plain(TokenProposer):
    """The model's own distribution, unchanged. Works with every model.

    Cost: one row per token.
    """

    @property
    def clean_row(self) -> bool:
        return True

    @property
    def default_aggregator(self) -> Aggregator:
        return MeanProbability()

    def start(self, lm: LanguageModel, prompts: Sequence[tuple[int, ...]], streams: Sequence[Stream]) -> Proposals:
        return OneCacheProposals(lm, SameRows(), *start_all(lm, prompts))

    def row_plan(
        self, lm: LanguageModel, stream: Stream, prompt_tokens: int, positions: range
    ) -> tuple[RowPlan, Bool[Tensor, "positions rows"] | None] | None:
        return forced_plan(SameRows(), None, prompt_tokens, positions)
