"""Counter-based randomness: every draw is a pure function of a stream and of where it is used.

A `Stream` is a path (seed, prompt key, i, j, ...). Its 128-bit key and a domain select a Philox
4x64 generator (Salmon et al. 2011); the counter starts at the block of positions that is asked
for. So a draw depends on nothing but (path, domain, position, index): not on the batch, the
order of problems, a resume, or the number of workers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

TOKEN_DOMAIN = 1
ROUTING_DOMAIN = 2
DROPOUT_DOMAIN = 3
CHECK_DOMAIN = 4
UNIFORMS_PER_BLOCK = 256
MAX_POSITIONS_PER_BLOCK = 16
NUMBERS_PER_BLOCK_ROW = 2**15


@dataclass(frozen=True)
class Stream:
    """A path that names one source of random numbers; `child` extends it by one level.

    Parts are integers and strings; equal paths give equal draws, everywhere.
    """

    path: tuple[int | str, ...]

    def child(self, part: int | str) -> Stream:
        return Stream((*self.path, part))

    @cached_property
    def key(self) -> NDArray[np.uint64]:
        """128 bits: the blake2b hash of the path, whose parts keep their types."""
        plain = tuple(str(part) if isinstance(part, str) else int(part) for part in self.path)
        digest = hashlib.blake2b(repr(plain).encode(), digest_size=16).digest()
        return np.frombuffer(digest, dtype=np.uint64)

    def generator(self, domain: int, block: int) -> np.random.Generator:
        """numpy's generator at the start of `block` of `domain`; costs about 10 microseconds."""
        return np.random.Generator(np.random.Philox(key=self.key, counter=[0, block, domain, 0]))


class UniformReader:
    """One uniform number in [0, 1), float64, per (stream, position); read in blocks of 256."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._block = -1
        self._values: NDArray[np.float64] = np.empty(0)

    def at(self, position: int) -> float:
        block, offset = divmod(position, UNIFORMS_PER_BLOCK)
        if block != self._block:
            self._values = self._stream.generator(TOKEN_DOMAIN, block).random(UNIFORMS_PER_BLOCK)
            self._block = block
        return float(self._values[offset])


class RowNoiseReader:
    """Uniform float32 numbers for `rows` x `layers` x `units` at one position of one stream and domain.

    Rows are laid out first, so the rows of n = 4 are the first four of n = 8. Positions come in
    blocks whose length depends on the model alone, so that one call serves several steps.
    """

    def __init__(self, stream: Stream, domain: int, rows: int, layers: int, units: int) -> None:
        self._stream, self._domain = stream, domain
        self._shape = (rows, layers, units)
        self._positions = min(MAX_POSITIONS_PER_BLOCK, max(1, NUMBERS_PER_BLOCK_ROW // (layers * units)))
        self._block = -1
        self._values: NDArray[np.float32] = np.empty(0, np.float32)

    def at(self, position: int) -> NDArray[np.float32]:
        """Shape [rows, layers, units]; a view of the block that is held."""
        block, offset = divmod(position, self._positions)
        if block != self._block:
            rows, layers, units = self._shape
            generator = self._stream.generator(self._domain, block)
            self._values = generator.random((rows, self._positions, layers, units), dtype=np.float32)
            self._block = block
        return self._values[:, offset]


def gumbel(uniforms: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Standard Gumbel noise -log(-log(1 - u)), in float32 and always finite.

    u is a multiple of 2^-24, so the exponential -log(1 - u) is 0 once in 16.8 million draws;
    2^-25 stands for it there, which caps the noise at 17.3.
    """
    exponential = torch.log1p(-uniforms.float()).neg_().clamp_min_(2.0**-25)
    return exponential.log_().neg_()


def read_uniforms(readers: Sequence[UniformReader], positions: Sequence[int]) -> Float[Tensor, " batch"]:
    """One float64 uniform per reader, at its own position."""
    return torch.tensor([r.at(p) for r, p in zip(readers, positions, strict=True)], dtype=torch.float64)


def prompt_key(token_ids: Sequence[int], occurrence: int) -> str:
    """The stream part of a prompt without an id of its own: the hash of its ids, and which repeat it is.

    Equal prompts in one call so get different draws.
    """
    digest = hashlib.blake2b(np.asarray(token_ids, dtype=np.int64).tobytes(), digest_size=8).hexdigest()
    return f"{digest}#{occurrence}"
