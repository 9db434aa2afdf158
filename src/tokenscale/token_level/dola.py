"""DoLa: the last layer's distribution against an earlier layer's (Chuang et al. 2023, arXiv 2309.03883)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from tokenscale.core.errors import ArgumentError, at_least
from tokenscale.core.model import EARLY_LAYERS, LanguageModel
from tokenscale.core.noise import Stream
from tokenscale.core.plan import RowPlan
from tokenscale.core.starting import start_all
from tokenscale.core.strategy import Aggregator, Proposals, TokenProposer
from tokenscale.token_level.aggregators import DoLaContrast
from tokenscale.token_level.one_cache import OneCacheProposals, SameRows
from tokenscale.token_level.options import require

MOST = 20  # layers of a half, of models with more than 40


@dataclass(frozen=True)
class DoLa(TokenProposer):
    """Row 0 is the model; each other row is the lm_head after the final norm of what an earlier layer put out.

    `DoLaContrast`, the default aggregator, contrasts row 0 with the row that is furthest from it
    (Jensen-Shannon): log q_N - log q_M over plausible tokens. `layers` are the candidates: "low" or
    "high" half, of which every second layer as in the paper (of its states 0 to N, state j being what
    j layers put out, the even ones; of models with more than 40 layers the 20 at that end; state 0,
    the embedding, is left out), or a tuple of decoder layers, 0 being the first.
    Cost: one row per token, and an lm_head for each candidate besides its own.
    """

    layers: Literal["low", "high"] | tuple[int, ...] = "high"

    needs: ClassVar[frozenset[str]] = frozenset({EARLY_LAYERS})

    def __post_init__(self) -> None:
        if self.layers in ("low", "high"):
            return
        layers = tuple(self.layers) if isinstance(self.layers, list | tuple) else ()
        if not layers or len(set(layers)) < len(layers):
            message = f"DoLa(layers={self.layers!r}): layers must be 'low', 'high' or different layers, at least one"
            raise ArgumentError(message, "write layers='high', or a tuple such as (1, 3)")
        for layer in layers:
            at_least("DoLa", "layers", layer, 0)
        object.__setattr__(self, "layers", layers)

    @property
    def clean_row(self) -> bool:
        return True

    @property
    def default_aggregator(self) -> Aggregator:
        return DoLaContrast()

    def candidates(self, layers: int) -> tuple[int, ...]:
        """The decoder layers that are contrasted, of a model that has so many."""
        if isinstance(self.layers, tuple):
            return self.layers
        half = layers // 2
        states = range(1, min(half, MOST)) if self.layers == "low" else range(max(half, layers - MOST, 1), layers)
        even = [state for state in states if state % 2 == 0]
        # A model of a few layers has no even state in its half: the half's last one stands in.
        return tuple(state - 1 for state in even or [max(states, default=1)])

    def check(self, lm: LanguageModel) -> None:
        require(lm, "DoLa", EARLY_LAYERS, "reads the logits of earlier layers")
        if lm.layers < 2:
            raise ArgumentError(f"DoLa contrasts layers, and {lm.name} has one", "use a deeper model, or Greedy()")
        late = [layer for layer in self.candidates(lm.layers) if layer >= lm.layers - 1]
        if late:
            message = f"DoLa(layers={self.layers!r}): layer {late[0]} is no layer before the last of {lm.name}"
            raise ArgumentError(message, f"{lm.name} has the layers 0 to {lm.layers - 1}: name earlier ones")

    def start(self, lm: LanguageModel, prompts: Sequence[tuple[int, ...]], streams: Sequence[Stream]) -> Proposals:
        self.check(lm)
        plan = RowPlan(early_layers=self.candidates(lm.layers))
        return OneCacheProposals(lm, SameRows(plan), *start_all(lm, prompts))
