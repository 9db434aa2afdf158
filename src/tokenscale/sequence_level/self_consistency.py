"""Self-consistency: several answers, and the one that most of them agree on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tokenscale.core.data import Ask, Candidate
from tokenscale.core.errors import at_least, unknown
from tokenscale.core.strategy import Asks, Kind, SequenceStrategy
from tokenscale.sequence_level.answers import KINDS, extract


@dataclass(frozen=True)
class SelfConsistency(SequenceStrategy):
    """Majority vote over the answers of k candidates.

    Each candidate votes for its answer with weight 1; one without an answer does not vote unless
    none has one. Ties go to the higher log-sum-exp of the group's total log-probabilities, then to
    the answer seen first. The result is the most likely candidate of the winning group, with
    `members` (all k, their answers filled in) and `votes`. `answers` says what is looked for:
    "number" or "letter" (see `sequence_level.answers`); an answer that a strategy inside has found
    is kept. Candidate j draws from child j of the stream, so k = 5 are the first five of k = 10.

    Costs k continuations of one shared prompt. Raises ArgumentError for k < 1.

    Source: Wang et al., arXiv 2203.11171, section 2 (the unweighted sum of table 1).
    """

    kind = Kind.CHOOSING
    reads_text = True

    k: int
    answers: str = "number"

    def __post_init__(self) -> None:
        at_least("SelfConsistency", "k", self.k, 1)
        if self.answers not in KINDS:
            raise unknown("kind of answer", str(self.answers), KINDS, "SelfConsistency")

    def solve(self, ask: Ask) -> Asks:
        [candidates] = yield [replace(ask, k=self.k)]
        return [vote([self._with_answer(c) for c in candidates])]

    def _with_answer(self, candidate: Candidate) -> Candidate:
        if candidate.answer is not None:
            return candidate
        return replace(candidate, answer=extract(candidate.text, self.answers))


def vote(candidates: Sequence[Candidate]) -> Candidate:
    """The most likely candidate of the group with most votes, by the rules of SelfConsistency."""
    groups: dict[str | None, list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault(candidate.answer, []).append(candidate)
    silent = set(groups) == {None}
    if not silent:
        groups.pop(None, None)
    # Sorting is stable, so what was seen first stays first.
    ranked = sorted(groups.items(), key=lambda item: (len(item[1]), _log_sum_exp(item[1])), reverse=True)
    answer, group = ranked[0]
    winner = max(group, key=lambda c: c.log_prob)
    return replace(
        winner,
        answer=answer,
        members=tuple(candidates),
        votes=tuple((name, float(len(members))) for name, members in ranked),
        notes=(*winner.notes, *_notes(silent, candidates)),
    )


def _log_sum_exp(candidates: Sequence[Candidate]) -> float:
    """Exactly rounded, so that the order of the candidates does not break ties."""
    totals = [c.log_prob for c in candidates]
    top = max(totals)
    if math.isinf(top):
        return top
    return top + math.log(math.fsum(math.exp(t - top) for t in totals))


def _notes(silent: bool, candidates: Sequence[Candidate]) -> tuple[str, ...]:
    if not silent:
        return ()
    cut = sum(c.finish_reason == "length" for c in candidates)
    fix = "raise max_new_tokens" if cut else "ask for one in the prompt, or look for another kind (answers=...)"
    return (f"no answer was found in any of {len(candidates)} candidates ({cut} ended by length): {fix}",)
