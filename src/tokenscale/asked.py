"""What callers give to `run` and `stream`, checked: prompts, and the bounds of every answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenscale.core.errors import ArgumentError, at_least
from tokenscale.core.prompt import Prompt


def prompts_of(prompts: object, template_options: Mapping[str, Any] | None) -> list[Prompt]:
    if isinstance(prompts, str | Mapping | Prompt) or not isinstance(prompts, Iterable):
        shown = "a single string" if isinstance(prompts, str) else f"{prompts!r:.80}"
        raise ArgumentError(f"run takes a list of prompts, got {shown}", "write run(lm, [prompt])")
    asked = list(prompts)
    if not asked:
        raise ArgumentError("run got an empty list of prompts", 'give at least one: run(lm, ["Q: ..."])')
    if isinstance(asked[0], Mapping):
        raise ArgumentError("run takes a list of prompts, got the messages of one chat", "write run(lm, [messages])")
    if not (template_options is None or isinstance(template_options, Mapping)):
        message = f"run(chat_template_kwargs={template_options!r:.80}): chat_template_kwargs must be a dict"
        raise ArgumentError(message, 'write chat_template_kwargs={"enable_thinking": False}')
    given = [Prompt.of(prompt) for prompt in asked]
    return [prompt.with_template_options(template_options) for prompt in given] if template_options else given


def run_options(owner: str, seed: int, max_new_tokens: int, stop_strings: Sequence[str]) -> dict[str, Any]:
    """What decoding takes, checked."""
    at_least(owner, "seed", seed, 0)
    at_least(owner, "max_new_tokens", max_new_tokens, 1)
    stops = check_stop_strings(owner, stop_strings)
    return {"seed": seed, "max_new_tokens": max_new_tokens, "stop_strings": stops}


def check_stop_strings(owner: str, stop_strings: object) -> tuple[str, ...]:
    """The stop strings that `owner` was given, as a tuple. Raises ArgumentError."""
    stops = stop_strings if isinstance(stop_strings, list | tuple) else [None]
    if all(isinstance(stop, str) and stop for stop in stops):
        return tuple(stops)
    message = f"{owner}(stop_strings={stop_strings!r:.80}): stop_strings must be a list of strings, none of them empty"
    raise ArgumentError(message, r'write stop_strings=["\nQ:"]')
