"""Votes: candidates grouped by their answers, and the rules by which a group and its best candidate win.

What counts as an answer, and which answers are equal, is said here once for all strategies that choose.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from tokenscale.core.data import Candidate
from tokenscale.core.errors import unknown
from tokenscale.sequence_level.answers import KINDS, extract


def check_kind(owner: str, kind: str) -> None:
    """Refuses a kind of answer that the extractor does not know. Raises UnknownNameError."""
    if kind not in KINDS:
        raise unknown("kind of answer", str(kind), KINDS, owner)


def answered(candidates: Sequence[Candidate], kind: str) -> list[Candidate]:
    """The candidates with their answers filled in; an answer that a strategy inside has found is kept."""
    return [c if c.answer is not None else replace(c, answer=extract(c.text, kind)) for c in candidates]


def vote(candidates: Sequence[Candidate], weights: Sequence[float | None] | None = None, wanted: int = 0) -> Candidate:
    """The most likely candidate of the group with most weight, with `members` (all candidates) and `votes`.

    A group are the candidates of one answer, its weight the sum of theirs (1 each without `weights`). One
    whose weight is None does not vote, nor does one without an answer, unless no voter has one. Ties go to
    the higher log-sum-exp of the group's total log-probabilities, then to the answer seen first. `wanted`
    candidates were asked for; a note says so where there are fewer. At least one must vote.
    """
    weighed = [1.0] * len(candidates) if weights is None else weights
    groups: dict[str | None, list[tuple[Candidate, float]]] = {}
    for candidate, weight in zip(candidates, weighed, strict=True):
        if weight is not None:
            groups.setdefault(candidate.answer, []).append((candidate, weight))
    silent = set(groups) == {None}
    if not silent:
        groups.pop(None, None)
    # Exactly rounded sums, so that the order of the candidates breaks no tie.
    totals = {answer: math.fsum(weight for _, weight in group) for answer, group in groups.items()}
    chances = {answer: _log_sum_exp([c.log_prob for c, _ in group]) for answer, group in groups.items()}
    # Sorting is stable, so what was seen first stays first.
    ranked = sorted(groups, key=lambda answer: (totals[answer], chances[answer]), reverse=True)
    winner = max((c for c, _ in groups[ranked[0]]), key=lambda c: c.log_prob)
    notes = (*(unanswered(candidates) if silent else ()), *shortfall(candidates, wanted))
    return replace(
        winner,
        answer=ranked[0],
        members=tuple(candidates),
        votes=tuple((answer, totals[answer]) for answer in ranked),
        notes=(*winner.notes, *notes),
    )


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
