"""SCMoE: a model's ordinary routing against a weaker one of its own (Shi et al. 2024, arXiv 2405.14507)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Bool
from torch import Tensor

from tokenscale.core.errors import ArgumentError, at_least
from tokenscale.core.model import EXPERT_RANKS, Holding, LanguageModel
from tokenscale.core.noise import Stream
from tokenscale.core.plan import Routing, RowPlan
from tokenscale.core.strategy import Aggregator, Proposals, TokenProposer
from tokenscale.token_level.aggregators import ContrastRows
from tokenscale.token_level.one_cache import OneCacheProposals, SameRows, forced_plan
from tokenscale.token_level.options import one_of, require
from tokenscale.token_level.ranks import Ranks, check_rank, ranked_source, start_ranked
from tokenscale.token_level.side_by_side import SideBySide


@dataclass(frozen=True)
class SCMoE(TokenProposer):
    """Two rows: row 0 routes strongly, row 1 runs only the expert of rank `weak` in every MoE layer.

    The paper contrasts them as z = (1 + beta) z_strong - beta z_weak over the tokens that the strong row
    finds plausible, which is `ContrastRows(beta, alpha)`, the default aggregator (beta 0.5, alpha 0.1;
    the paper tunes beta from 0.1 to 0.9). `strong` is "top_k", the model's own routing, or a number of
    experts.

    cache: "clean" stores the strong row's keys and values alone, and the weak row reads them; "private"
        gives the weak row its own, the prompt's included, as the paper's code does.

    Cost: two rows per token, the second with one expert a layer; private: two caches, two prefills
    and two forwards. Without chance.
    """

    strong: int | Literal["top_k"] = "top_k"
    weak: int = 2
    cache: Literal["clean", "private"] = "clean"

    needs: ClassVar[frozenset[str]] = frozenset({EXPERT_RANKS})

    def __post_init__(self) -> None:
        if isinstance(self.strong, int):
            at_least("SCMoE", "strong", self.strong, 1)
        elif self.strong != "top_k":
            message = f"SCMoE(strong={self.strong!r}): strong must be 'top_k' or a number of experts"
            raise ArgumentError(message, "write strong='top_k', or strong=3")
        at_least("SCMoE", "weak", self.weak, 1)
        one_of("SCMoE", "cache", self.cache, ("clean", "private"))

    @property
    def clean_row(self) -> bool:
        return isinstance(self.strong, str)

    @property
    def default_aggregator(self) -> Aggregator:
        return ContrastRows(beta=0.5, alpha=0.1)

    @property
    def _ranks(self) -> tuple[Ranks | None, Ranks]:
        return None if isinstance(self.strong, str) else (1, self.strong), (self.weak, self.weak)

    def check(self, lm: LanguageModel) -> None:
        require(lm, "SCMoE", EXPERT_RANKS, "sets which experts run")
        check_rank("SCMoE", "weak", self.weak, lm)
        if not isinstance(self.strong, str):
            check_rank("SCMoE", "strong", self.strong, lm)

    def start(self, lm: LanguageModel, prompts: Sequence[tuple[int, ...]], streams: Sequence[Stream]) -> Proposals:
        self.check(lm)
        strong, weak = self._ranks
        if self.cache == "clean":
            both = SameRows(RowPlan(2, Routing(ranks=(strong, weak))))
            return OneCacheProposals(lm, both, *start_ranked(lm, prompts, strong))
        return SideBySide([_alone(lm, prompts, ranks) for ranks in (strong, weak)])

    def caches(self, lm: LanguageModel, prompt: tuple[int, ...], stream: Stream) -> list[Holding]:
        stored = self._ranks[:1] if self.cache == "clean" else self._ranks
        return [Holding(lm, prompt, ranked_source(ranks)) for ranks in stored]

    def row_plan(
        self, lm: LanguageModel, stream: Stream, prompt_tokens: int, positions: range
    ) -> tuple[RowPlan, Bool[Tensor, "positions rows"] | None] | None:
        if self.cache == "private" or not self.clean_row:
            return None  # the stored keys are not those of the model's own routing
        return forced_plan(SameRows(RowPlan(2, Routing(ranks=self._ranks))), None, prompt_tokens, positions)


def _alone(lm: LanguageModel, prompts: Sequence[tuple[int, ...]], ranks: Ranks | None) -> Proposals:
    rule = SameRows(RowPlan(routing=Routing(ranks=(ranks,)))) if ranks else SameRows()
    return OneCacheProposals(lm, rule, *start_ranked(lm, prompts, ranks))
