"""A prompt and an answer in steps as one text in a reward model's tokens, and where each step ends in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from jinja2 import TemplateError

from tokenscale.core.errors import ArgumentError, CapabilityError, PromptError
from tokenscale.core.prompt import Prompt
from tokenscale.models.text import QUIET


@dataclass(frozen=True)
class Encoded:
    """Token ids, and per step the place of the token that holds its last character; the last step's is the last."""

    ids: tuple[int, ...]
    ends: tuple[int, ...]


def encode_graded(tokenizer: Any, prompt: Prompt, steps: Sequence[str], name: str) -> Encoded:
    """A text prompt is followed by the answer as it is; a chat gets it as the assistant's message.

    The whole is tokenised once, so a step's end may lie inside a token, which then counts as its own. Raises
    PromptError for a prompt of token ids, an empty text and a chat that the template does not take.
    """
    if not steps:
        raise ArgumentError("an answer to be graded has no steps", "pass it as one step, even where it is empty")
    answer = "".join(steps)
    if prompt.token_ids is not None:
        message = f"a prompt given as token ids cannot be graded: {name} has a tokenizer of its own"
        raise PromptError(message, "pass the prompt as text or as chat messages")
    chat = prompt.messages is not None
    text = _rendered(tokenizer, prompt, answer, name) if chat else (prompt.text or "") + answer
    several = len(steps) > 1
    if several and not getattr(tokenizer, "is_fast", False):
        message = f"{name} has a slow tokenizer, which does not say where a step ends"
        raise CapabilityError(message, "grade whole answers (RewardModelScorer), or use a fast tokenizer")
    found = tokenizer(text, add_special_tokens=not chat, return_offsets_mapping=several, **QUIET)
    ids, begin = tuple(found["input_ids"]), getattr(tokenizer, "bos_token_id", None)
    # A text that was made by a template begins with the token that the tokenizer puts first by itself.
    twice = not chat and begin is not None and ids[:2] == (begin, begin)
    ids = ids[twice:]
    if not ids:
        raise PromptError("the prompt and the answer to be graded are both empty", "pass a prompt")
    if not several:
        return Encoded(ids, (len(ids) - 1,))
    start = _start(text, answer, name) if chat else len(text) - len(answer)
    ends = [start + length for length in accumulate(map(len, steps))]
    offsets = found["offset_mapping"][twice:]
    return Encoded(ids, (*(_holder(offsets, end) for end in ends[:-1]), len(ids) - 1))


def _rendered(tokenizer: Any, prompt: Prompt, answer: str, name: str) -> str:
    """A chat with its answer through the template; an assistant's message at its end is gone on with."""
    messages = prompt.chat()
    if messages[-1].get("role") == "assistant":
        messages = prompt.append(answer).chat()
    else:
        messages.append({"role": "assistant", "content": answer})
    if not getattr(tokenizer, "chat_template", None):
        raise PromptError(f"the tokenizer of {name} has no chat template", "pass the prompt as one string")
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False))
    except TemplateError as error:
        roles = ", ".join(str(message.get("role")) for message in messages)
        message = f"the chat template of {name} does not take messages of the roles {roles}: {error}"
        raise PromptError(message, "change the messages, or use a reward model that takes them") from error


def _start(text: str, answer: str, name: str) -> int:
    """Where the answer begins in a rendered chat; templates may strip the white space around it."""
    stripped = answer.strip()
    place = text.rfind(stripped)
    if place < 0 or not stripped:
        message = f"the chat template of {name} changes the answer, so that the ends of its steps are lost"
        raise PromptError(message, "grade whole answers (RewardModelScorer)")
    return place - (len(answer) - len(answer.lstrip()))


def _holder(offsets: Sequence[tuple[int, int]], end: int) -> int:
    """The last token with a character before `end`; special tokens have none."""
    return max((i for i, (first, last) in enumerate(offsets) if first < min(end, last)), default=0)
