"""What each of two processes does in `test_parallel_zoo.py`: every model of a folder, sharded and whole."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import DistributedConfig

import tokenscale as ts
from tests.models.two_ranks import PLANS
from tokenscale.core.model import ROUTING_NOISE

PROMPTS = [ts.Prompt(token_ids=(5, 6, 7, 8, 9), key="a"), ts.Prompt(token_ids=(12, 13), key="b")]


def compared(folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """What a sharded model says against the whole one, or why it does not run."""
    try:
        lm = ts.load(folder, distributed_config=DistributedConfig(**options))
    except ts.TokenscaleError as error:
        return {"refused": str(error)}
    whole = ts.load(folder)
    noisy = ROUTING_NOISE in whole.capabilities
    pipe = ts.Pipeline(ts.RoE(n=3, tau=0.3, clean_layers=0) if noisy else ts.Greedy())
    runs = [pipe.run(model, PROMPTS, seed=0, max_new_tokens=3) for model in (whole, lm)]
    texts = [[(r.candidates[0].token_ids, r.cost) for r in run] for run in runs]
    rows = [model.step(model.prefill([(5, 6, 7)]), torch.tensor([8])).logits for model in (whole, lm)]
    return {
        "same": texts[0] == texts[1],
        "near ties": sum(r.near_ties for run in runs for r in run),
        "differ by": float((rows[0] - rows[1]).abs().max()),
        "fingerprint": lm.fingerprint == whole.fingerprint,
    }


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    found = {name: {plan: compared(folder / name, PLANS[plan]) for plan in PLANS} for name in names}
    (folder / f"rank-{torch.distributed.get_rank()}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
