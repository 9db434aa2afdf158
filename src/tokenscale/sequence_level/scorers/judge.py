"""The model itself as the judge of its answers."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tokenscale.core.constraint import Constraint
from tokenscale.core.data import Ask, Candidate
from tokenscale.core.errors import ArgumentError, at_least
from tokenscale.core.scorer import Requests, Scorer
from tokenscale.sequence_level.questions import check_template, fill, question

TEMPLATE = """

Proposed answer:
{answer}

Rate the proposed answer from 1 (wrong) to {scale} (right). Reply with the number alone.
Rating: """
UNREAD = 0.0
_NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?", re.ASCII)


@dataclass(frozen=True)
class LLMJudge(Scorer):
    """The number from 1 to `scale` by which the pipeline's own model rates an answer.

    `template`, with {answer} and {scale} in it, is put behind the prompt (in a chat: into the user's last
    message), and the model is asked directly: greedily, once, at most `max_new_tokens`, past all strategies
    inside, the pipeline's constraint and its stop strings. `constraint` is one for this question, such as
    Constrained(choice=("1", "2", "3")). The score is the first number of the reply; without one, or with one
    outside 1 to `scale`, it is 0, and a note says so. Equal texts are rated once. A model that thinks needs a
    larger `max_new_tokens`.

    Use it for open-ended output, with a model that can judge; small base models cannot. Costs, per different
    answer, the prefill of prompt, answer and template, and up to `max_new_tokens` tokens. Raises
    ArgumentError; PromptError in the run for a question longer than the context.

    Source: Zheng et al., arXiv 2306.05685, section 3.1 (single-answer grading).
    """

    reads_text = True

    template: str = TEMPLATE
    scale: int = 10
    max_new_tokens: int = 16
    constraint: Constraint | None = None

    def __post_init__(self) -> None:
        check_template("LLMJudge", self.template, "answer")
        at_least("LLMJudge", "scale", self.scale, 2)
        at_least("LLMJudge", "max_new_tokens", self.max_new_tokens, 1)
        if self.constraint is not None and not isinstance(self.constraint, Constraint):
            message = f"LLMJudge(constraint={self.constraint!r:.80}): constraint must be a constraint"
            raise ArgumentError(message, "leave it out")

    def grade(self, ask: Ask, candidates: Sequence[Candidate]) -> Requests:
        different = list(dict.fromkeys(c.text for c in candidates))
        if not different:
            return []
        replies = yield [self._question(ask, text) for text in different]
        scores = {text: self._score(reply.text) for text, [reply] in zip(different, replies, strict=True)}
        return [scores[c.text] for c in candidates]

    def notes(self, scores: Sequence[float]) -> tuple[str, ...]:
        unread = sum(score == UNREAD for score in scores)
        if not unread:
            return ()
        fix = "raise its max_new_tokens, or change its template"
        return (f"the judge gave no number from 1 to {self.scale} for {unread} of {len(scores)} candidates: {fix}",)

    def _question(self, ask: Ask, answer: str) -> Ask:
        text = fill(self.template, scale=self.scale, answer=answer)
        # A text's rating does not depend on the candidates beside it, also where the proposer draws.
        digest = hashlib.blake2b(answer.encode(errors="replace"), digest_size=8).hexdigest()
        asked = question(ask, text, ask.stream.child("judge").child(digest), self.max_new_tokens)
        return replace(asked, constraint=self.constraint)

    def _score(self, text: str) -> float:
        match = _NUMBER.search(text)
        score = float(match[0]) if match else UNREAD
        return score if 1 <= score <= self.scale else UNREAD
