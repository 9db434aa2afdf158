"""From which number of rows on torch's products are faster than our kernels: the thresholds of models/native.

    python -m benchmarks.kernels --out benchmarks/results/kernels.json

Experts of a random OLMoE (8 layers of 64, hidden 512, inner 256, top-8) against `grouped_mm`, by the mean number of
rows an expert; linear layers of 512 x 512 against `F.linear`, by rows. Layers take turns, so that weights are cold.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.common import machine, ratio, write
from tokenscale.bench.clock import interleaved, milliseconds
from tokenscale.models.native.bindings import experts, linear

LAYERS, EXPERTS, TOP_K, HIDDEN, INNER = 8, 64, 8, 512, 256
TOKENS = (1, 8, 32, 64, 128, 256, 512)
ROWS = (1, 4, 8, 16, 32, 64, 128)


def by_groups(x: Tensor, chosen: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """What transformers' grouped experts do."""
    order = chosen.flatten().sort(stable=True)
    rows = x[order.indices // TOP_K]
    ends = torch.bincount(order.values, minlength=EXPERTS).cumsum(0).to(torch.int32)
    gate, up = F.grouped_mm(rows, gate_up.transpose(-2, -1), offs=ends).chunk(2, -1)
    out = F.grouped_mm(F.silu(gate) * up, down.transpose(-2, -1), offs=ends)
    out = out * weights.flatten()[order.indices][:, None]
    return torch.empty_like(out).index_copy_(0, order.indices, out).view(*chosen.shape, -1).sum(1)


def gathered(x: Tensor, chosen: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Every slot's own matrices times its row, slots sorted by expert: to be compiled, so that nothing is copied."""
    order = chosen.flatten().sort(stable=True)
    rows = x[order.indices // TOP_K].float()
    gate, up = (gate_up[order.values].float() * rows[:, None, :]).sum(-1).chunk(2, -1)
    out = (down[order.values].float() * (F.silu(gate) * up)[:, None, :]).sum(-1)
    out = out * weights.flatten()[order.indices][:, None]
    return torch.empty_like(out).index_copy_(0, order.indices, out).view(*chosen.shape, -1).sum(1)


def other_ways(weights: list[tuple[Tensor, Tensor]], rounds: int) -> dict[str, Any]:
    """Milliseconds of all experts for 1, 8 and 32 tokens: kernel, compiled gather, grouped products in two layouts."""
    compiled = torch.compile(gathered, dynamic=True)
    streamed = [tuple(w.transpose(1, 2).contiguous().transpose(1, 2) for w in pair) for pair in weights]
    found = {}
    for tokens in (1, 8, 32):
        x = torch.randn(tokens, HIDDEN).to(weights[0][0].dtype)
        gates = torch.rand(tokens, TOP_K).to(x.dtype)
        chosen = torch.rand(tokens, EXPERTS).topk(TOP_K).indices
        ways = {
            "kernel": (experts, weights),
            "compiled gather": (compiled, weights),
            "grouped_mm": (by_groups, weights),
            "grouped_mm, weights stored input by input": (by_groups, streamed),
        }
        arms = {
            name: lambda run=run, layers=layers, x=x, chosen=chosen, gates=gates: [
                run(x, chosen, gates, *pair) for pair in layers
            ]
            for name, (run, layers) in ways.items()
        }
        seconds = interleaved(arms, rounds)
        found[str(tokens)] = {name: round(milliseconds(seconds, name), 2) for name in seconds}
    return found


def compared(kernel: Callable[[], Any], torch_: Callable[[], Any], rounds: int) -> dict[str, Any]:
    """Milliseconds of both, and how many times faster the kernel is."""
    seconds = interleaved({"kernel": kernel, "torch": torch_}, rounds)
    times = {name: round(milliseconds(seconds, name), 3) for name in seconds}
    return {"milliseconds": times, "kernel is faster": ratio(seconds, "torch", "kernel")}


@torch.no_grad()
def measured(dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    """Both sweeps in one type."""
    torch.manual_seed(0)
    weights = [
        (torch.randn(EXPERTS, 2 * INNER, HIDDEN).to(dtype), torch.randn(EXPERTS, HIDDEN, INNER).to(dtype))
        for _ in range(LAYERS)
    ]
    squares = [torch.randn(HIDDEN, HIDDEN).to(dtype) for _ in range(4 * LAYERS)]
    found: dict[str, Any] = {"experts, by rows an expert": {}, "linear, by rows": {}}
    for tokens in TOKENS:
        x, gates = torch.randn(tokens, HIDDEN).to(dtype), torch.rand(tokens, TOP_K).to(dtype)
        chosen = torch.rand(tokens, EXPERTS).topk(TOP_K).indices
        arms = [
            lambda run=run, x=x, chosen=chosen, gates=gates: [run(x, chosen, gates, *pair) for pair in weights]
            for run in (experts, by_groups)
        ]
        found["experts, by rows an expert"][f"{tokens * TOP_K / EXPERTS:g}"] = compared(arms[0], arms[1], rounds)
    for rows in ROWS:
        x = torch.randn(rows, HIDDEN).to(dtype)
        by_row = [lambda run=run, x=x: [run(x, w, None) for w in squares] for run in (linear, F.linear)]
        found["linear, by rows"][str(rows)] = compared(by_row[0], by_row[1], rounds)
    found["experts, by tokens, in other ways (milliseconds)"] = other_ways(weights, rounds)
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="one round: to see that it runs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    types = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    result = {
        "machine": machine(),
        **{name: measured(dtype, 1 if options.quick else options.rounds) for name, dtype in types.items()},
    }
    write(result, options.out)


if __name__ == "__main__":
    main()
