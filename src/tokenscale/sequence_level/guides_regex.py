"""Regular expressions in Python's syntax as nondeterministic automata over bytes."""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Sequence
from typing import Any

from tokenscale.core.errors import ArgumentError
from tokenscale.sequence_level.guides_utf8 import LAST, Ranges, Steps, characters, complement, merged, utf8

MOST_STATES = 200_000
_FLAGS = re.UNICODE | re.ASCII | re.DOTALL | re.VERBOSE
_CATEGORIES = {
    "digit": str.isdecimal,
    "space": str.isspace,
    "word": lambda character: character.isalnum() or character == "_",
}
# What no automaton knows: the name of the parsed node, how it is written, and the fix.
_BEYOND = {
    "ASSERT": (r"\(\?<?[=!]", "write it without looking ahead or behind"),
    "GROUPREF": (r"\\[1-9]|\(\?P=|\(\?\(", "write the text again instead of referring to it"),
    "AT": (r"(?<!\[)\^|\$|\\[AbBZ]", "leave it out: the whole text is matched from end to end"),
    "POSSESSIVE_REPEAT": (r"[*+?}]\+", "leave the + out: the whole text is matched anyway"),
    "ATOMIC_GROUP": (r"\(\?>", "write (?:...): the whole text is matched anyway"),
    "FLAG": (r"\(\?[a-zA-Z]*[iLm]", "write both cases, as in [yY]es, and lines with \\n"),
}


class Regex:
    """An automaton with a way for every text that `re.fullmatch` takes.

    `steps[state]` are (first byte, last byte, next state), `free[state]` the states that are reached
    without a byte; `start` and `end` are states. Raises ArgumentError, with the place, for what is no
    regular expression or cannot be one automaton. `owner` is what errors call it.
    """

    def __init__(self, pattern: str, owner: str) -> None:
        self._pattern, self._owner = pattern, owner
        self.steps: list[list[tuple[int, int, int]]] = []
        self.free: list[list[int]] = []
        parsed = self._parse()
        flags = parsed.state.flags
        self._check_flags(flags)
        self.start = self._state()
        self.end = self._sequence(list(parsed), self.start, flags, True, True)

    def _parse(self) -> Any:
        parser: Any = importlib.import_module("re._parser")  # what `re` itself reads patterns with
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return parser.parse(self._pattern)
        except (re.error, OverflowError, RecursionError) as error:
            message = f"{self._owner} is no regular expression: {getattr(error, 'msg', error)}"
            place = shown_place(self._pattern, getattr(error, "pos", None) or 0)
            raise ArgumentError(f"{message}, {place}", "write it in the syntax of Python's re") from None

    def _state(self) -> int:
        if len(self.steps) >= MOST_STATES:
            message = f"{self._owner} makes an automaton of more than {MOST_STATES} states: {self._pattern!r:.200}"
            raise ArgumentError(message, "repeat less often: {0,200} instead of {0,100000}")
        self.steps.append([])
        self.free.append([])
        return len(self.steps) - 1

    def _sequence(self, nodes: Sequence[tuple[Any, Any]], at: int, flags: int, first: bool, last: bool) -> int:
        """Adds `nodes` behind the state `at`; `first` and `last`: nothing stands before and behind them."""
        for place, (kind, value) in enumerate(nodes):
            ends = (first and place == 0, last and place == len(nodes) - 1)
            at = self._node(str(kind), value, at, flags, *ends)
        return at

    def _node(self, kind: str, value: Any, at: int, flags: int, first: bool, last: bool) -> int:
        if kind in ("LITERAL", "NOT_LITERAL", "ANY", "IN"):
            return self._character(utf8(_set(kind, value, flags)), at)
        if kind == "SUBPATTERN":
            _, added, removed, nodes = value
            self._check_flags(added)
            return self._sequence(list(nodes), at, (flags | added) & ~removed, first, last)
        if kind == "BRANCH":
            end = self._state()
            for nodes in value[1]:
                self.free[self._sequence(list(nodes), self._step(at), flags, first, last)].append(end)
            return end
        if kind in ("MAX_REPEAT", "MIN_REPEAT"):
            least, most, nodes = value
            return self._repeat(least, most, list(nodes), at, flags)
        outside = (first and str(value).startswith("AT_BEGINNING")) or (last and str(value).startswith("AT_END"))
        if kind == "AT" and outside:
            return at
        raise self._beyond(kind)

    def _step(self, at: int) -> int:
        """A new state that is reached from `at` without a byte."""
        state = self._state()
        self.free[at].append(state)
        return state

    def _repeat(self, least: int, most: Any, items: list[tuple[Any, Any]], at: int, flags: int) -> int:
        for _ in range(least):
            at = self._sequence(items, at, flags, False, False)
        if str(most) == "MAXREPEAT":
            again = self._step(at)
            self.free[self._sequence(items, self._step(again), flags, False, False)].append(again)
            return self._step(again)
        ends = [at]
        for _ in range(int(most) - least):
            ends.append(self._sequence(items, ends[-1], flags, False, False))
        end = self._step(ends.pop())
        for state in ends:
            self.free[state].append(end)
        return end

    def _character(self, steps: Steps, at: int) -> int:
        end = self._state()
        made: dict[Steps | None, int] = {None: end}
        self._spell(steps, at, made)
        return end

    def _spell(self, steps: Steps, at: int, made: dict[Steps | None, int]) -> None:
        for low, high, rest in steps:
            if rest not in made:
                made[rest] = self._state()
                assert rest is not None
                self._spell(rest, made[rest], made)
            self.steps[at].append((low, high, made[rest]))

    def _check_flags(self, flags: int) -> None:
        if flags & ~_FLAGS:
            raise self._beyond("FLAG")

    def _beyond(self, kind: str) -> ArgumentError:
        written, fix = _BEYOND[kind.replace("ASSERT_NOT", "ASSERT").replace("_EXISTS", "").replace("_IGNORE", "")]
        found = re.search(rf"(?<!\\)(?:\\\\)*({written})", self._pattern)
        place = shown_place(self._pattern, found.start(1) if found else 0)
        return ArgumentError(f"{self._owner} has {found[1] if found else kind!r}, {place}", fix)


