"""Candidates with a scorer's scores, which are checked."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import replace

from tokenscale.core.data import Ask, Candidate
from tokenscale.core.errors import PipelineError
from tokenscale.core.reward import Grade
from tokenscale.core.scorer import Scorer

Scoring = Generator[list[Ask | Grade], list[list[Candidate]], list[Candidate]]


def scored(scorer: Scorer, ask: Ask, candidates: Sequence[Candidate]) -> Scoring:
    """The candidates with their `score` filled in. Raises PipelineError, naming the scorer, for NaN and a wrong count.

    Infinite scores are allowed: minus infinity never wins against a number.
    """
    scores = yield from scorer.grade(ask, candidates)
    if len(scores) != len(candidates):
        message = f"{scorer!r:.200} gave {len(scores)} scores for {len(candidates)} candidates"
        raise PipelineError(message, "return one score per candidate, in order")
    for number, score in enumerate(scores, 1):
        if math.isnan(score):
            message = f"{scorer!r:.200} scored candidate {number} of {len(candidates)} as NaN"
            raise PipelineError(message, "return a number; -inf is the worst")
    return [replace(c, score=float(score)) for c, score in zip(candidates, scores, strict=True)]
