"""RoE steps of n rows and greedy decoding on a GPU: compiled steps, uncompiled ones, and transformers' `generate`.

    python -m benchmarks.gpu --out benchmarks/results/gpu.json
    python -m benchmarks.gpu --tiny                          # a tiny model on the processor: shows that it runs

OLMoE-1B-7B's shape with random bfloat16 weights (13.8 GB), nothing is downloaded. T(n)/T(1) by medians of
rounds in which all arms take turns; memory is what a step takes beyond what is held between steps.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import machine, ratio, write
from tokenscale.bench.bandwidth import measured
from tokenscale.bench.clock import interleaved, once
from tokenscale.bench.greedy import Ours, Theirs
from tokenscale.bench.random_models import random_model
from tokenscale.bench.steps import Step
from tokenscale.bench.subject import Subject
from tokenscale.bench.work import step_bytes
from tokenscale.models.compiled import CompiledRows
from tokenscale.models.hf import HFModel, wrap

COMPILED, UNCOMPILED, PEER, STATIC = "compiled", "uncompiled", "generate", "generate, static cache"


@dataclass(frozen=True)
class Sizes:
    """How much is run."""

    model: str = "random-olmoe-1b-7b"
    context: int = 512
    rows: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    batches: tuple[int, ...] = (1, 16)
    new_tokens: int = 128
    rounds: int = 20


TINY = Sizes("random-olmoe-tiny", 40, (1, 4), (1, 2), 3, 2)


class StaticTheirs(Theirs):
    """transformers' `generate` over a static cache, which it compiles on a GPU."""

    @torch.no_grad()
    def __call__(self) -> None:
        ids = torch.tensor(self.prompts, device=self.subject.peer.device)
        given = {"max_new_tokens": self.tokens, "do_sample": False, "cache_implementation": "static"}
        self.found = self.subject.peer.generate(ids, attention_mask=torch.ones_like(ids), **given)[
            :, self.prompt :
        ].tolist()


def engines(model: Any, backend: str) -> dict[str, HFModel]:
    """The model with compiled and with uncompiled steps, over the same weights."""
    lm = wrap(model, compile=True)
    assert isinstance(lm.rows, CompiledRows)
    lm.rows = CompiledRows(lm.network, lm.rows.windows, own_attention=True, backend=backend, required=True)
    return {COMPILED: lm, UNCOMPILED: wrap(model, compile=False)}


def steps(subjects: dict[str, Subject], sizes: Sizes, bandwidth: float) -> dict[str, Any]:
    """RoE steps of every n on both engines: milliseconds, T(n)/T(1), share of the byte limit, memory."""
    arms: dict[str, Step] = {}
    first: dict[str, float] = {}
    for engine, subject in subjects.items():
        prompt = subject.prompt(sizes.context)
        for n in sizes.rows:
            name = f"{engine}, n = {n}"
            arms[name] = Step(subject.lm, prompt, n)
            first[name] = round(once(arms[name]), 2)
            once(arms[name])  # where a CUDA graph is recorded
    seconds = interleaved(arms, sizes.rounds)
    shape, found = next(iter(subjects.values())).lm.shape, {}
    for name, arm in arms.items():
        load = statistics.fmean(arm.loads)
        limit = step_bytes(shape, load, [sizes.context]) / bandwidth
        median = statistics.median(seconds[name])
        one = f"{name.partition(',')[0]}, n = {sizes.rows[0]}"
        found[name] = {
            "milliseconds": round(1e3 * median, 3),
            "T(n) / T(1)": ratio(seconds, name, one),
            "distinct experts per layer": round(load / shape.moe_layers, 1),
            "share of the byte limit": round(limit / median, 3),
            "seconds of the first step": first[name],
            "bytes that a step takes": taken(arm, subject.peer.device),
        }
    return found


def taken(arm: Step, device: torch.device) -> int | None:
    """The most bytes of a GPU's memory that a step holds beyond what is held before it; None on a processor."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    arm()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def greedy(subjects: dict[str, Subject], sizes: Sizes, batch: int) -> dict[str, Any]:
    """New tokens per second of greedy decoding, and how many times faster than `generate`."""
    given = batch, sizes.new_tokens, 32
    arms: dict[str, Ours] = {name: Ours(subject, *given) for name, subject in subjects.items()}
    peer = subjects[UNCOMPILED]
    arms |= {PEER: Theirs(peer, *given), STATIC: StaticTheirs(peer, *given)}
    seconds = interleaved(arms, max(3, sizes.rounds // 4))
    tokens = batch * sizes.new_tokens
    rates = {name: round(tokens / statistics.median(values), 1) for name, values in seconds.items()}
    return {
        "new tokens per second": rates,
        "compiled, times faster than generate": ratio(seconds, PEER, COMPILED),
        "compiled, times faster than generate with a static cache": ratio(seconds, STATIC, COMPILED),
        "same tokens as generate": {name: alike(arms[name], arms[PEER]) for name in subjects},
    }


def alike(ours: Ours, theirs: Ours) -> str:
    """How many texts are the same; in bfloat16 near-ties part them."""
    same = sum(a == b for a, b in zip(ours.found, theirs.found, strict=True))
    return f"{same} of {len(ours.found)}"


def run(sizes: Sizes, backend: str) -> dict[str, Any]:
    """All of it: the tiny model on the processor, any other on the GPU."""
    device = torch.device("cpu" if sizes is TINY else "cuda")
    model = random_model(sizes.model, torch.bfloat16 if device.type == "cuda" else torch.float32).to(device)
    model.generation_config.eos_token_id = None  # every text has the same length
    subjects = {
        name: Subject(sizes.model, lm, model, torch.get_num_threads(), sizes.rounds)
        for name, lm in engines(model, backend).items()
    }
    megabytes = 4000 if device.type == "cuda" else 8
    limits = measured(torch.get_num_threads(), model.dtype, megabytes, device=device)
    return {
        "machine": machine(),
        "model": sizes.model,
        "dtype": str(model.dtype),
        "backend": backend,
        "gigabytes per second": round(limits.bytes_per_second / 1e9, 1),
        "steps": steps(subjects, sizes, limits.bytes_per_second),
        **{f"greedy, batch {batch}": greedy(subjects, sizes, batch) for batch in sizes.batches},
        "engines": {name: subject.lm.engine for name, subject in subjects.items()},
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a tiny model, few steps; no figure of it means anything")
    parser.add_argument("--backend", help="torch.compile's backend; default: inductor, with --tiny eager")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    backend = options.backend or ("eager" if options.tiny else "inductor")
    if not (options.tiny or torch.cuda.is_available()):
        parser.error("no GPU is there; --tiny shows on the processor that the script runs")
    result = run(TINY if options.tiny else Sizes(), backend)
    write(result, options.out)
    return result


if __name__ == "__main__":
    main()
