"""The seam between strategies and whatever serves them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from tokenscale.core.cost import Usage
from tokenscale.core.data import Ask, Candidate

OnToken = Callable[[int, int, int], None]


@dataclass(frozen=True)
class Completion:
    """An ask that is done: its k candidates in order, and what each of its searches ran.

    A sampler's candidates are searches of their own; of a beam search several come from one.
    """

    ticket: int
    candidates: list[Candidate]
    usages: list[Usage]


class Backend(ABC):
    """Serves asks, many at a time: the local decode loop, or an endpoint."""

    @abstractmethod
    def submit(self, ask: Ask) -> int:
        """Queues an ask and returns its ticket. Raises PromptError for a prompt that cannot be run."""

    @abstractmethod
    def advance(self) -> list[Completion]:
        """Works until at least one ask is complete; an empty list where nothing is outstanding."""

    def tick(self) -> list[Completion]:
        """Works a little, and returns the asks that are complete then, if any are: a backend that decodes, one step."""
        return self.advance()

    @abstractmethod
    def cancel(self, ticket: int) -> None:
        """Forgets an ask; one that is complete or unknown is ignored."""

    @property
    @abstractmethod
    def hungry(self) -> bool:
        """Whether more asks would fill the batch better."""
