"""Segments: tokens whose keys and values never change, so that all who begin with them read the same memory.

A sequence's past is a chain of segments, from its first token on, and behind it a tail of its own (see
`shared_state.py`). With the clean cache keys and values are a function of the token ids, so a segment
serves every prompt that begins with its tokens, or with some of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tokenscale.core.cost import Packed, Prefill, popcount
from tokenscale.core.shape import ModelShape


@dataclass(frozen=True, eq=False)
class Segment:
    """The last tokens of `ids`, those from `start` on, behind a chain of `before`.

    `keys[l]` and `values[l]` of cache layer l have the shape [kv_heads, tokens, dim] and are contiguous. `ran` are
    the experts that each token ran, as packed bits [tokens, moe_layers, ceil(experts / 8)].
    """

    ids: tuple[int, ...]
    start: int
    before: Chain
    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    ran: Packed
    pointers: NDArray[np.uint64] = field(init=False)

    def __post_init__(self) -> None:
        addresses = [[tensor.data_ptr() for tensor in tensors] for tensors in (self.keys, self.values)]
        object.__setattr__(self, "pointers", np.array(addresses, np.uint64))

    @property
    def tokens(self) -> int:
        return len(self.ids) - self.start

    @property
    def kv_bytes(self) -> int:
        return sum(t.nbytes for tensors in (self.keys, self.values) for t in tensors)


Part = tuple[Segment, int]
"""A segment and how many of its tokens count, from its first on."""
Chain = tuple[Part, ...]


def length(chain: Chain) -> int:
    """Tokens of a chain."""
    return chain[-1][0].start + chain[-1][1] if chain else 0


def cut(segment: Segment, tokens: int) -> Chain:
    """The chain of a segment's first `tokens` tokens, those before it included."""
    if tokens <= segment.start:
        kept = [(part, min(end, tokens - part.start)) for part, end in segment.before if part.start < tokens]
        return tuple(kept)
    return (*segment.before, (segment, tokens - segment.start))


def prefill_of(chain: Chain, shape: ModelShape) -> Prefill:
    """What prefilling all tokens of a chain at once would run."""
    width = -(-shape.experts // 8)
    experts, runs = np.zeros((shape.moe_layers, width), np.uint8), 0
    for segment, end in chain:
        experts |= np.bitwise_or.reduce(segment.ran[:end], axis=0)
        runs += popcount(segment.ran[:end])
    return Prefill(experts, runs)
