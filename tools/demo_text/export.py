"""Writes a checkpoint of train.py as a transformers model folder, weights in float16.

    python -m tools.demo_text.export --checkpoint build/demo_text/demo-text/checkpoint.pt \
        --out src/tokenscale/models/checkpoints/demo-text --check build/demo_text/demo-text/float16.json

``--check`` compares the loss on the validation split, computed in float32, before and after storage in float16.
"""

import argparse
import json
from pathlib import Path

import torch

from tools.demo_model.evaluate import load_model
from tools.demo_model.export import export
from tools.demo_text.corpus import HELD_OUT, digest, read
from tools.demo_text.held_out import blocks, mean_loss, plain_log_probs


def storage_check(before: Path, after: Path, tokenizer: Path, data: Path) -> dict:
    """Nats per token of both on the documents of ``data``, by plain transformers."""
    result: dict[str, float | int | str] = {"data_sha256": digest(data)}
    for name, path in (("float32", before), ("stored_as_float16", after)):
        model, its_tokenizer = load_model(path, tokenizer)
        log_probs = plain_log_probs(model, blocks(read(data), its_tokenizer))
        result |= {"tokens": sum(map(len, log_probs)), name: mean_loss(log_probs)}
    return result


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, default=Path("build/demo_text/tokenizer"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--check", type=Path, help="where the comparison is written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    export(*load_model(options.checkpoint, options.tokenizer), options.out)
    if options.check:
        report = storage_check(options.checkpoint, options.out, options.tokenizer, HELD_OUT / "validation.jsonl")
        options.check.write_text(json.dumps(report, indent=1) + "\n")
        print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
