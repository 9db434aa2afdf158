"""What n rows of a token take in memory: keys and values stored, and the peak of a process of their own.

    python -m tokenscale.bench.memory random-olmoe 64 512 8 float32 1

runs 8 RoE steps of 64 rows behind 512 tokens and prints one JSON line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokenscale.bench.bandwidth import Limits
from tokenscale.bench.clock import Ratio
from tokenscale.bench.comparison import Comparison, Target
from tokenscale.bench.part import LeftOut, Outcome, Sizes
from tokenscale.bench.steps import Step
from tokenscale.bench.subject import Subject
from tokenscale.core.errors import ModelError
from tokenscale.core.model import ROUTING_NOISE, LanguageModel

PEAK = 1.12
ALIKE = 1.005  # what two decimals call 1.00
STEPS = 8


def measure(subject: Subject, sizes: Sizes, limits: Limits) -> Outcome:
    """The most rows against one, each in a process of its own."""
    if ROUTING_NOISE not in subject.lm.capabilities:
        raise LeftOut(f"RoE does not run on it: {subject.lm.lacks(ROUTING_NOISE)}")
    n = sizes.memory_rows
    many, one = (_of_process(subject, rows, sizes.context) for rows in (n, 1))
    comparisons = [
        _compared(f"KV memory stored, n = {n}", many["stored"], one["stored"], Target(most=ALIKE)),
        _compared(f"peak resident memory, n = {n}", many["peak"], one["peak"], Target(most=PEAK)),
    ]
    facts = {"loaded": many["loaded"], "resident": "VmHWM" if many["reset"] else "ru_maxrss, loading included"}
    return Outcome("memory", comparisons, facts)


def _compared(work: str, ours: float, theirs: float, target: Target) -> Comparison:
    ratio = ours / theirs
    return Comparison(work, "n = 1", ours / 1e6, theirs / 1e6, Ratio(ratio, ratio, ratio), target, unit="MB")


def _of_process(subject: Subject, n: int, context: int) -> dict[str, Any]:
    """The figures of a fresh process. Raises ModelError where it ends badly."""
    given = [subject.name, str(n), str(context), str(STEPS), subject.dtype, str(subject.threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(subject.threads)}
    command = [sys.executable, "-m", "tokenscale.bench.memory", *given]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if ran.returncode:
        last = (ran.stderr.strip().splitlines() or ["no message"])[-1]
        raise ModelError(f"the process that measures the memory of {subject.name} failed: {last:.300}", "see above")
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


def tensor_bytes(root: object) -> int:
    """Bytes of all tensors that an object holds, each storage once; of models nothing is counted."""
    storages: dict[int, int] = {}
    seen, waiting = set[int](), [root]
    while waiting:
        found = waiting.pop()
        if id(found) in seen or isinstance(found, nn.Module | LanguageModel | type | str | bytes):
            continue
        seen.add(id(found))
        if isinstance(found, Tensor):
            storage = found.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        elif isinstance(found, dict):
            waiting += found.values()
        elif isinstance(found, list | tuple | set | frozenset):
            waiting += found
        else:
            waiting += vars(found).values() if hasattr(found, "__dict__") else []
            waiting += [getattr(found, name) for name in getattr(type(found), "__slots__", ()) if hasattr(found, name)]
    return sum(storages.values())


def _resident(name: str) -> int:
    """A line of /proc/self/status in bytes; 0 where there is none."""
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)


def _reset_peak() -> bool:
    """Forgets the peak of loading, where the system lets us."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _peak() -> int:
    if peak := _resident("VmHWM"):
        return peak
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main(name: str, n: int, context: int, steps: int, dtype: str, threads: int) -> dict[str, Any]:
    """Runs the steps; bytes stored in the end, resident after loading, and at the peak since."""
    subject = Subject.open(name, dtype, threads)
    prompt = subject.prompt(context)
    Step(subject.lm, prompt[:2], 1)()  # what is made once
    loaded, reset = _resident("VmRSS"), _reset_peak()
    step = Step(subject.lm, prompt, n)
    for _ in range(steps):
        step()
    return {"stored": tensor_bytes(step.proposals), "loaded": loaded, "reset": reset, "peak": _peak()}


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    _, model, n, context, steps, dtype, threads = sys.argv
    print(json.dumps(main(model, int(n), int(context), int(steps), dtype, int(threads))))
