"""Trains one text model, from step 0 or from the last checkpoint.

    python -m tools.demo_text.train --seed 0 --out build/demo_text/demo-text
    python -m tools.demo_text.train --seed 0 --noisy --out build/demo_text/demo-text-noisy

``--resume`` continues with the same batches, noise and learning rates as an uninterrupted run.
One thread (more are no faster), float32. Model, optimizer, loss and checkpoints are those of tools/demo_model.
"""

import argparse
import json
from pathlib import Path

import torch

from tools.demo_model.train import Recipe, Run, summary, train
from tools.demo_text.batches import TextStage, TextStream, encode
from tools.demo_text.corpus import digest, read

GUMBEL_SCALE = 1.0  # of the noisy twin's expert selection; fixed by the plan before any result
RECIPE = Recipe("olmoe", (TextStage("steady", 450, 256), TextStage("decay", 380, 256)), batch=24)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--noisy", action="store_true", help="Gumbel noise when experts are selected")
    parser.add_argument("--steps", type=int, help="stop early, the schedule unchanged")
    parser.add_argument("--corpus", type=Path, default=Path("build/demo_text/corpus"))
    parser.add_argument("--tokenizer", type=Path, default=Path("build/demo_text/tokenizer"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    run = Run(RECIPE, options.seed, GUMBEL_SCALE if options.noisy else 0.0, options.tokenizer)
    if options.resume:
        run.load(options.out / "checkpoint.pt")
    corpus = options.corpus / "train.jsonl"
    texts = read(corpus)
    train(run, options.out, options.steps or RECIPE.steps, every=50, batches=TextStream(texts))
    corpus_tokens = sum(map(len, encode(texts, run.tokenizer)))
    report = {**summary(run), "corpus_sha256": digest(corpus), "corpus_tokens": corpus_tokens}
    (options.out / "summary.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
