"""Votes: candidates grouped by their answers, and the rules by which a group and its best candidate win.

What counts as an answer, and which answers are equal, is said here once for all strategies that choose.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from tokenscale.core.data import Candidate
from tokenscale.core.errors import unknown
from tokenscale.sequence_level.answers import KINDS, extract, groups


def check_kind(owner: str, kind: str) -> None:
    """Refuses a kind of answer that the extractor does not know. Raises UnknownNameError."""
    if not isinstance(kind, str) or kind not in KINDS:
        raise unknown("kind of answer", str(kind), KINDS, owner)


def answered(candidates: Sequence[Candidate], kind: str) -> list[Candidate]:
    """The candidates with their answers filled in; an answer that a strategy inside has found is kept."""
    return [c if c.answer is not None else replace(c, answer=extract(c.text, kind)) for c in candidates]


def grouped(candidates: Sequence[Candidate], kind: str) -> list[list[int]]:
    """Places of candidates with equal answers, group by group in the order of their first places; None in no group."""
    return groups([c.answer for c in candidates], kind)


def vote(
    candidates: Sequence[Candidate],
    kind: str = "number",
    weights: Sequence[float | None] | None = None,
    wanted: int = 0,
) -> Candidate:
    """The most likely candidate of the group with most weight, with `members` (all candidates) and `votes`.

    A group are the candidates whose answers are equal (see `sequence_level.answers.equality`), its weight the
    sum of theirs (1 each without `weights`), its answer that of the first. One whose weight is None does not
    vote, nor does one without an answer, unless no voter has one. Ties go to the higher log-sum-exp of the
    group's total log-probabilities, then to the answer seen first. `wanted` candidates were asked for; a note
    says so where there are fewer. At least one must vote.
    """
    weighed = [1.0] * len(candidates) if weights is None else weights
    voters = [(c, weight) for c, weight in zip(candidates, weighed, strict=True) if weight is not None]
    places = grouped([c for c, _ in voters], kind)
    found = [_Group([voters[i][0] for i in group], [voters[i][1] for i in group]) for group in places]
    ranked = found or [_Group([c for c, _ in voters], [weight for _, weight in voters])]
    # Sorting is stable, so what was seen first stays first.
    ranked.sort(key=lambda group: (group.weight, group.log_prob), reverse=True)
    winner = max(ranked[0].candidates, key=lambda c: c.log_prob)
    notes = (*(() if found else unanswered(candidates)), *shortfall(candidates, wanted))
    return replace(
        winner,
        answer=ranked[0].answer,
        members=tuple(candidates),
        votes=tuple((group.answer, group.weight) for group in ranked),
        notes=(*winner.notes, *notes),
    )


class _Group:
    """Candidates with one answer. Sums are exactly rounded, so that the order of the candidates breaks no tie."""

    def __init__(self, candidates: Sequence[Candidate], weights: Sequence[float]) -> None:
        self.candidates, self.answer = candidates, candidates[0].answer
        self.weight = math.fsum(weights)
        self.log_prob = _log_sum_exp([c.log_prob for c in candidates])


def _log_sum_exp(totals: Sequence[float]) -> float:
    top = max(totals)
    if math.isinf(top):
        return top
    return top + math.log(math.fsum(math.exp(t - top) for t in totals))


def unanswered(candidates: Sequence[Candidate]) -> tuple[str, ...]:
    """The note that no candidate has an answer."""
    cut = sum(c.finish_reason == "length" for c in candidates)
    fix = "raise max_new_tokens" if cut else "ask for one in the prompt, or look for another kind (answers=...)"
    return (f"no answer was found in any of {len(candidates)} candidates ({cut} ended by length): {fix}",)


def shortfall(candidates: Sequence[Candidate], wanted: int) -> tuple[str, ...]:
    """The note that there are fewer candidates than were asked for, where that is so."""
    if len(candidates) >= wanted:
        return ()
    return (f"{len(candidates)} of {wanted} candidates: the decoder or a strategy inside found no more",)
