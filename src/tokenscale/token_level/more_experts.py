"""More experts per token than the model was trained to run: the baseline that needs no rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from tokenscale.core.errors import at_least
from tokenscale.core.model import EXPERT_RANKS, Holding, LanguageModel
from tokenscale.core.noise import Stream
from tokenscale.core.plan import Routing, RowPlan
from tokenscale.core.strategy import Aggregator, Proposals, TokenProposer
from tokenscale.token_level.aggregators import MeanProbability
from tokenscale.token_level.one_cache import OneCacheProposals, SameRows
from tokenscale.token_level.options import require
from tokenscale.token_level.ranks import check_rank, ranked_source, start_ranked


@dataclass(frozen=True)
class MoreExperts(TokenProposer):
    """One row in which every token, the prompt's too, runs the k best experts of every MoE layer.

    Gate weights follow the model's own rule, over k experts. With the model's own k it is the model
    itself; fewer are allowed. The baseline of Shi et al. (2024, arXiv 2405.14507, table of Mixtral for
    k = 1 to 8). Cost: one row per token with k experts in place of the model's.
    """

    k: int

    needs: ClassVar[frozenset[str]] = frozenset({EXPERT_RANKS})

    def __post_init__(self) -> None:
        at_least("MoreExperts", "k", self.k, 1)

    @property
    def default_aggregator(self) -> Aggregator:
        return MeanProbability()

    def check(self, lm: LanguageModel) -> None:
        require(lm, "MoreExperts", EXPERT_RANKS, "sets how many experts run")
        check_rank("MoreExperts", "k", self.k, lm)

    def start(self, lm: LanguageModel, prompts: Sequence[tuple[int, ...]], streams: Sequence[Stream]) -> Proposals:
        self.check(lm)
        plan = RowPlan(routing=Routing(ranks=((1, self.k),)))
        return OneCacheProposals(lm, SameRows(plan), *start_ranked(lm, prompts, (1, self.k)))

    def caches(self, lm: LanguageModel, prompt: tuple[int, ...], stream: Stream) -> list[Holding]:
        return [Holding(lm, prompt, ranked_source((1, self.k)))]
