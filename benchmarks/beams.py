"""Beam search against transformers' own, on the demo model: the same sequences, in the same run.

    python -m benchmarks.beams --out benchmarks/results/beams.json

Prompts of the arithmetic task, left-padded for transformers; both search 64 tokens without an end token, so that
both do the same work. Arms take turns; medians and ratios. Needs an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch

import tokenscale as ts
from benchmarks.common import machine, ratio, write
from tokenscale.bench.clock import interleaved

PROBLEMS = Path(ts.__file__).parent / "experiments/data/arithmetic/validation.jsonl"
PAD = 0


def prompts(lm: ts.HFModel, batch: int) -> list[tuple[int, ...]]:
    """The first problems, with the trigger behind which the demo model writes its steps."""
    asked = [json.loads(line)["question"] for line in PROBLEMS.read_text().splitlines()[:batch]]
    return [lm.encode(ts.Prompt(text=f"Q: {question}\nA: Let's think step by step.")) for question in asked]


def measured(lm: ts.HFModel, batch: int, width: int, new_tokens: int, rounds: int) -> dict[str, Any]:
    """Seconds of both searches, medians over rounds, and how many times faster ours is."""
    ids = prompts(lm, batch)
    longest = max(map(len, ids))
    padded = torch.tensor([[PAD] * (longest - len(row)) + list(row) for row in ids])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ids])
    asked = [ts.Prompt(token_ids=row) for row in ids]
    pipe = ts.Pipeline(ts.BeamSearch(width))
    found: dict[str, list[list[int]]] = {}

    def ours() -> None:
        results = pipe.run(lm, asked, max_new_tokens=new_tokens, batch_size=batch)
        found["ours"] = [list(result.winner.token_ids) for result in results]

    def theirs() -> None:
        options = {"num_beams": width, "do_sample": False, "max_new_tokens": new_tokens}
        generated = lm.model.generate(padded, attention_mask=mask, **options)
        found["generate"] = generated[:, longest:].tolist()

    seconds = interleaved({"ours": ours, "generate": theirs}, rounds)
    return {
        "prompt_tokens": [len(row) for row in ids],
        "seconds": {name: round(statistics.median(values), 4) for name, values in seconds.items()},
        "times faster than generate": ratio(seconds, "generate", "ours"),
        "same sequences": found["ours"] == found["generate"],
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--width", type=int, default=4)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true", help="one round of few tokens: to see that it runs")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.new_tokens = 1, 4
    torch.set_num_threads(options.threads)
    lm = ts.load(options.model)
    lm.model.generation_config.eos_token_id = None  # every search runs the same number of steps
    lm.model.generation_config.pad_token_id = PAD
    lm = ts.wrap(lm.model, lm.tokenizer)
    result: dict[str, Any] = {"machine": machine(), "width": options.width, "new_tokens": options.new_tokens}
    for batch in options.batches:
        key = f"batch {batch}"
        result[key] = measured(lm, batch, options.width, options.new_tokens, options.rounds)
    write(result, options.out)


if __name__ == "__main__":
    main()
