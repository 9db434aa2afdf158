"""A prompt ensemble: variants of one prompt propose the same token (Guo et al. 2024, arXiv 2412.18299)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from tokenscale.core.errors import ArgumentError, PromptError
from tokenscale.core.model import Holding, LanguageModel
from tokenscale.core.noise import Stream
from tokenscale.core.prompt import Prompt
from tokenscale.core.strategy import Aggregator, Proposals, TokenProposer
from tokenscale.token_level.aggregators import MeanProbability
from tokenscale.token_level.private_cache import PrivateCacheProposals, start_variants

PLACE = "{prompt}"


@dataclass(frozen=True)
class PromptEnsemble(TokenProposer):
    """One row per template: every row reads its own variant of the prompt, and all are fed the same tokens.

    A template is a text with {prompt} in it, such as "Be brief. {prompt}"; "{prompt}" by itself is the
    prompt as it is. The rows' probabilities are averaged by default, as in the paper. The text around
    the place is encoded by itself, and goes around the prompt's token ids: behind a begin-of-sequence
    token, around a chat with its roles. What is continued counts as the prompt's.
    Cost: a row, a cache and a prefill for each template, in one forward. Raises PromptError for a
    variant that the context does not hold, and ModelError where one outgrows it.
    """

    templates: tuple[str, ...]

    reads_text: ClassVar[bool] = True

    def __post_init__(self) -> None:
        given = self.templates if isinstance(self.templates, list | tuple) else ()
        if not given or not all(isinstance(t, str) and t.count(PLACE) == 1 for t in given):
            message = f"PromptEnsemble(templates={self.templates!r:.80}): templates must be texts with one {PLACE} each"
            raise ArgumentError(message, f'write templates=("{PLACE}", "Be brief. {PLACE}")')
        object.__setattr__(self, "templates", tuple(given))

    @property
    def clean_row(self) -> bool:
        return self.templates[0] == PLACE

    @property
    def default_aggregator(self) -> Aggregator:
        return MeanProbability()

    def start(self, lm: LanguageModel, prompts: Sequence[tuple[int, ...]], streams: Sequence[Stream]) -> Proposals:
        variants = [[_variant(lm, template, prompt) for template in self.templates] for prompt in prompts]
        longest = max(len(variant) for several in variants for variant in several)
        if longest >= lm.context_length:
            message = f"a variant of the prompt has {longest} tokens, and {lm.name} holds {lm.context_length}"
            raise PromptError(message, "shorten the prompt or the templates")
        return PrivateCacheProposals(lm, *start_variants(lm, variants))

    def caches(self, lm: LanguageModel, prompt: tuple[int, ...], stream: Stream) -> list[Holding]:
        return [Holding(lm, _variant(lm, template, prompt)) for template in self.templates]


def _variant(lm: LanguageModel, template: str, prompt: tuple[int, ...]) -> tuple[int, ...]:
    before, after = template.split(PLACE)
    begin = _begin(lm)
    start = begin if begin and prompt[:1] == begin else ()
    # A suffix is encoded without the special tokens that begin a text.
    head = lm.encode(Prompt(token_ids=start, suffix=before)) if before else start
    return lm.encode(Prompt(token_ids=(*head, *prompt[len(start) :]), suffix=after))


def _begin(lm: LanguageModel) -> tuple[int, ...]:
    """The token that begins a text, where the model has one."""
    try:
        return lm.encode(Prompt(text=""))
    except PromptError:
        return ()
