"""Segments kept for later prompts: what a prompt has in common with an earlier one is not run again."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from tokenscale.models.segments import Chain, Segment, cut

Ids = tuple[int, ...]
MOST_BYTES = 512 * 2**20  # of keys and values that no sequence uses any more
LEAST_SHARED = 16  # tokens: for fewer, a segment of their own is not worth its reading


@dataclass
class PrefixCache:
    """Segments by the token ids that lead to their ends; the least recently used go first.

    `most_bytes` bounds the keys and values held, those that sequences in a batch still read included.
    """

    most_bytes: int = MOST_BYTES
    bytes: int = 0
    _sorted: list[Ids] = field(default_factory=list)
    _segments: OrderedDict[Ids, Segment] = field(default_factory=OrderedDict)

    def longest(self, ids: Sequence[int]) -> Chain:
        """The chain of the longest beginning of `ids` that is held; empty where it is shorter than LEAST_SHARED."""
        asked = tuple(ids)
        place = bisect_left(self._sorted, asked)
        best, most = None, 0
        # The longest common beginning is found beside a sequence's place in sorted order.
        for other in self._sorted[max(place - 1, 0) : place + 1]:
            common = shared(other, asked)
            if common > most:
                best, most = other, common
        if best is None or (most < LEAST_SHARED and most < len(asked)):
            return ()
        self._use(self._segments[best])
        return cut(self._segments[best], most)

    def keep(self, segment: Segment) -> None:
        """Holds a segment, and lets others go until all fit.

        One behind a segment that is not held is not held either: it would keep memory that is not counted.
        """
        apart = any(self._segments.get(before.ids) is not before for before, _ in segment.before)
        if apart or segment.ids in self._segments or segment.kv_bytes > self.most_bytes:
            return
        insort(self._sorted, segment.ids)
        self._segments[segment.ids] = segment
        self.bytes += segment.kv_bytes
        self._use(segment)
        while self.bytes > self.most_bytes:
            self._drop(next(iter(self._segments)))

    def clear(self) -> None:
        """Lets all go."""
        for ids in list(self._segments):
            self._drop(ids)

    def _use(self, segment: Segment) -> None:
        """The segments before it count as used after it, so that none goes while one behind it is held."""
        for one in (segment, *(before for before, _ in reversed(segment.before))):
            self._segments.move_to_end(one.ids)

    def _drop(self, ids: Ids) -> None:
        self.bytes -= self._segments.pop(ids).kv_bytes
        del self._sorted[bisect_left(self._sorted, ids)]


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens of the longest common beginning."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def headers(prompts: Sequence[Ids]) -> list[Ids]:
    """The beginnings that several of the prompts share, of at least LEAST_SHARED tokens; none is part of another's.

    Neighbours in sorted order share the most. A run of them shares one header, until a neighbour would halve it.
    """
    found: list[Ids] = []
    common, run = 0, list[Ids]()
    for prompt in sorted(set(prompts)):
        together = min(common, shared(run[-1], prompt)) if len(run) > 1 else shared(run[-1], prompt) if run else 0
        if run and together >= max(LEAST_SHARED, common // 2):
            common, run = together, [*run, prompt]
            continue
        if len(run) > 1:
            found.append(run[0][:common])
        common, run = 0, [prompt]
    if len(run) > 1:
        found.append(run[0][:common])
    return found
