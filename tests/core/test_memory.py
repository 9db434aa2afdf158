"""Free memory as the system tells it, and errors that say that there is none."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tokenscale.core import memory
from tokenscale.core.memory import CACHE_SHARE, free_bytes, out_of_memory, tokens_that_fit

CPU = torch.device("cpu")
linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc and control groups are Linux's")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes the files of a machine; without any, nothing is known."""
    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory.resource, "getrlimit", lambda which: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def write(files: dict[str, str]) -> None:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return write


@linux
def test_what_no_file_says_is_not_known(machine: Any) -> None:
    assert free_bytes(CPU) is None
    machine({"proc/meminfo": "MemTotal: nonsense\n", "proc/self/cgroup": "0::/a\n", "cgroup/a/memory.max": "max\n"})
    assert free_bytes(CPU) is None


@linux
def test_the_tightest_limit_counts(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: available memory, then a group around the process, then its own, then the address space."""
    machine({"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n"})
    assert free_bytes(CPU) == 8000 * 1024
    machine({"proc/self/cgroup": "0::/outer/inner\n", "cgroup/outer/memory.max": "5000000\n"})
    machine({"cgroup/outer/memory.current": "1000000\n", "cgroup/outer/inner/memory.max": "max\n"})
    assert free_bytes(CPU) == 4_000_000
    machine({"cgroup/outer/inner/memory.max": "3000000\n", "cgroup/outer/inner/memory.current": "2500000\n"})
    machine({"cgroup/outer/inner/memory.stat": "anon 1\ninactive_file 700000\nfile 9\n"})
    assert free_bytes(CPU) == 1_200_000
    machine({"proc/self/statm": "100 90 80\n"})
    limit = 100 * resource.getpagesize() + 777
    monkeypatch.setattr(memory.resource, "getrlimit", lambda which: (limit, resource.RLIM_INFINITY))
    assert free_bytes(CPU) == 777
    monkeypatch.setattr(memory.resource, "getrlimit", lambda which: (limit - 1000, resource.RLIM_INFINITY))
    assert free_bytes(CPU) == 0


@linux
def test_groups_of_the_first_version(machine: Any) -> None:
    machine(
        {"proc/self/cgroup": "5:cpu:/x\n4:memory,hugetlb:/job\n", "cgroup/memory/job/memory.usage_in_bytes": "40\n"}
    )
    machine(
        {"cgroup/memory/job/memory.limit_in_bytes": "100\n", "cgroup/memory/job/memory.stat": "total_inactive_file 7\n"}
    )
    assert free_bytes(CPU) == 67


@linux
def test_this_machine_has_memory() -> None:
    free = free_bytes(CPU)
    assert free is not None
    assert 0 < free < 2**60


def test_a_gpu_can_give_what_it_has_and_what_torch_holds_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 5000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 700)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 300)
    assert free_bytes(torch.device("cuda:1")) == 1400
    assert free_bytes(torch.device("meta")) is None


def test_tokens_fit_on_every_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of the layers lies on a device with little memory, which is the one that decides."""
    free = {"cpu": 80_000, "cuda": 8_000, "meta": None}
    monkeypatch.setattr(memory, "free_bytes", lambda device: free[device.type])
    cuda = torch.device("cuda")
    assert tokens_that_fit({CPU: 1.0}, 16.0) == CACHE_SHARE * 80_000 / 16
    assert tokens_that_fit({CPU: 0.75, cuda: 0.25}, 16.0) == CACHE_SHARE * 8_000 / 4
    assert tokens_that_fit({CPU: 1.0}, 1e9) == 1
    assert tokens_that_fit({}, 16.0) is None
    assert tokens_that_fit({CPU: 1.0}, 0.0) is None
    assert tokens_that_fit({CPU: 0.5, torch.device("meta"): 0.5}, 16.0) is None


def test_want_of_memory_is_told_from_other_errors() -> None:
    """The first three are raised by torch, numpy and Python themselves."""
    for ask in (lambda: torch.empty(2**60), lambda: np.empty(2**59), lambda: bytearray(2**62)):
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            ask()
        assert out_of_memory(caught.value)
    gpu = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has")
    assert out_of_memory(gpu) == "CUDA out of memory. Tried to allocate 2.00 GiB."
    assert out_of_memory(MemoryError()) == "MemoryError"
    assert out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert out_of_memory(RuntimeError("CUDA error: out of memory\nCUDA kernel errors")) == "CUDA error: out of memory"
    for other in (RuntimeError("shapes cannot be multiplied"), ValueError("out of memory"), KeyboardInterrupt()):
        assert out_of_memory(other) is None
