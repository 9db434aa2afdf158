"""The clean cache: keys and values of row 0 only, for a batch whose sequences all end in one column.

Buffers have shape [rows, heads, columns, dim]. A sequence occupies one row of them, its last token in
column `width - 1`, its first in column `first[row]`. A step writes the keys of its n query rows into
columns `width ... width + n - 1`, hands attention a view, and then moves `width` by one: row 0 is
already in its place, and the other rows are overwritten by the next step. So nothing is copied in a
step, and memory does not grow with n. Sequences that leave make room for others to join.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from tokenscale.core.cost import Prefill
from tokenscale.core.model import State

COLUMN_BLOCK = 64


@dataclass
class Frame:
    """The part of the buffers in use: rows, and columns from `start` to `width`; shared by all layers."""

    rows: int
    start: int = 0
    width: int = 0

    @property
    def span(self) -> int:
        """Columns that hold keys: the length of the longest sequence."""
        return self.width - self.start


class CleanLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's buffers, in the form that transformers' attention calls."""

    def __init__(self, frame: Frame) -> None:
        super().__init__()
        self.frame = frame

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        columns = _rounded(self.frame.width + key_states.shape[-2])
        self.allocate(self.frame.rows, columns, key_states, value_states)

    def allocate(self, rows: int, columns: int, keys: Tensor, values: Tensor) -> None:
        """Empty buffers for keys and values like the given ones. Zeros, since masked numbers must be finite."""
        self.keys = keys.new_zeros(rows, keys.shape[1], columns, keys.shape[3])
        self.values = values.new_zeros(rows, values.shape[1], columns, values.shape[3])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        frame, end = self.frame, self.frame.width + key_states.shape[-2]
        self.keys[: frame.rows, :, frame.width : end] = key_states
        self.values[: frame.rows, :, frame.width : end] = value_states
        return self.keys[: frame.rows, :, frame.start : end], self.values[: frame.rows, :, frame.start : end]

    def reallocate(self, rows: int, columns: int, lead: int) -> None:
        """New buffers in which the columns in use begin at `lead`."""
        frame, old = self.frame, (self.keys, self.values)
        self.allocate(rows, columns, *old)
        for new, kept in zip((self.keys, self.values), old, strict=True):
            used = kept[: frame.rows, :, frame.start : frame.width]
            new[: frame.rows, :, lead : lead + frame.span] = used

    def pick(self, rows: Sequence[int]) -> None:
        """Buffers that hold the given rows, in that order; a row may be given twice."""
        index = torch.tensor(rows, device=self.keys.device)
        self.keys, self.values = self.keys.index_select(0, index), self.values.index_select(0, index)

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copies whole rows onto others."""
        for buffer in (self.keys, self.values):
            used = buffer[:, :, self.frame.start : self.frame.width]
            if not used.is_cpu:
                used[targets] = used[sources]
                continue
            # One by one, rows are copied in 0.4 of the time that indexing them takes on a CPU (0.1 of long ones).
            for source, target in zip(sources, targets, strict=True):
                used[target].copy_(used[source])

    def take(self, other: CleanLayer, rows: Sequence[int]) -> None:
        """Writes rows of another layer behind this one's, aligned at the last column."""
        place = slice(self.frame.rows, self.frame.rows + len(rows))
        columns = slice(self.frame.width - other.frame.span, self.frame.width)
        used = slice(other.frame.start, other.frame.width)
        self.keys[place, :, columns] = other.keys[rows, :, used]
        self.values[place, :, columns] = other.values[rows, :, used]

    def get_seq_length(self) -> int:
        return self.frame.span

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.frame.span + query_length, 0

    def get_max_length(self) -> int:
        return -1


