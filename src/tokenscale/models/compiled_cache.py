"""A clean cache in buffers of few sizes, so that a compiled step meets few shapes.

Rows of a buffer are a power of two, columns come in steps of at most half: what a graph was made for
serves many batches. Buffers that a run has given back are handed out again, at the address that CUDA
graphs were recorded with.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from tokenscale.models.clean_cache import CleanCache, CleanLayer, Frame

COLUMN_BLOCK = 256


def batch_bucket(count: int) -> int:
    """The next power of two: 1, 2, 4, 8, ..."""
    return 1 << (count - 1).bit_length()


def row_bucket(rows: int) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, ...: powers of two and what lies half way between them."""
    power = batch_bucket(rows)
    return power // 4 * 3 if rows <= power // 4 * 3 else power


def column_bucket(columns: int) -> int:
    """The next of 256, 512, 768, 1024, 1536, 2048, 3072, ..."""
    return COLUMN_BLOCK * row_bucket(-(-columns // COLUMN_BLOCK))


class Pool:
    """Buffers that nobody uses, by what they were made for; the oldest go where they hold more than was ever in use."""

    def __init__(self) -> None:
        self._free: OrderedDict[Hashable, list[tuple[Tensor, Tensor]]] = OrderedDict()
        self.used_bytes, self.most_bytes, self.free_bytes = 0, 0, 0

    def take(self, place: int, keys: tuple[int, ...], values: tuple[int, ...], like: Tensor) -> Lease:
        """Zeroed keys and values of these shapes for layer `place`, of the type and device of `like`."""
        key = (place, keys, values, like.dtype, like.device)
        waiting = self._free.get(key)
        if waiting:
            buffers = waiting.pop()
            self.free_bytes -= _bytes(buffers)
            for buffer in buffers:
                buffer.zero_()
        else:
            buffers = (like.new_zeros(keys), like.new_zeros(values))
            for buffer in buffers:
                torch._dynamo.mark_static_address(buffer, guard=False)
        self.used_bytes += _bytes(buffers)
        self.most_bytes = max(self.most_bytes, self.used_bytes)
        return Lease(self, key, buffers)

    def give(self, key: Hashable, buffers: tuple[Tensor, Tensor]) -> None:
        """Buffers that can be handed out again."""
        self.used_bytes -= _bytes(buffers)
        self.free_bytes += _bytes(buffers)
        self._free.setdefault(key, []).append(buffers)
        self._free.move_to_end(key)
        while self.free_bytes > self.most_bytes:
            oldest = next(key for key, waiting in self._free.items() if waiting)
            self.free_bytes -= _bytes(self._free[oldest].pop())

    def clear(self) -> None:
        """Frees what nobody uses."""
        self._free.clear()
        self.free_bytes, self.most_bytes = 0, self.used_bytes


def _bytes(buffers: tuple[Tensor, Tensor]) -> int:
    return sum(buffer.nbytes for buffer in buffers)


class Lease:
    """Keys and values of one layer, which go back to their pool when the lease is dropped."""

    def __init__(self, pool: Pool, key: Hashable, buffers: tuple[Tensor, Tensor]) -> None:
        self._pool, self._key, self.buffers = pool, key, buffers

    def __del__(self) -> None:
        self._pool.give(self._key, self.buffers)


class StaticLayer(CleanLayer):
    """A layer whose buffers are of bucketed sizes, from a pool."""

    def __init__(self, frame: Frame, pool: Pool, place: int) -> None:
        super().__init__(frame)
        self._pool, self._place = pool, place
        self._views: dict[int, tuple[Tensor, Tensor]] = {}

    def allocate(self, rows: int, columns: int, keys: Tensor, values: Tensor) -> None:
        size = batch_bucket(rows), column_bucket(columns)
        shapes = [(size[0], b.shape[1], size[1], b.shape[3]) for b in (keys, values)]
        self._lease = self._pool.take(self._place, shapes[0], shapes[1], keys)
        self.keys, self.values = self._lease.buffers
        self._views = {}
        self.is_initialized = True

    def pick(self, rows: Sequence[int]) -> None:
        index = torch.tensor(rows, device=self.keys.device)
        old = self.keys, self.values
        self.allocate(len(rows), old[0].shape[2], *old)
        for new, kept in zip((self.keys, self.values), old, strict=True):
            new[: len(rows)] = kept.index_select(0, index)

    def views(self, rows: int) -> tuple[Tensor, Tensor]:
        """The first rows of the buffers: the same tensors whenever it is asked, at an address that does not change."""
        if rows not in self._views:
            pair = self.keys[:rows], self.values[:rows]
            for view in pair:
                torch._dynamo.mark_static_address(view, guard=False)
            self._views[rows] = pair
        return self._views[rows]


class StaticCache(CleanCache):
    """All layers in bucketed buffers. What is done between steps is done as in any clean cache."""

    layers: list[StaticLayer]

    def __init__(self, cache: CleanCache, pool: Pool, room: int) -> None:
        """The rows of another cache that holds keys, with room for so many columns more."""
        super().__init__(0, cache.frame.rows)
        frame, theirs = self.frame, cache.frame
        self.layers = [StaticLayer(frame, pool, place) for place in range(len(cache.layers))]
        used = slice(theirs.start, theirs.width)
        for layer, other in zip(self.layers, cache.layers, strict=True):
            layer.allocate(frame.rows, theirs.span + room, other.keys, other.values)
            for new, kept in ((layer.keys, other.keys), (layer.values, other.values)):
                new[: frame.rows, :, : theirs.span] = kept[: frame.rows, :, used]
        self.first = [column - theirs.start for column in cache.first]
        frame.width = theirs.span

    @property
    def columns(self) -> int:
        """Columns of the buffers."""
        return int(self.layers[0].keys.shape[2])
