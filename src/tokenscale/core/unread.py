"""Logits that are computed when they are read, so that rows x vocabulary need not be held."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

LOGITS_BYTES = 2**26  # of one float32 copy; arithmetic on it holds up to four

ALL = slice(None)


class Unread(ABC):
    """Logits [batch, rows, vocab] that are not there yet. Reading a part costs its product with lm_head, each time."""

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """(batch, rows, vocab)."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the logits will be."""

    @abstractmethod
    def read(self) -> Float[Tensor, "batch rows vocab"]:
        """All of them, float32 and raw."""

    @abstractmethod
    def part(self, sequences: slice, rows: slice) -> Unread:
        """Those of some sequences and rows."""

    @abstractmethod
    def at(self, places: Int[Tensor, " some"]) -> Unread:
        """The sequences at `places`."""

    @abstractmethod
    def in_rows(self, n: int) -> Unread:
        """n neighbouring sequences of one row each become n rows of one sequence."""


Logits = Tensor | Unread


class Reads:
    """A dataclass whose first field, `logits`, may be given as `Unread`: it is computed when first read, and kept."""

    _unread: Unread | None = None

    @classmethod
    def of(cls, logits: Logits, *others: Any) -> Self:
        """One of these logits and the other fields, in their order."""
        if isinstance(logits, Tensor):
            return cls(logits, *others)  # type: ignore[call-arg]
        made = object.__new__(cls)
        names = [field.name for field in fields(cls)][1:]  # type: ignore[arg-type]
        for name, value in [("_unread", logits), *zip(names, others, strict=False)]:
            object.__setattr__(made, name, value)
        return made

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name != "logits" or self._unread is None:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            object.__setattr__(self, "logits", self._unread.read())
            return self.logits

    @property
    def held(self) -> Logits:
        """The logits as they are: read, or unread."""
        found: Logits | None = self.__dict__.get("logits", self._unread)
        assert found is not None, "made with logits, or of unread ones"
        return found


def cut(logits: Logits, sequences: slice, rows: slice) -> Logits:
    """Those of some sequences and rows, in the same memory."""
    return logits[sequences, rows] if isinstance(logits, Tensor) else logits.part(sequences, rows)


def in_rows(logits: Logits, n: int) -> Logits:
    """n neighbouring sequences of one row each become n rows of one sequence."""
    if isinstance(logits, Tensor):
        return logits.view(-1, n, logits.shape[-1])
    return logits.in_rows(n)


def at_places(logits: Logits, places: Int[Tensor, " some"]) -> Logits:
    """The sequences at `places`."""
    places = places.to(logits.device)
    return logits[places] if isinstance(logits, Tensor) else logits.at(places)


def too_large(shape: torch.Size | tuple[int, ...]) -> bool:
    """Whether logits of a shape should not be held at once."""
    batch, rows, vocab = shape
    return 4 * batch * rows * vocab > LOGITS_BYTES
