"""Between text and token ids, through a transformers tokenizer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from tokenscale.core.errors import ArgumentError, CapabilityError, PromptError
from tokenscale.core.prompt import Prompt
from tokenscale.core.thinking import Tags, ends_open, split, tags_of

# Prompts that are too long are refused with a fix; transformers' warning before that has none.
QUIET = {"verbose": False}
PROMPT_END = 32  # tokens that hold the longest open tag and the white space behind it


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
    ids = tuple(_required(tokenizer, name)(text, add_special_tokens=special, **QUIET)["input_ids"])
    begin = getattr(tokenizer, "bos_token_id", None)
    # A text that was made by a template begins with the token that the tokenizer puts first by itself.
    return ids[1:] if special and begin is not None and ids[:2] == (begin, begin) else ids


def _chat_ids(tokenizer: Any, prompt: Prompt, name: str) -> tuple[int, ...]:
    if not getattr(_required(tokenizer, name), "chat_template", None):
        raise PromptError(f"the tokenizer of {name} has no chat template", "pass the prompt as one string")
    template, options = tokenizer.apply_chat_template, dict(prompt.template_options)
    _check_read(tokenizer.chat_template, options, name)
    how = {"add_generation_prompt": True, "tokenize": True, "return_dict": False, "tokenizer_kwargs": QUIET} | options
    try:
        return tuple(template(prompt.chat(), **how))
    except TemplateError as error:
        roles = ", ".join(str(message.get("role")) for message in prompt.chat())
        raise PromptError(
            f"the chat template of {name} does not take messages of the roles {roles}: {error}",
            "change the messages (some templates know no system role, or want user and assistant in turn)",
        ) from error


def _check_read(template: Any, options: Mapping[str, object], name: str) -> None:
    """Templates take no notice of an option that they do not know, so a slip would do nothing."""
    unread = [option for option in options if option not in str(template) and option != "add_generation_prompt"]
    if unread:
        message = f"the chat template of {name} reads no {unread[0]}"
        raise PromptError(message, "leave it out, or look in tokenizer.chat_template for the name it reads")


def decode(tokenizer: Any, token_ids: Sequence[int], name: str) -> str:
    """Text of generated ids, special tokens left out."""
    text: str = _required(tokenizer, name).decode(
        list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return text


def checked_tags(tokenizer: Any, given: Sequence[Tags] | None) -> tuple[Tags, ...]:
    """The think tags of a tokenizer, or those that are given. Raises ArgumentError for what are no pairs of texts."""
    if given is None:
        return tags_of(tokenizer.chat_template, tokenizer.get_vocab()) if tokenizer is not None else ()
    pairs = tuple(tuple(pair) for pair in given if not isinstance(pair, str))
    if len(pairs) == len(given) and all(len(p) == 2 and all(isinstance(t, str) and t for t in p) for p in pairs):
        return tuple((start, end) for start, end in pairs)
    message = f"think_tags={given!r:.80}: think_tags are pairs of texts that are not empty"
    raise ArgumentError(message, 'write think_tags=[("<think>", "</think>")]')


class Reader:
    """Generated ids as (thinking, answer): the think tags of a tokenizer, and how its prompts open them.

    Many tags are special tokens, so texts are cut at the tags first, and freed of special tokens then.
    """

    def __init__(self, tokenizer: Any, tags: Sequence[Tags]) -> None:
        self._tokenizer, self.tags = tokenizer, tuple(tags)
        special = sorted(getattr(tokenizer, "all_special_tokens", ()), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, special))) if special else None

    def read(self, prompt: Sequence[int], token_ids: Sequence[int]) -> tuple[str, str]:
        """What stands inside think tags, and the rest. A prompt may end inside an open tag."""
        parts = split(self._raw(token_ids), self.tags, ends_open(self._raw(prompt[-PROMPT_END:]), self.tags))
        thinking, text = (part if self._special is None else self._special.sub("", part) for part in parts)
        return thinking, text

    def _raw(self, token_ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(
            list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text


def _required(tokenizer: Any, name: str) -> Any:
    if tokenizer is None:
        raise CapabilityError(
            f"{name} came without a tokenizer, so text can be neither read nor written",
            "pass tokenizer=..., or prompts as Prompt(token_ids=...)",
        )
    return tokenizer
