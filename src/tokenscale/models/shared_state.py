"""The state of a batch whose sequences share their pasts: a chain of segments each, and a tail of its own.

Tails hold what was decoded, and nothing else, in the buffers of a clean cache. So a sequence joins or
leaves a batch, and is forked, without a copy of its prompt's keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tokenscale.core.cost import Prefill
from tokenscale.core.model import State
from tokenscale.models.clean_cache import CleanCache, CleanLayer, CleanState
from tokenscale.models.segments import Chain, Part, length


class TailLayer(CleanLayer):
    """One layer's tails. A forward's keys and values are handed on as they are; `store` keeps row 0's."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        return key_states, value_states

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states[:, :, :1], value_states[:, :, :1])

    def store(self, key_states: Tensor, value_states: Tensor) -> None:
        """Row 0's key and value behind those of the tail; the frame's width is moved when all layers have run."""
        frame = self.frame
        self.keys[: frame.rows, :, frame.width] = key_states[:, :, 0]
        self.values[: frame.rows, :, frame.width] = value_states[:, :, 0]


class TailCache(CleanCache):
    """The tails of all layers; `layer` is the one that a forward has reached, `made` its new keys."""

    layer: int
    made: Tensor | None

    def __init__(self, layers: int, rows: int) -> None:
        super().__init__(layers, rows)
        self.layers = [TailLayer(self.frame) for _ in range(layers)]

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        self.layer, self.made = layer_idx, key_states
        return self.layers[layer_idx].update(key_states, value_states)


class SharedState(CleanState):
    """Tails in a clean cache, and the chain of every sequence."""

    cache: TailCache

    def __init__(self, cache: TailCache, order: list[int], prefills: list[Prefill], chains: list[Chain]) -> None:
        super().__init__(cache, order, prefills)
        self.chains = chains
        self._readings: Readings | None = None

    @property
    def lengths(self) -> list[int]:
        tails = super().lengths
        return [length(chain) + tail for chain, tail in zip(self.chains, tails, strict=True)]

    def select(self, index: Sequence[int]) -> SharedState:
        kept = super().select(index)
        return SharedState(self.cache, kept.order, kept.prefills, [self.chains[i] for i in index])

    def join(self, other: State) -> SharedState:
        assert isinstance(other, SharedState)
        joined = super().join(other)
        return SharedState(self.cache, joined.order, joined.prefills, self.chains + other.chains)

    @property
    def chains_by_row(self) -> list[Chain]:
        """The chains in the order of the buffers' rows."""
        chains: list[Chain] = [()] * len(self.order)
        for row, chain in zip(self.order, self.chains, strict=True):
            chains[row] = chain
        return chains

    def readings(self, window: int | None, column: int) -> Readings:
        """Which segments a step has to read, for whom.

        `window`: the keys that a layer sees, the current token's included; `column` is where that stands or would.
        """
        if window is None:
            if self._readings is None:
                self._readings = Readings.of([[(part, 0) for part in chain] for chain in self.chains_by_row])
            return self._readings
        tails = [column - first for first in self.cache.first]
        seen = []
        for chain, tail in zip(self.chains_by_row, tails, strict=True):
            oldest = length(chain) + tail - window + 1
            begun = [(part, max(0, oldest - part[0].start)) for part in chain]
            seen.append([(part, begin) for part, begin in begun if begin < part[1]])
        return Readings.of(seen)


@dataclass(frozen=True)
class Readings:
    """Parts of segments, each with the sequences that read it.

    Reading r is of `parts[r]` from its token `begin[r]` on, by the sequences `readers[first[r] : first[r + 1]]`.
    `places[place_first[b] : place_first[b + 1]]` are where sequence b stands in `readers`, from the beginning of its
    text on. `pointers[0 or 1, l, r]` are the addresses of layer l's keys and values.
    """

    parts: list[Part]
    begin: NDArray[np.int64]
    end: NDArray[np.int64]
    tokens: NDArray[np.int64]
    first: NDArray[np.int64]
    readers: NDArray[np.int64]
    place_first: NDArray[np.int64]
    places: NDArray[np.int64]
    pointers: NDArray[np.uint64]

    @classmethod
    def of(cls, seen: Sequence[Sequence[tuple[Part, int]]]) -> Readings:
        """`seen[b]`: the parts that sequence b reads, and from which token on."""
        found: dict[tuple[int, int, int], tuple[Part, int, list[int]]] = {}
        for sequence, chain in enumerate(seen):
            for part, begin in chain:
                found.setdefault((id(part[0]), part[1], begin), (part, begin, []))[2].append(sequence)
        parts = [part for part, _, _ in found.values()]
        readers = [reader for _, _, some in found.values() for reader in some]
        places: list[list[int]] = [[] for _ in seen]
        for place, reader in enumerate(readers):
            places[reader].append(place)
        # Segments come in the order in which chains name them, so that a chain's places ascend only if no other
        # chain named its later parts first.
        starts = np.repeat([part[0].start for part in parts], [len(some) for _, _, some in found.values()])
        ordered = [sorted(some, key=lambda place: int(starts[place])) for some in places]
        return cls(
            parts,
            _ints([begin for _, begin, _ in found.values()]),
            _ints([end for _, end in parts]),
            _ints([segment.tokens for segment, _ in parts]),
            _offsets([len(some) for _, _, some in found.values()]),
            _ints(readers),
            _offsets([len(some) for some in ordered]),
            _ints([place for some in ordered for place in some]),
            _pointers(parts),
        )


def _pointers(parts: Sequence[Part]) -> NDArray[np.uint64]:
    if not parts:
        return np.zeros((2, 1, 0), np.uint64)
    return np.ascontiguousarray(np.stack([segment.pointers for segment, _ in parts], -1))


def _ints(values: Sequence[int]) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def _offsets(counts: Sequence[int]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
