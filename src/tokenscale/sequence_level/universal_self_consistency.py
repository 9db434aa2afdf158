"""Universal self-consistency: the model itself says which of its answers agrees best with the others."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tokenscale.core.data import Ask
from tokenscale.core.errors import at_least
from tokenscale.core.stage import Kind
from tokenscale.core.strategy import Asks, SequenceStrategy
from tokenscale.sequence_level.questions import check_template, fill, question
from tokenscale.sequence_level.voting import answered, check_kind, shortfall

TEMPLATE = """

I have generated the following responses to the question above:

{responses}

Evaluate these responses. Select the most consistent response based on majority consensus.
Start your answer with "The most consistent response is Response X" (without quotes).
"""
_CHOICE = r"response\W{0,4}(\d{1,6})(?!\d)"
# What the prompt asks for, wherever it stands; else the first response that is named; else a number alone.
_RULES = tuple(
    re.compile(rule, re.IGNORECASE | re.ASCII)
    for rule in (rf"consistent\s{{1,4}}response\s{{1,4}}is\W{{0,4}}{_CHOICE}", _CHOICE, r"\A\W*(\d{1,6})\W*\Z")
)


@dataclass(frozen=True)
class UniversalSelfConsistency(SequenceStrategy):
    """The one of k responses that the model itself selects as the most consistent with the others.

    The responses are numbered from 1 and listed in `template`, at its {responses}; that stands behind the
    prompt (in a chat: in the user's last message), and the model is asked directly: greedily, once, at most
    `max_new_tokens`, past all strategies inside, the pipeline's constraint and its stop strings. Where its
    reply names no response, or one that does not exist, the first is taken, and a note says so. The result's
    `members` are all k; there are no votes. `answers` is what is looked for in the texts (see
    `sequence_level.answers`), which has no part in the choice. Equal responses need no question.

    Use it for open-ended output, which cannot be voted on, with a model that can read k responses at once.
    Costs k continuations of one shared prompt, the prefill of prompt, template and all responses, and up to
    `max_new_tokens` tokens. Raises ArgumentError and UnknownNameError; PromptError in the run for a
    question longer than the context.

    Source: Chen et al., arXiv 2311.17311 (the words of the question are theirs).
    """

    kind = Kind.CHOOSING
    reads_text = True

    k: int
    template: str = TEMPLATE
    max_new_tokens: int = 32
    answers: str = "number"

    def __post_init__(self) -> None:
        at_least("UniversalSelfConsistency", "k", self.k, 1)
        at_least("UniversalSelfConsistency", "max_new_tokens", self.max_new_tokens, 1)
        check_template("UniversalSelfConsistency", self.template, "responses")
        check_kind("UniversalSelfConsistency", self.answers)

    def solve(self, ask: Ask) -> Asks:
        [candidates] = yield [replace(ask, k=self.k)]
        members = answered(candidates, self.answers)
        notes = shortfall(members, self.k)
        place: int | None = 0
        if len({c.text for c in members}) > 1:
            text = fill(self.template, responses=listed([c.text for c in members]))
            [[reply]] = yield [question(ask, text, ask.stream.child("choice"), self.max_new_tokens)]
            place = chosen(reply.text, len(members))
        if place is None:
            fix = "raise max_new_tokens, or use a model that follows instructions"
            notes += (f"the model named none of its {len(members)} responses, so the first was taken: {fix}",)
        winner = members[place or 0]
        return [replace(winner, members=tuple(members), notes=(*winner.notes, *notes))]


def listed(texts: Sequence[str]) -> str:
    """The responses as the question shows them, numbered from 1."""
    return "\n\n".join(f"Response {number}: {text.strip()}" for number, text in enumerate(texts, 1))


def chosen(reply: str, count: int) -> int | None:
    """The place of the response that a reply names, from 0; None where it names none of `count`."""
    found = next((match for rule in _RULES if (match := rule.search(reply))), None)
    place = int(found[1]) - 1 if found else -1
    return place if 0 <= place < count else None
