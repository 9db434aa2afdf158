"""Between text and token ids, through a transformers tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from tokenscale.core.data import Prompt
from tokenscale.core.errors import CapabilityError, PromptError

# Prompts that are too long are refused with a fix; transformers' warning before that has none.
QUIET = {"verbose": False}


def encode(tokenizer: Any, prompt: Prompt, begin: int | None, name: str) -> tuple[int, ...]:
    """Token ids of a prompt; special tokens and the chat template are applied once.

    `begin` is the begin-of-sequence token that stands for an empty prompt; `name` is the model's.
    Raises PromptError for an empty prompt without one and for a chat that the template does not take,
    CapabilityError for text without a tokenizer.
    """
    if prompt.token_ids is not None:
        ids = prompt.token_ids + _text_ids(tokenizer, prompt.suffix, name, special=False)
    elif prompt.messages is not None:
        ids = _chat_ids(tokenizer, prompt, name)
    else:
        ids = _text_ids(tokenizer, prompt.text or "", name, special=True)
    if ids:
        return ids
    if begin is None:
        raise PromptError(
            f"the prompt is empty, and {name} has no begin-of-sequence token to start from",
            "write a prompt of at least one token",
        )
    return (begin,)


def _text_ids(tokenizer: Any, text: str, name: str, *, special: bool) -> tuple[int, ...]:
    if not text and not special:
        return ()
    return tuple(_required(tokenizer, name)(text, add_special_tokens=special, **QUIET)["input_ids"])


def _chat_ids(tokenizer: Any, prompt: Prompt, name: str) -> tuple[int, ...]:
    if not getattr(_required(tokenizer, name), "chat_template", None):
        raise PromptError(f"the tokenizer of {name} has no chat template", "pass the prompt as one string")
    template = tokenizer.apply_chat_template
    how = {"add_generation_prompt": True, "tokenize": True, "return_dict": False, "tokenizer_kwargs": QUIET}
    try:
        return tuple(template(prompt.chat(), **how))
    except TemplateError as error:
        roles = ", ".join(str(message.get("role")) for message in prompt.chat())
        raise PromptError(
            f"the chat template of {name} does not take messages of the roles {roles}: {error}",
            "change the messages (some templates know no system role, or want user and assistant in turn)",
        ) from error


def decode(tokenizer: Any, token_ids: Sequence[int], name: str) -> str:
    """Text of generated ids, special tokens left out."""
    text: str = _required(tokenizer, name).decode(
        list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return text


def _required(tokenizer: Any, name: str) -> Any:
    if tokenizer is None:
        raise CapabilityError(
            f"{name} came without a tokenizer, so text can be neither read nor written",
            "pass tokenizer=..., or prompts as Prompt(token_ids=...)",
        )
    return tokenizer
