"""Scorers: they say how good finished candidates are."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator, Sequence
from typing import ClassVar

from tokenscale.core.data import Ask, Candidate
from tokenscale.core.reward import Grade
from tokenscale.core.strategy import Kind, Stage

Requests = Generator[list[Ask | Grade], list[list[Candidate]], list[float]]


class Scorer(Stage):
    """Says how good candidates are: a parameter of strategies, never a stage of a pipeline."""

    kind: ClassVar[Kind] = Kind.SCORER

    @abstractmethod
    def grade(self, ask: Ask, candidates: Sequence[Candidate]) -> Requests:
        """One score per candidate, the higher the better; used as `scores = yield from scorer.grade(...)`.

        Yields the requests it needs, as a strategy does; one that needs none yields nothing.
        """