def _rounded(columns: int) -> int:
    """A capacity a quarter above what is needed, in blocks, so that growing is rare."""
    return -(-(columns + columns // 4) // COLUMN_BLOCK) * COLUMN_BLOCK


class CleanCache(Cache):  # type: ignore[misc]
    """All layers, with `first[row]`, the column of each row's first token."""

    def __init__(self, layers: int, rows: int) -> None:
        self.frame = Frame(rows)
        super().__init__(layers=[CleanLayer(self.frame) for _ in range(layers)])
        self.first = [0] * rows

    @property
    def kv_bytes(self) -> int:
        """Memory that the buffers hold, spare room included."""
        return sum(b.nbytes for layer in self.layers if layer.is_initialized for b in (layer.keys, layer.values))

    @property
    def _filled(self) -> list[CleanLayer]:
        return [layer for layer in self.layers if layer.is_initialized]

    def reserve(self, columns: int) -> None:
        """Makes room for so many more columns; buffers grow only here, between forwards."""
        filled = self._filled
        if filled and self.frame.width + columns > filled[0].keys.shape[2]:
            self._reallocate(filled[0].keys.shape[0], self.frame.span + columns, lead=0)

    def _reallocate(self, rows: int, columns: int, lead: int) -> None:
        for layer in self._filled:
            layer.reallocate(rows, _rounded(columns), lead)
        shift = lead - self.frame.start
        self.first = [column + shift for column in self.first]
        self.frame.start, self.frame.width = lead, lead + self.frame.span

    def commit(self, columns: int) -> None:
        """Keeps the first `columns` of those last written."""
        self.frame.width += columns

    def commit_every(self, rows: int, columns: int) -> None:
        """Keeps `columns` of those last written: the first of every `rows`."""
        kept = self.frame.width + rows * torch.arange(columns)
        place = slice(self.frame.width, self.frame.width + columns)
        for layer in self._filled if rows > 1 else ():
            for buffer in (layer.keys, layer.values):
                buffer[: self.frame.rows, :, place] = buffer[: self.frame.rows, :, kept]
        self.commit(columns)

    def keep(self, rows: Sequence[int]) -> list[int]:
        """Leaves only the given rows, a row as often as it is given; returns where each of them is now.

        Moves as little as it can: rows stay where they are, and only copies and those beyond the end go elsewhere.
        """
        filled = self._filled
        if filled and len(rows) > filled[0].keys.shape[0]:
            return self._fork(rows)
        kept = set(rows)
        holes = iter([row for row in range(len(rows)) if row not in kept])
        places, moves = list[int](), dict[int, int]()
        for row in rows:
            stays = row in kept and row < len(rows)
            kept.discard(row)
            places.append(row if stays else next(holes))
            if not stays:
                moves[places[-1]] = row
        if moves:
            for layer in filled:
                layer.move(list(moves.values()), list(moves))
        first = dict(zip(places, [self.first[row] for row in rows], strict=True))
        self.first = [first[place] for place in range(len(rows))]
        self._shrink(len(rows))
        return places

    def _fork(self, rows: Sequence[int]) -> list[int]:
        """Rows in new buffers."""
        for layer in self._filled:
            layer.pick(rows)
        self.first = [self.first[row] for row in rows]
        self._shrink(len(rows))
        return list(range(len(rows)))

    def _shrink(self, rows: int) -> None:
        self.frame.rows = rows
        self.frame.start = min(self.first, default=self.frame.width)

    def absorb(self, other: CleanCache, rows: Sequence[int]) -> list[int]:
        """Adds rows of another cache behind its own; returns where they are."""
        frame, total, span = self.frame, self.frame.rows + len(rows), other.frame.span
        if other._filled and not self._filled:
            for layer, theirs in zip(self.layers, other.layers, strict=True):
                layer.allocate(total, _rounded(span), theirs.keys, theirs.values)
        if filled := self._filled:
            capacity = filled[0].keys.shape[0]
            if frame.width < span or capacity < total:
                lead = max(span - frame.span, 0)
                self._reallocate(max(total, capacity), lead + frame.span, lead)
        for layer, theirs in zip(self.layers, other.layers, strict=True):
            if theirs.is_initialized:
                layer.take(theirs, rows)
        self.first += [frame.width - (other.frame.width - other.first[row]) for row in rows]
        places = list(range(frame.rows, total))
        self._shrink(total)
        return places


class CleanState(State):
    """A clean cache and where each sequence's row is."""

    def __init__(self, cache: CleanCache, order: list[int], prefills: list[Prefill]) -> None:
        self.cache, self.order, self._prefills = cache, order, prefills

    @property
    def lengths(self) -> list[int]:
        return [self.cache.frame.width - self.cache.first[row] for row in self.order]

    @property
    def prefills(self) -> list[Prefill]:
        return self._prefills

    @property
    def in_order(self) -> bool:
        """Whether sequence b is in row b."""
        return self.order == list(range(len(self.order)))

    def select(self, index: Sequence[int]) -> CleanState:
        order = self.cache.keep([self.order[i] for i in index])
        return CleanState(self.cache, order, [self._prefills[i] for i in index])

    def join(self, other: State) -> CleanState:
        assert isinstance(other, CleanState)
        order = self.order + self.cache.absorb(other.cache, other.order)
        return CleanState(self.cache, order, self._prefills + other._prefills)
