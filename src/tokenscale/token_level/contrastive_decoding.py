"""Contrastive decoding: a model against a smaller one (Li et al. 2022, arXiv 2210.15097)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenscale.core.model import Holding, LanguageModel, open_model
from tokenscale.core.noise import Stream
from tokenscale.core.strategy import Aggregator, Proposals, TokenProposer
from tokenscale.token_level.aggregators import ContrastRows
from tokenscale.token_level.members import Reference, check_reference, open_member, start_members


@dataclass(frozen=True)
class ContrastiveDecoding(TokenProposer):
    """Two rows: row 0 is the model, the expert; row 1 a second, smaller model of the same vocabulary.

    `ContrastRows(beta, alpha)`, the default aggregator (beta 0.5, alpha 0.1), makes of them
    z = (1 + beta) z_expert - beta z_amateur over the tokens that the expert finds plausible, as O'Brien
    and Lewis write it (2023, arXiv 2309.09117). `amateur` is a folder, a hub id or a loaded model
    (which has no text form). Cost: one row per token of each model, and the cache and the prefill of both.
    Raises ArgumentError for an amateur of another vocabulary, ModelError for one that cannot be loaded
    and where a text outgrows its context.
    """

    amateur: Reference

    def __post_init__(self) -> None:
        check_reference("ContrastiveDecoding", "amateur", self.amateur)

    @property
    def clean_row(self) -> bool:
        return True

    @property
    def default_aggregator(self) -> Aggregator:
        return ContrastRows(beta=0.5, alpha=0.1)

    def check(self, lm: LanguageModel) -> None:
        open_member("ContrastiveDecoding", lm, self.amateur)

    def start(self, lm: LanguageModel, prompts: Sequence[tuple[int, ...]], streams: Sequence[Stream]) -> Proposals:
        amateur = open_member("ContrastiveDecoding", lm, self.amateur)
        return start_members([lm, amateur], prompts, streams)

    def caches(self, lm: LanguageModel, prompt: tuple[int, ...], stream: Stream) -> list[Holding]:
        return [Holding(lm, prompt), Holding(open_model(self.amateur), prompt)]
