"""The kinds of answers: how each is read in a box, at a place where it is announced, and in a text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from tokenscale.core.errors import unknown
from tokenscale.sequence_level.answers import choices, latex, numbers
from tokenscale.sequence_level.answers.places import last_boxes, last_places
from tokenscale.sequence_level.answers.text import last_line, normal_text, text_at, unwrapped


@dataclass(frozen=True)
class Kind:
    """How one kind of answer is read, after `prepare` has rewritten the text: in a box, at a place, in a text."""

    prepare: Callable[[str], str]
    in_box: Callable[[str], str | None]
    at: Callable[[str, int], str | None]
    in_text: Callable[[str], str | None]

    def read(self, text: str) -> str | None:
        """The value that the first rule finds."""
        return next((found for found in self._found(self.prepare(text)) if found is not None), None)

    def _found(self, text: str) -> Iterator[str | None]:
        yield from map(self.in_box, last_boxes(text))
        yield from (self.at(text, place) for place in last_places(text))
        yield self.in_text(text)


def _as_it_is(text: str) -> str:
    return text


_MATH = Kind(_as_it_is, latex.normal_math, latex.math_at, latex.math_in_text)
KINDS: Mapping[str, Kind] = {
    "number": Kind(numbers.prepare, numbers.last_number, numbers.number_at, numbers.last_number),
    "letter": Kind(unwrapped, choices.letter_in_box, choices.letter_at, choices.letter_in_text),
    "boolean": Kind(unwrapped, choices.boolean_in_box, choices.boolean_at, choices.boolean_in_text),
    "text": Kind(_as_it_is, normal_text, text_at, last_line),
    "math": _MATH,
    # Read alike, and compared by math-verify: see `equality`.
    "math-verify": _MATH,
}


def find_kind(name: str) -> Kind:
    """A kind by its name. Raises UnknownNameError."""
    kind = KINDS.get(name)
    if kind is None:
        raise unknown("kind of answer", name, KINDS)
    return kind
