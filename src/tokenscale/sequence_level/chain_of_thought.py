"""Chain of thought: the prompt asks for the steps before the answer."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tokenscale.core.data import Ask, Candidate
from tokenscale.core.errors import ArgumentError
from tokenscale.core.prompt import Prompt
from tokenscale.core.stage import Kind
from tokenscale.core.strategy import Asks, SequenceStrategy
from tokenscale.sequence_level import answers as texts
from tokenscale.sequence_level.steps import join, without_ending
from tokenscale.sequence_level.voting import check_kind

ANSWER_TOKENS = 32


@dataclass(frozen=True)
class ChainOfThought(SequenceStrategy):
    r"""Asks for the steps first, by a trigger behind the prompt and, if given, worked examples before it.

    A text `Q: ...\nA:` becomes `Q: ...\nA: Let's think step by step.`; in a chat the trigger is a line
    of its own at the end of the user's last message (or goes on with the assistant's, where that is
    last). `examples` is text put before the prompt as it stands, blank lines included; few-shot
    prompting needs no trigger: `ChainOfThought(trigger="", examples=...)`.

    `extract`, such as "Therefore, the answer is", makes a second call: it is put behind the finished chain (what
    ended that, an end token or a stop string, is taken away), and the model goes on by 32 tokens at most. The
    candidate's text holds it all, its `answer` is what stands behind `extract`, read as `answers` says (see
    `sequence_level.answers`), and a constraint holds for the chain alone. A chain that only pauses for a stage
    around it, is cut off in one that pauses, or was ended early by a stop rule, is left as it is.

    Costs the tokens of both, and the longer answers; an extraction goes on from the tokens of its chain. Raises
    ArgumentError where both are empty, UnknownNameError, and PromptError for examples with a prompt of token ids.

    Source: the trigger is Kojima et al., arXiv 2205.11916, table 4, and the extraction the second prompt of
    their section 3; examples are Wei et al., arXiv 2201.11903.
    """

    kind = Kind.PROMPTING
    reads_text = True

    trigger: str = "Let's think step by step."
    examples: str = ""
    extract: str = ""
    answers: str = "number"

    def __post_init__(self) -> None:
        for name, value in (("trigger", self.trigger), ("examples", self.examples), ("extract", self.extract)):
            if not isinstance(value, str):
                message = f"ChainOfThought({name}={value!r:.80}): {name} must be a string"
                raise ArgumentError(message, f'write {name}="..."')
        if not (self.trigger or self.examples):
            raise ArgumentError(
                "ChainOfThought with neither trigger nor examples does nothing", "give one, or leave the stage out"
            )
        check_kind("ChainOfThought", self.answers)

    @property
    def streams(self) -> bool:  # type: ignore[override]
        return not self.extract

    def solve(self, ask: Ask) -> Asks:
        prompt = ask.prompt.prepend(self.examples) if self.examples else ask.prompt
        if self.trigger:
            prompt = prompt.append(_separator(prompt) + self.trigger)
        asked = replace(ask, prompt=prompt)
        [chains] = yield [asked]
        finished = [j for j, chain in enumerate(chains) if self.extract and _finished(chain, ask)]
        if not finished:
            return chains
        found = yield [self._extraction(asked, j, chains[j]) for j in finished]
        answered = dict(zip(finished, (c for [c] in found), strict=True))
        return [self._whole(c, answered[j]) if j in answered else c for j, c in enumerate(chains)]

    def _extraction(self, asked: Ask, number: int, chain: Candidate) -> Ask:
        """The second call of one chain."""
        begun = without_ending(chain)
        between = "" if not chain.text or chain.text[-1].isspace() else " "
        return replace(
            asked,
            prefix_ids=(*asked.prefix_ids, *begun.token_ids),
            suffix=chain.rest + between + self.extract,
            stream=asked.stream.child(asked.first + number).child("extract"),
            k=1,
            first=0,
            max_new_tokens=ANSWER_TOKENS,
            constraint=None,
            free=True,
        )

    def _whole(self, chain: Candidate, second: Candidate) -> Candidate:
        """The chain with its second call, whose answer it gets."""
        # Either may say it by itself, too: between ours and the next stands the answer.
        pieces = second.text.split(self.extract)[chain.text.count(self.extract) + 1 :]
        said = pieces[0] if pieces else ""
        answer = texts.extract(f"The answer is{said}", self.answers) if said.strip() else None
        return replace(join(without_ending(chain), second), answer=answer)


def _finished(chain: Candidate, ask: Ask) -> bool:
    """Whether nobody goes on with this chain."""
    cut_off = chain.finish_reason in ("length", "constraint_unmet")
    return chain.finish_reason not in ("pause", "stop_rule") and not (cut_off and ask.pauses)


def _separator(prompt: Prompt) -> str:
    """What stands between a prompt and a trigger behind it."""
    if prompt.token_ids is not None:
        return " "
    messages = prompt.chat()
    text = messages[-1].get("content", "") if messages else prompt.text
    if not text or text[-1].isspace():
        return ""
    return "\n" if messages and messages[-1].get("role") == "user" else " "
