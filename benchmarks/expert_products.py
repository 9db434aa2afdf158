"""The products of one RoE step's experts, three ways: grouped, a linear layer each, a matrix-vector product each.

    python -m benchmarks.expert_products --out benchmarks/results/expert_products.json

8 layers of 64 matrices of 512 x 512 in float32 (1 MB each), 64 rows a layer on experts drawn at random.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from pathlib import Path

import torch
from torch.nn import functional as F

from benchmarks.common import interleaved, machine


@torch.no_grad()
def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    weights = [torch.randn(64, 512, 512) for _ in range(8)]
    x, draw = torch.randn(64, 512), random.Random(0)
    chosen = [sorted(draw.choices(range(64), k=64)) for _ in weights]
    ends = [torch.bincount(torch.tensor(c), minlength=64).cumsum(0).to(torch.int32) for c in chosen]
    arms = {
        "grouped_mm": lambda: [
            F.grouped_mm(x, w.transpose(-2, -1), offs=e) for w, e in zip(weights, ends, strict=True)
        ],
        "linear": lambda: [
            F.linear(x[r : r + 1], w[e]) for w, c in zip(weights, chosen, strict=True) for r, e in enumerate(c)
        ],
        "mv": lambda: [torch.mv(w[e], x[r]) for w, c in zip(weights, chosen, strict=True) for r, e in enumerate(c)],
    }
    seconds = {name: statistics.median(values) for name, values in interleaved(arms, options.rounds).items()}
    megabytes = sum(len(set(c)) for c in chosen) * 512 * 512 * 4 / 1e6
    result = {
        "machine": machine(),
        "megabytes": round(megabytes),
        "milliseconds": {name: round(1e3 * s, 1) for name, s in seconds.items()},
        "gigabytes per second": {name: round(megabytes / 1e3 / s, 1) for name, s in seconds.items()},
    }
    text = json.dumps(result, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
