"""Questions to the model about its own answers."""

from __future__ import annotations

from dataclasses import replace

from tokenscale.core.data import Ask
from tokenscale.core.errors import ArgumentError
from tokenscale.core.greedy import Greedy
from tokenscale.core.noise import Stream
from tokenscale.core.prompt import Prompt


def question(ask: Ask, text: str, stream: Stream, max_new_tokens: int) -> Ask:
    """Asks the model itself, greedily, what `text` behind the prompt of `ask` asks.

    It passes the strategies inside, the pipeline's constraint and the stop strings by.
    """
    prompt = followed_by(ask.prompt, text)
    return Ask(prompt, stream, max_new_tokens, decoder=Greedy(), free=True, direct=True)


def followed_by(prompt: Prompt, text: str) -> Prompt:
    """The prompt with `text` behind it: in the user's last message, or in a new one behind an assistant's."""
    messages = prompt.messages
    if messages and prompt.chat()[-1]["role"] == "assistant":
        return replace(prompt, messages=(*messages, (("role", "user"), ("content", text.strip()))))
    return prompt.append(text)


def check_template(owner: str, template: object, *fields: str) -> None:
    """Refuses a template that is no text or lacks one of the fields, which are written as {name}."""
    missing = [f"{{{field}}}" for field in fields if not isinstance(template, str) or f"{{{field}}}" not in template]
    if missing:
        message = f"{owner}(template={template!r:.80}): template must be a text with {' and '.join(missing)} in it"
        raise ArgumentError(message, f"put {' and '.join(missing)} where it belongs")


def fill(template: str, **fields: object) -> str:
    """The template with its fields filled in; the one given last may hold braces of its own."""
    for name, value in fields.items():
        template = template.replace(f"{{{name}}}", str(value))
    return template
