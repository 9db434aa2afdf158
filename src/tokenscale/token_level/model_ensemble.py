"""A model ensemble: models of one vocabulary propose the same token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenscale.core.errors import ArgumentError
from tokenscale.core.model import Holding, LanguageModel, open_model
from tokenscale.core.noise import Stream
from tokenscale.core.strategy import Aggregator, Proposals, TokenProposer
from tokenscale.token_level.aggregators import MeanProbability
from tokenscale.token_level.members import Reference, check_reference, open_member, start_members


@dataclass(frozen=True)
class ModelEnsemble(TokenProposer):
    """One row of the model that the pipeline runs on, and one of each of `models`, fed the same tokens.

    Averaged as probabilities by default (Hansen and Salamon 1990, "Neural Network Ensembles");
    `MeanLogit()` makes a product of experts of them (Hinton 2002). `models` are folders, hub ids or
    loaded models (which have no text form); all have the vocabulary of the pipeline's model. Cost: one
    row per token of each model, and the cache and the prefill of each. Raises ArgumentError for a model
    of another vocabulary, ModelError for one that cannot be loaded and where a text outgrows its context.
    """

    models: tuple[Reference, ...]

    def __post_init__(self) -> None:
        several = self.models if isinstance(self.models, list | tuple) else (self.models,)
        if not several:
            raise ArgumentError("ModelEnsemble(models=()): models is empty", "name at least one second model")
        for model in several:
            check_reference("ModelEnsemble", "models", model)
        object.__setattr__(self, "models", tuple(several))

    @property
    def clean_row(self) -> bool:
        return True

    @property
    def default_aggregator(self) -> Aggregator:
        return MeanProbability()

    def _members(self, lm: LanguageModel) -> list[LanguageModel]:
        return [lm, *(open_member("ModelEnsemble", lm, model) for model in self.models)]

    def check(self, lm: LanguageModel) -> None:
        self._members(lm)

    def start(self, lm: LanguageModel, prompts: Sequence[tuple[int, ...]], streams: Sequence[Stream]) -> Proposals:
        return start_members(self._members(lm), prompts, streams)

    def caches(self, lm: LanguageModel, prompt: tuple[int, ...], stream: Stream) -> list[Holding]:
        return [Holding(member, prompt) for member in (lm, *map(open_model, self.models))]
