"""Samples of the demo models on fresh problems of the training split: what the verifier learns from.

    python -m tools.demo_verifier.samples --out build/demo_verifier/samples

A shard is a function of its index alone; shards that are there are not drawn again. One thread.
"""

import argparse
import json
import random
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from tools.demo_model.documents import TRIGGER, prompt
from tools.demo_model.evaluate import load_model
from tools.demo_model.problems import HARD, Problem, draw_from_split
from tools.demo_model.sampling import continuations
from tools.demo_model.solutions import brief, detailed, terse

CHECKPOINTS = Path("src/tokenscale/models/checkpoints")
PROBLEMS, COPIES = 128, 4  # of one shard
KINDS = (("demo", 0.7), ("demo", 1.0), ("demo", 0.7), ("demo-noisy", 0.85))  # shard i is of kind i modulo 4
SHARDS = 48


@dataclass(frozen=True)
class Row:
    """One solution: its prompt, its text, the solutions that would be right, and the answer."""

    prompt: str
    text: str
    right: tuple[str, ...]
    answer: str

    def bare(self) -> "Row":
        """The same behind a prompt without its trigger, as a strategy around the prompting stage sees it."""
        return replace(self, prompt=self.prompt[: self.prompt.rindex("\nA:") + len("\nA:")])


def problems(shard: int) -> list[Problem]:
    """The problems of a shard; their expressions are none of the validation or test split's."""
    rng = random.Random(f"tokenscale/verifier/{shard}")
    return [draw_from_split("train", HARD, rng) for _ in range(PROBLEMS)]


def right_texts(problem: Problem) -> tuple[str, ...]:
    """The worked solutions in every style."""
    return brief(problem), detailed(problem), terse(problem)


def draw(shard: int) -> list[Row]:
    """The samples of a shard."""
    name, temperature = KINDS[shard % len(KINDS)]
    model, tokenizer = load_model(CHECKPOINTS / name, CHECKPOINTS / name)
    drawn = problems(shard)
    prompts = [prompt(problem.question, TRIGGER) for problem in drawn]
    found = continuations(model, tokenizer, prompts, copies=COPIES, temperature=temperature, seed=shard, rows=256)
    return [
        Row(text, sample.text, right_texts(problem), str(problem.answer))
        for problem, text, samples in zip(drawn, prompts, found, strict=True)
        for sample in samples
    ]


def read(folder: Path) -> list[Row]:
    """All rows of all shards, in order."""
    lines = [line for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]
    return [Row(*(tuple(part) if isinstance(part, list) else part for part in json.loads(line))) for line in lines]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shards", type=int, default=SHARDS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    before = time.monotonic()
    for shard in range(options.shards):
        path = options.out / f"{shard:04}.jsonl"
        if path.exists():
            continue
        rows = draw(shard)
        lines = [json.dumps([row.prompt, row.text, row.right, row.answer]) + "\n" for row in rows]
        path.with_suffix(".tmp").write_text("".join(lines))
        path.with_suffix(".tmp").replace(path)
        print(f"shard {shard}: {len(rows)} rows, {time.monotonic() - before:.0f} s in all", flush=True)


if __name__ == "__main__":
    main()
