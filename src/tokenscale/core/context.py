"""What a model can take: the token ids it knows, and as many as its context holds."""

from __future__ import annotations

from collections.abc import Sequence

from tokenscale.core.errors import PromptError
from tokenscale.core.model import LanguageModel


def check_ids(lm: LanguageModel, ids: Sequence[int]) -> None:
    """Raises PromptError for a token id that the model does not have."""
    if max(ids) >= lm.vocab_size:
        raise PromptError(f"{lm.name} has no token id {max(ids)}", f"use ids below {lm.vocab_size}")


def room(lm: LanguageModel, prompt_tokens: int) -> int:
    """Tokens that fit behind `prompt_tokens` in the model's context. Raises PromptError where none does."""
    left = lm.context_length - prompt_tokens
    if left < 1:
        raise PromptError(
            f"the prompt has {prompt_tokens} tokens, and the context of {lm.name} holds {lm.context_length}",
            "shorten the prompt (fewer examples), or use a model with a longer context",
        )
    return left
