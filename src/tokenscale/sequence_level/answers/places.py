r"""Where the answer of a text stands: in a box, behind a mark, behind words that announce it."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TypeVar

_T = TypeVar("_T")
# A model that repeats itself names ten thousand places, or lines; the last ones are tried.
LAST = 64

_BRACE = re.compile(r"\\boxed\s{0,8}\{|\\.|[{}]", re.DOTALL)
_MARK = re.compile(r"#{4}\s{0,8}")
_SAYS = re.compile(
    r"(?i:answer)(?i:\s(?:to|for|of)\s[^.\n]{0,80}?)?[*_]{0,3}"
    r"(?:\s{1,8}(?i:is|would be|should be|must be|will be)\b(?:\s{0,8}:)?|\s{0,8}[:=\uff1a])[*_]{0,3}"
    r"|\u7b54\u6848(?:\u662f|\u4e3a|\s?[:\uff1a])"
)


def boxed(text: str) -> list[str]:
    r"""The contents of every complete `\boxed{...}` that is in no other, in order."""
    return [text[start:end] for start, end in _boxes(text)]


def last_boxes(text: str) -> Iterator[str]:
    """The contents of the last boxes, the last one first."""
    return (text[start:end] for start, end in _last(_boxes(text)))


def last_places(text: str) -> Iterator[int]:
    """Where an answer may begin: behind the marks `####`, then behind "the answer is"; each from the last one on."""
    for rule in (_MARK, _SAYS):
        yield from _last(match.end() for match in rule.finditer(text))


def last_match(rule: re.Pattern[str], text: str) -> re.Match[str] | None:
    """The last match of a rule in a text."""
    return next(_last(rule.finditer(text)), None)


def _last(items: Iterable[_T]) -> Iterator[_T]:
    """The last items, the last one first."""
    return reversed(deque(items, LAST))


def _boxes(text: str) -> list[tuple[int, int]]:
    open_braces: list[int | None] = []
    spans: list[tuple[int, int]] = []
    for match in _BRACE.finditer(text, max(text.find(r"\boxed"), 0)):
        if match[0] == "}" and open_braces:
            start = open_braces.pop()
            if start is not None:
                spans = _without_inner(spans, start)
                spans.append((start, match.start()))
        elif match[0].endswith("{") and match[0] != r"\{":
            open_braces.append(match.end() if len(match[0]) > 1 else None)
    return spans


def _without_inner(spans: list[tuple[int, int]], start: int) -> list[tuple[int, int]]:
    while spans and spans[-1][0] > start:
        spans.pop()
    return spans
