"""What a problem's caches hold already: which tokens of a new prompt need no prefill."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

Ids = tuple[int, ...]


@dataclass
class Held:
    """Token sequences whose keys and values stand in caches, by the model and source they belong to.

    Of a sequence all tokens but the last are cached: the last was chosen, or is stepped next. Costs two
    comparisons per question, since a longest common prefix is found beside its place in sorted order.
    """

    _sequences: dict[Hashable, list[Ids]] = field(default_factory=dict)

    def add(self, owner: Hashable, ids: Ids) -> None:
        """Notes a sequence."""
        insort(self._sequences.setdefault(owner, []), ids)

    def of(self, owner: Hashable, prompt: Ids) -> tuple[int, int]:
        """(tokens of a prompt that are known, those of them that are cached)."""
        sequences = self._sequences.get(owner, [])
        place = bisect_left(sequences, prompt)
        known, cached = 0, 0
        for other in sequences[max(place - 1, 0) : place + 1]:
            common = _common(other, prompt)
            known, cached = max(known, common), max(cached, min(common, len(other) - 1))
        return known, cached


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
