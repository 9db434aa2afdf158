"""A process that may not have more memory: the run goes on in halves, and says the same."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SCRIPT = r"""
import json, resource, sys, warnings
from pathlib import Path
import torch
import tokenscale as ts

torch.set_num_threads(1)
lm, pipe = ts.load("demo"), ts.Pipeline(ts.Sample(1.0))
prompts = [ts.Prompt(text=f"Q: Tom has {i} apples and buys 5 more. " * 8 + "\nA:", key=str(i)) for i in range(48)]
options = {"max_new_tokens": 40, "batch_size": 48}
pipe.run(lm, prompts[:2], max_new_tokens=4)
soft, hard = resource.getrlimit(resource.RLIMIT_AS)
mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (mapped + 60 * 2**20, hard))
schedules = []
with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    found = pipe.run(lm, prompts, max_batch_tokens=10**9, on_schedule=schedules.append, **options)
    chosen = pipe.run(lm, prompts, on_schedule=schedules.append, **options)
resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
wanted = pipe.run(lm, prompts, **options)
same = [a.winner.token_ids == b.winner.token_ids == c.winner.token_ids for a, b, c in zip(wanted, found, chosen)]
ties = [bool(r.near_ties) for r in wanted]
halvings, said = [s.halvings for s in schedules], [str(w.message) for w in warned]
print(json.dumps([same, ties, halvings, schedules[1].max_batch_tokens, said]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a limit on the address space that torch runs into")
def test_a_process_without_memory_goes_on_in_halves() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    same, ties, halvings, chosen, said = json.loads(done.stdout)
    assert all(one or tie for one, tie in zip(same, ties, strict=True))
    assert sum(same) >= 46
    assert halvings[0] >= 1
    assert halvings[1] <= 1  # the bound that is chosen leaves room for all the rest
    assert 500 < chosen < 10_000
    assert all("DefaultCPUAllocator" in message and "nothing is lost" in message for message in said)
