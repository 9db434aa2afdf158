"""Scorers: they say how good finished candidates are."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator, Sequence
from typing import ClassVar

from tokenscale.core.data import Ask, Candidate
from tokenscale.core.reward import Grade
from tokenscale.core.stage import Kind, Stage

Requests = Generator[list[Ask | Grade], list[list[Candidate]], list[float]]


class Scorer(Stage):
    """Says how good candidates are: a parameter of strategies, never a stage of a pipeline.

    `signed`: scores may be below 0, so that they cannot be added up as weights.
    """

    kind: ClassVar[Kind] = Kind.SCORER
    signed: ClassVar[bool] = False

    @abstractmethod
    def grade(self, ask: Ask, candidates: Sequence[Candidate]) -> Requests:
        """One score per candidate, the higher the better; used as `scores = yield from scorer.grade(...)`.

        Yields the requests it needs, as a strategy does; one that needs none yields nothing.
        """

    def notes(self, scores: Sequence[float]) -> tuple[str, ...]:
        """What the user should know of these scores."""
        return ()
