"""What a constraint must offer: one guide per sequence, which says what may come next."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from jaxtyping import Bool
from torch import Tensor

from tokenscale.core.model import LanguageModel
from tokenscale.core.stage import Kind, Stage


class Guide(ABC):
    """The state of a constraint for one growing sequence; it forks with the beam that it guides."""

    @abstractmethod
    def allowed(self) -> Bool[Tensor, " vocab"] | None:
        """The tokens that may come next, end tokens included where the text may end here; None: all of them.

        The mask must not be changed by the caller.
        """

    @abstractmethod
    def advance(self, token: int) -> None:
        """Takes the token that was chosen; never an end token."""

    @abstractmethod
    def fork(self) -> Guide:
        """An independent copy."""

    @property
    @abstractmethod
    def met(self) -> bool:
        """Whether the text so far satisfies the constraint."""

    @property
    @abstractmethod
    def over(self) -> bool:
        """Whether no token but an end token may come next, or none at all."""


class Constraint(Stage):
    """What the generated text must look like. Immutable: `start` makes the state of one sequence."""

    kind: ClassVar[Kind] = Kind.CONSTRAINT
    reads_text: ClassVar[bool] = True

    @abstractmethod
    def start(self, lm: LanguageModel) -> Guide:
        """A guide for a new answer of this model.

        Raises ArgumentError for a constraint that this model's vocabulary cannot spell, and CapabilityError
        where a library is missing.
        """

    def begun(self, lm: LanguageModel, answer: Sequence[int]) -> Guide:
        """A guide for an answer that begins with these tokens."""
        guide = self.start(lm)
        for token in answer:
            guide.advance(token)
        return guide
