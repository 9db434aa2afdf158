"""Chain of thought: the prompt asks for the steps before the answer."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tokenscale.core.data import Ask, Prompt
from tokenscale.core.errors import ArgumentError
from tokenscale.core.strategy import Asks, Kind, SequenceStrategy


@dataclass(frozen=True)
class ChainOfThought(SequenceStrategy):
    r"""Asks for the steps first, by a trigger behind the prompt and, if given, worked examples before it.

    A text `Q: ...\nA:` becomes `Q: ...\nA: Let's think step by step.`; in a chat the trigger is a line
    of its own at the end of the user's last message (or goes on with the assistant's, where that is
    last). `examples` is text put before the prompt as it stands, blank lines included; few-shot
    prompting needs no trigger: `ChainOfThought(trigger="", examples=...)`.

    Costs the tokens of both, and the longer answers. Raises ArgumentError where both are empty, and
    PromptError for examples with a prompt of token ids.

    Source: the trigger is Kojima et al., arXiv 2205.11916, table 4 (their second prompt, which pulls
    the answer out, is the answer extractor's work here); examples are Wei et al., arXiv 2201.11903.
    """

    kind = Kind.PROMPTING
    reads_text = True
    streams = True

    trigger: str = "Let's think step by step."
    examples: str = ""

    def __post_init__(self) -> None:
        for name, value in (("trigger", self.trigger), ("examples", self.examples)):
            if not isinstance(value, str):
                message = f"ChainOfThought({name}={value!r:.80}): {name} must be a string"
                raise ArgumentError(message, f'write {name}="..."')
        if not (self.trigger or self.examples):
            raise ArgumentError(
                "ChainOfThought with neither trigger nor examples does nothing", "give one, or leave the stage out"
            )

    def solve(self, ask: Ask) -> Asks:
        prompt = ask.prompt.prepend(self.examples) if self.examples else ask.prompt
        if self.trigger:
            prompt = prompt.append(_separator(prompt) + self.trigger)
        [candidates] = yield [replace(ask, prompt=prompt)]
        return candidates


def _separator(prompt: Prompt) -> str:
    """What stands between a prompt and a trigger behind it."""
    if prompt.token_ids is not None:
        return " "
    messages = prompt.chat()
    text = messages[-1].get("content", "") if messages else prompt.text
    if not text or text[-1].isspace():
        return ""
    return "\n" if messages and messages[-1].get("role") == "user" else " "
