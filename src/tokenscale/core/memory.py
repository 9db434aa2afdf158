"""How much memory is free, how many tokens' keys and values fit in it, and how to tell that it has run out."""

from __future__ import annotations

import gc
import resource
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch

# Of what is free, the share that caches may take. The rest is for logits, for activations, and for the room that
# buffers keep ahead of their tokens, a quarter of what they hold.
CACHE_SHARE = 0.5
SAID = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "alloc_failed",
)
PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def out_of_memory(error: BaseException) -> str | None:
    """What an error says of memory that has run out, in one line; None where it is about something else.

    torch raises OutOfMemoryError for a GPU and a plain RuntimeError for a CPU, numpy and Python MemoryError.
    """
    text = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return text
    told = isinstance(error, RuntimeError) and any(said in str(error).lower() for said in SAID)
    return text if told else None


def release() -> None:
    """Gives back what a failed step left behind: cycles that hold tensors, and what torch keeps of a GPU."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def tokens_that_fit(devices: Mapping[torch.device, float], bytes_per_token: float) -> int | None:
    """Tokens whose keys and values take CACHE_SHARE of the free memory; None where that is not known.

    `devices` are those that caches lie on, with the share of a token's bytes that each of them stores. The
    answer is at least 1, and the least of all devices'.
    """
    found = [(free_bytes(device), share * bytes_per_token) for device, share in devices.items()]
    if not found or any(free is None or size <= 0 for free, size in found):
        return None
    return max(1, min(int(CACHE_SHARE * free / size) for free, size in found if free is not None))


def free_bytes(device: torch.device) -> int | None:
    """Memory that a device can still give to this process; None where the system does not say."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    if device.type != "cpu" or sys.platform != "linux":
        return None
    known = [left for left in (_available(), _address_space(), *_cgroups()) if left is not None]
    return max(0, min(known)) if known else None


def _available() -> int | None:
    """What the system can give without swapping."""
    with suppress(OSError, ValueError, IndexError):
        for line in (PROC / "meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _address_space() -> int | None:
    """What the process may still map (`ulimit -v`)."""
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most == resource.RLIM_INFINITY:
        return None
    with suppress(OSError, ValueError, IndexError):
        return most - int((PROC / "self" / "statm").read_text().split()[0]) * resource.getpagesize()
    return None


def _cgroups() -> list[int]:
    """What is left in each control group around the process, of either version, that has a limit."""
    found: list[int] = []
    with suppress(OSError):
        for line in (PROC / "self" / "cgroup").read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            if not kinds:
                found += _left(CGROUPS, path, "memory.max", "memory.current")
            elif "memory" in kinds.split(","):
                found += _left(CGROUPS / "memory", path, "memory.limit_in_bytes", "memory.usage_in_bytes")
    return found


def _left(root: Path, path: str, most: str, used: str) -> list[int]:
    """Of a group and all groups above it. Files that the system would give up (its page cache) are not used."""
    parts = [part for part in path.split("/") if part not in ("", "..")]
    found = []
    for end in range(len(parts) + 1):
        folder = root.joinpath(*parts[:end])
        with suppress(OSError, ValueError):  # "max", and groups that a container does not see
            limit, held = int((folder / most).read_text()), int((folder / used).read_text())
            found.append(limit - held + _inactive_file(folder))
    return found


def _inactive_file(folder: Path) -> int:
    with suppress(OSError, ValueError, IndexError):
        for line in (folder / "memory.stat").read_text().splitlines():
            if line.split()[0] in ("inactive_file", "total_inactive_file"):
                return int(line.split()[1])
    return 0