def _set(kind: str, value: Any, flags: int) -> Ranges:
    """The code points of one node that stands for a character."""
    if kind == "LITERAL":
        return ((value, value),)
    if kind == "NOT_LITERAL":
        return complement(((value, value),))
    if kind == "ANY":
        return ((0, LAST),) if flags & re.DOTALL else complement(((10, 10),))
    ranges: list[tuple[int, int]] = []
    negated = False
    for name, member in value:
        if str(name) == "NEGATE":
            negated = True
        elif str(name) == "RANGE":
            ranges.append(member)
        elif str(name) == "CATEGORY":
            ranges += _category(str(member).removeprefix("CATEGORY_").lower(), flags)
        else:
            ranges.append((member, member))
    return complement(merged(ranges)) if negated else merged(ranges)


def _category(name: str, flags: int) -> Ranges:
    last = 127 if flags & re.ASCII else LAST
    ranges = characters(_CATEGORIES[name.removeprefix("not_")], last)
    if flags & re.ASCII and name.endswith("space"):
        ranges = merged((ord(c), ord(c)) for c in " \t\n\r\f\v")  # without the separators 28 to 31
    return complement(ranges) if name.startswith("not_") else ranges


def shown_place(pattern: str, place: int) -> str:
    """Where in a pattern something is: the character's number, the text around it, and a caret below."""
    first = max(0, place - 40)
    shown = "".join(c if c.isprintable() else " " for c in pattern[first : first + 80])
    return f"at character {place + 1}\n  {shown}\n  {' ' * (place - first)}^"
