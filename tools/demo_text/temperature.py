"""What a temperature alone does to the held-out loss: chosen on the validation split, measured on the test split.

    python -m tools.demo_text.temperature --model src/tokenscale/models/checkpoints/demo-text --out temperature.json

An average of rows is softer than a row, so a model that is too sure gains by any softening. This is the yardstick.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from tools.demo_model.evaluate import load_model
from tools.demo_text.corpus import HELD_OUT, digest, read
from tools.demo_text.held_out import Block, blocks

TEMPERATURES = (1.0, 1.05, 1.1, 1.15, 1.2, 1.25, 1.3)


@torch.no_grad()
def losses_by_temperature(model: PreTrainedModel, found: Sequence[Block]) -> dict[float, list[float]]:
    """Per temperature T the loss by document of softmax(logits / T), in nats."""
    losses = {t: [0.0] * (found[-1].document + 1) for t in TEMPERATURES}
    for block in found:
        ids = torch.tensor([block.ids])
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
        for t, by_document in losses.items():
            by_document[block.document] += F.cross_entropy(logits / t, ids[0, 1:], reduction="sum").item()
    return losses


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, default=Path("build/demo_text/tokenizer"))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = load_model(options.model, options.tokenizer)
    data = {split: HELD_OUT / f"{split}.jsonl" for split in ("validation", "test")}
    losses = {split: losses_by_temperature(model, blocks(read(path), tokenizer)) for split, path in data.items()}
    best = min(TEMPERATURES, key=lambda t: sum(losses["validation"][t]))
    report = {
        "data_sha256": {split: digest(path) for split, path in data.items()},
        "temperature": best,
        "losses": losses["test"][best],
        "clean_losses": losses["test"][1.0],
    }
    options.out.write_text(json.dumps(report))
    print(f"temperature {best}: {sum(report['losses']) / sum(report['clean_losses']):.4f} of the loss")


if __name__ == "__main__":
    main()
