"""The seam between strategies and whatever serves them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from tokenscale.core.cost import Usage
from tokenscale.core.data import Ask, Candidate


@dataclass(frozen=True)
class Completion:
    """An ask that is done: its k candidates in order, and for each what it ran."""

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

    @abstractmethod
    def cancel(self, ticket: int) -> None:
        """Forgets an ask; one that is complete or unknown is ignored."""

    @property
    @abstractmethod
    def hungry(self) -> bool:
        """Whether more asks would fill the batch better."""
