"""Sets of characters, and the bytes that write them in UTF-8."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from functools import lru_cache
from itertools import groupby

Ranges = tuple[tuple[int, int], ...]  # of code points, or of bytes: both ends belong to them
# What may come next: (first byte, last byte, what follows; None at the end of a character). Alike are equal.
Steps = tuple[tuple[int, int, "Steps | None"], ...]

LAST = sys.maxunicode
_NO_CHARACTERS = (0xD800, 0xDFFF)  # halves of pairs in UTF-16, which UTF-8 does not write
_LENGTHS = ((0x00, 0x7F), (0x80, 0x7FF), (0x800, 0xFFFF), (0x10000, LAST))  # of one to four bytes


def merged(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """The same set in ascending ranges with gaps between them."""
    kept: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if kept and low <= kept[-1][1] + 1:
            kept[-1] = (kept[-1][0], max(high, kept[-1][1]))
        else:
            kept.append((low, high))
    return tuple(kept)


def complement(ranges: Ranges) -> Ranges:
    """All other code points; `ranges` as `merged` gives them."""
    lows = [0, *(high + 1 for _, high in ranges)]
    highs = [*(low - 1 for low, _ in ranges), LAST]
    return tuple((low, high) for low, high in zip(lows, highs, strict=True) if low <= high)


@lru_cache(maxsize=16)
def characters(belongs: Callable[[str], bool], last: int = LAST) -> Ranges:
    """The code points up to `last` for which a predicate holds. Cost: 0.1 s, once for each."""
    found = (code for code in range(last + 1) if belongs(chr(code)))
    runs = (list(run) for _, run in groupby(enumerate(found), lambda pair: pair[1] - pair[0]))
    return tuple((run[0][1], run[-1][1]) for run in runs)


@lru_cache(maxsize=256)
def utf8(ranges: Ranges) -> Steps:
    """The bytes of a set of characters, as a tree in which no two steps from one place overlap."""
    sequences = [s for low, high in _written(ranges) for s in _sequences(low, high)]
    return _tree(sequences)


def _written(ranges: Ranges) -> Iterable[tuple[int, int]]:
    """The parts of the ranges that are characters, each of one length."""
    kept = [(0, _NO_CHARACTERS[0] - 1), (_NO_CHARACTERS[1] + 1, LAST)]
    for low, high in ranges:
        for first, last in kept:
            for least, most in _LENGTHS:
                start, end = max(low, first, least), min(high, last, most)
                if start <= end:
                    yield start, end


def _sequences(low: int, high: int) -> list[Ranges]:
    """Ranges of bytes, one per place, that together write the characters from `low` to `high`, of one length."""
    for places in range(1, 4):
        block = 1 << 6 * places  # characters that differ in their last `places` bytes alone
        if len(chr(high).encode()) <= places or low // block == high // block:
            break
        if low % block:
            middle = (low // block + 1) * block
            return _sequences(low, middle - 1) + _sequences(middle, high)
        if (high + 1) % block:
            middle = high // block * block
            return _sequences(low, middle - 1) + _sequences(middle, high)
    return [tuple(zip(chr(low).encode(), chr(high).encode(), strict=True))]


def _tree(sequences: list[Ranges]) -> Steps:
    steps: list[tuple[int, int, Steps | None]] = []
    for (low, high), group in groupby(sequences, lambda sequence: sequence[0]):
        rest = [sequence[1:] for sequence in group]
        steps.append((low, high, _tree(rest) if rest[0] else None))
    return tuple(steps)
