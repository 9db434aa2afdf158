"""What each of two processes does in `test_parallel.py`; torchrun starts it with a folder of models."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.distributed.tensor import DTensor
from transformers import DistributedConfig

import tokenscale as ts
from tokenscale.models.reward import load_reward

PROMPTS = [(5, 6, 7, 8, 9), (12, 13), (20, 21, 22), (14,)]
PIPES = {
    "greedy": ts.Pipeline(ts.Greedy()),
    "roe": ts.Pipeline(ts.RoE(n=4, tau=0.3)),
    "roe of samples": ts.Pipeline(ts.RoE(n=3, tau=0.5), ts.Sample(temperature=0.8), ts.SelfConsistency(k=2)),
    "dropout": ts.Pipeline(ts.MCDropout(n=3, rate=0.1)),
}
PLANS: dict[str, dict[str, Any]] = {
    "tensor": {"tp_plan": "auto"},
    "experts": {"tp_size": 2, "ep_size": 2},
}


def outcomes(lm: Any, names: list[str]) -> dict[str, Any]:
    """Tokens, bills and near-ties of every prompt."""
    found = {}
    for name in names:
        asked = [ts.Prompt(token_ids=ids, key=str(ids)) for ids in PROMPTS]
        results = PIPES[name].run(lm, asked, seed=3, max_new_tokens=10)
        found[name] = [[[list(c.token_ids) for c in r.candidates], r.cost.to_dict(), r.near_ties] for r in results]
    return found


def local_shapes(model: Any) -> dict[str, list[list[int]]]:
    """Of every sharded parameter its whole shape and that of this process's part."""
    return {
        name: [list(p.shape), list(p.to_local().shape)]
        for name, p in model.named_parameters()
        if isinstance(p, DTensor)
    }


def refusal(what: Callable[[], Any]) -> str:
    try:
        what()
    except ts.TokenscaleError as error:
        return str(error)
    return "nothing"


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    said: dict[str, Any] = {}
    for kind in ("mixtral", "olmoe"):
        for plan, options in PLANS.items():
            lm = ts.load(folder / kind, distributed_config=DistributedConfig(**options))
            said[f"{kind} {plan}"] = {
                "outcomes": outcomes(lm, list(PIPES)),
                "sharded": local_shapes(lm.model),
                "fingerprint": lm.fingerprint,
                "shape": repr(lm.shape),
                "capabilities": sorted(lm.capabilities),
            }
    [score] = lm.score(["w5 w6 w7"], ts.RoE(n=3, tau=0.3), prompts=["w3 w4"], seed=1)
    said["score"] = list(score.log_probs)
    rank = lm.rank
    with patch("tokenscale.core.unread.LOGITS_BYTES", 1000):
        said["in tiles"] = outcomes(lm, ["roe"])["roe"]
    said["other seeds"] = refusal(lambda: PIPES["roe"].run(lm, ["w3 w4"], seed=rank, max_new_tokens=4))
    said["other prompts"] = refusal(lambda: PIPES["greedy"].run(lm, [f"w{rank + 3} w4"], seed=0, max_new_tokens=4))
    said["least"] = lm.ranks.least(7 - rank)
    load = lambda name: ts.load(folder / name, distributed_config=DistributedConfig(tp_plan="auto"))  # noqa: E731
    said["one head"] = refusal(lambda: load("one-head"))
    parallel = DistributedConfig(tp_plan="auto")
    said["reward"] = refusal(lambda: load_reward(folder / "reward", distributed_config=parallel))
    said["plan"] = refusal(lambda: load("doge"))
    said["other weights"] = refusal(lambda: load(f"rank-{rank}"))
    said["rank"] = rank
    (folder / f"rank-{rank}.json").write_text(json.dumps(said))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
