"""Writes a checkpoint of train.py as a transformers folder, weights in float16, with the demo model's tokenizer.

    python -m tools.demo_verifier.export --checkpoint build/demo_verifier/run/checkpoint.pt \
        --out src/tokenscale/models/checkpoints/demo-verifier \
        --candidates build/demo_verifier/validation.jsonl --check build/demo_verifier/run/float16.json

``--check`` compares the scores of the validation candidates before and after storage in float16.
"""

import argparse
import json
from pathlib import Path

import torch

from tools.demo_model.documents import prompt
from tools.demo_verifier.evaluate import Drawn, load_model, read, step_scores
from tools.demo_verifier.samples import CHECKPOINTS

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def export(checkpoint: Path, out: Path) -> None:
    """Weights, configuration and tokenizer, in `out`."""
    model, _ = load_model(checkpoint)
    model.half().save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
    for name in TOKENIZER:
        content = json.loads((CHECKPOINTS / "demo" / name).read_text(encoding="utf-8"))
        compact = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
        (out / name).write_text(compact, encoding="utf-8")


def whole_scores(path: Path, found: list[Drawn]) -> list[float]:
    """The verifier's scores of all candidates, problem after problem."""
    texts = [(prompt(d.question), sample.text) for d in found for sample in d.samples]
    return [scores[-1] for scores in step_scores(*load_model(path), texts)]


def storage_check(before: list[float], after: list[float], each: int) -> dict:
    """How far scores moved, and of how many problems another candidate is the best."""
    best = [
        [max(range(each), key=values[start : start + each].__getitem__) for start in range(0, len(values), each)]
        for values in (before, after)
    ]
    return {
        "candidates": len(before),
        "largest_difference": round(max(abs(a - b) for a, b in zip(before, after, strict=True)), 4),
        "problems": len(best[0]),
        "another_best": sum(a != b for a, b in zip(*best, strict=True)),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--candidates", type=Path, required=True)
    parser.add_argument("--check", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    export(options.checkpoint, options.out)
    found = read(options.candidates)
    scores = (whole_scores(path, found) for path in (options.checkpoint, options.out))
    report = storage_check(*scores, len(found[0].samples))
    options.check.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
