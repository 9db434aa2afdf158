"""What the machine can do at most: bytes it reads per second, and floating-point operations of one large product.

Bandwidth is that of reading an array far larger than the caches, once, by a reduction on a stated number of
threads. A matrix product would say less: its kernels wait for more than memory.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from tokenscale.bench.clock import interleaved

MEGABYTES = 400  # per thread
ROUNDS = 5
PRODUCT = 1536  # rows and columns of the product
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Limits:
    """`bytes_per_second` is the best of `ways` (all in bytes per second), of which `way` is the name."""

    threads: int
    way: str
    bytes_per_second: float
    flops_per_second: float
    ways: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def seconds(self, read: float, flops: float = 0.0) -> float:
        """What a forward takes at least that reads so many bytes and does so many FLOPs."""
        return max(read / self.bytes_per_second, flops / self.flops_per_second)


def measured(
    threads: int,
    dtype: torch.dtype,
    megabytes: int = MEGABYTES,
    rounds: int = ROUNDS,
    device: torch.device = CPU,
) -> Limits:
    """The limits of this machine with so many threads, or of another device; the product is of `dtype`."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ways = _read(threads, megabytes, rounds) if device.type == "cpu" else _read_on(device, megabytes, rounds)
        size = min(PRODUCT, 64 * megabytes)
        a = torch.randn(size, size, device=device).to(dtype)
        seconds = min(interleaved({"product": partial(torch.mm, a, a)}, rounds)["product"])
    finally:
        torch.set_num_threads(before)
    way = max(ways, key=lambda name: ways[name])
    return Limits(threads, way, ways[way], 2.0 * size**3 / seconds, ways)


def _read(threads: int, megabytes: int, rounds: int) -> dict[str, float]:
    """Bytes per second of the fastest round, for each way of reading."""
    array = np.ones(threads * megabytes * 250_000, np.float32)
    slices = np.split(array, threads)
    tensors = [torch.from_numpy(part) for part in slices]
    whole = torch.from_numpy(array)
    with ThreadPoolExecutor(threads) as pool:

        def side_by_side(function: Callable[[Any], Any], parts: list[Any]) -> Callable[[], object]:
            return lambda: list(pool.map(function, parts))

        arms = {
            "torch.sum of the whole": lambda: torch.sum(whole),
            "torch.sum, a slice a thread": side_by_side(torch.sum, tensors),
            "torch.amax, a slice a thread": side_by_side(torch.amax, tensors),
            "numpy.max, a slice a thread": side_by_side(np.max, slices),
        }
        seconds = interleaved(arms, rounds)
    return {name: array.nbytes / min(values) for name, values in seconds.items()}


def _read_on(device: torch.device, megabytes: int, rounds: int) -> dict[str, float]:
    """The same on a device that is not the processor."""
    array = torch.ones(megabytes * 250_000, device=device)
    seconds = interleaved({"torch.sum": lambda: torch.sum(array)}, rounds)
    return {name: array.nbytes / min(values) for name, values in seconds.items()}
