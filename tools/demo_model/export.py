"""Writes a checkpoint of train.py as a transformers model folder, weights in float16.

    python -m tools.demo_model.export --checkpoint build/demo_model/demo-s0/checkpoint.pt \
        --out src/tokenscale/models/checkpoints/demo --check build/demo_model/demo-s0/float16.json

``--check`` compares greedy answers, computed in float32, before and after storage in float16.
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel

from tools.demo_model.documents import TRIGGER
from tools.demo_model.evaluate import Evaluation, accuracy, load_model, load_problems


def export(model: PreTrainedModel, tokenizer: AutoTokenizer, out: Path) -> None:
    """Model, configuration, generation configuration and tokenizer, in ``out``; the model becomes float16."""
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.half().save_pretrained(out)
    for trace in ("is_local", "local_files_only"):  # of where the tokenizer was loaded from
        tokenizer.init_kwargs.pop(trace, None)
    tokenizer.save_pretrained(out)


def storage_check(before: Evaluation, after: Evaluation) -> dict:
    """Greedy accuracy of both, and how many continuations differ."""
    (right_before, texts_before), (right_after, texts_after) = before.greedy(TRIGGER), after.greedy(TRIGGER)
    return {
        "problems": len(before.problems),
        "float32": accuracy(right_before),
        "stored_as_float16": accuracy(right_after),
        "different_texts": sum(a.text != b.text for a, b in zip(texts_before, texts_after, strict=True)),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, default=Path("build/demo_model/tokenizer"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--check", type=Path, help="where the comparison is written; needs the validation split")
    options = parser.parse_args()
    torch.set_num_threads(1)
    export(*load_model(options.checkpoint, options.tokenizer), options.out)
    if options.check:
        problems = load_problems("validation", None)
        models = (load_model(path, options.tokenizer) for path in (options.checkpoint, options.out))
        report = storage_check(*(Evaluation(*pair, problems) for pair in models))
        options.check.write_text(json.dumps(report, indent=1) + "\n")
        print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
