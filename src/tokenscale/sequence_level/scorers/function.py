"""A function of one's own as a scorer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import SupportsFloat

from tokenscale.core.data import Ask, Candidate
from tokenscale.core.errors import ArgumentError, PipelineError
from tokenscale.core.prompt import Prompt
from tokenscale.core.scorer import Requests, Scorer

Score = Callable[[Prompt, Candidate], SupportsFloat]


@dataclass(frozen=True)
class FunctionScorer(Scorer):
    """The number that `function(prompt, candidate)` returns, the higher the better.

    In text a function is named as "path/to/file.py:name". The prompt is the one that the stage around the
    scorer was asked. Use it for unit tests of code, checkers of formats, and rules. Costs what the function
    costs, in this process; tokens: none. Raises ArgumentError for what cannot be called, and PipelineError,
    naming the function and the candidate, where it fails or returns no number.
    """

    function: Score

    def __post_init__(self) -> None:
        if not callable(self.function):
            message = f"FunctionScorer(function={self.function!r:.80}): function must be callable"
            raise ArgumentError(message, 'pass a function, in text as "path/to/file.py:name" without quotes')

    def grade(self, ask: Ask, candidates: Sequence[Candidate]) -> Requests:
        yield from ()
        return [self._score(ask.prompt, c, f"{i} of {len(candidates)}") for i, c in enumerate(candidates, 1)]

    def _score(self, prompt: Prompt, candidate: Candidate, place: str) -> float:
        name = getattr(self.function, "__qualname__", repr(self.function))
        try:
            return float(self.function(prompt, candidate))
        except Exception as error:  # whatever a function of somebody else raises
            message = f"the scorer {name:.80} failed on candidate {place}: {type(error).__name__}: {error!s:.200}"
            raise PipelineError(message, "it must take (prompt, candidate) and return a number") from error
