"""How many tokens still fit behind a prompt."""

from __future__ import annotations

from tokenscale.core.errors import PromptError
from tokenscale.core.model import LanguageModel


def room(lm: LanguageModel, prompt_tokens: int) -> int:
    """Tokens that fit behind `prompt_tokens` in the model's context. Raises PromptError where none does."""
    left = lm.context_length - prompt_tokens
    if left < 1:
        raise PromptError(
            f"the prompt has {prompt_tokens} tokens, and the context of {lm.name} holds {lm.context_length}",
            "shorten the prompt (fewer examples), or use a model with a longer context",
        )
    return left
