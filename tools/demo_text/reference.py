"""RoE's held-out loss by plain transformers, without tokenscale: the whole grid, and a check of the library.

    python -m tools.demo_text.reference --model src/tokenscale/models/checkpoints/demo-text --out reference.json

A block of T tokens runs once clean. Its keys and values serve every noisy row, which runs the T tokens again:
the row at position t attends to clean keys before t and to position t's own (or clean) key. The first rows of n = 16
are those of n = 2, so one pass gives every n. Noise is torch's, the same for every tau.
"""

import argparse
import json
import math
import time
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache, PreTrainedModel

from tools.demo_model.evaluate import load_model
from tools.demo_model.experts import install_experts
from tools.demo_model.model import TrainingRouter, install_routers
from tools.demo_text.corpus import HELD_OUT, digest, read
from tools.demo_text.evaluate import ROWS, TAUS, Configuration, document_losses, document_tokens, opened
from tools.demo_text.held_out import Block, blocks, plain_log_probs

CELLS = [("own", 16, tau) for tau in TAUS] + [("clean", 8, tau) for tau in TAUS]  # current_kv, rows, tau


def row_mask(length: int, current_kv: str) -> Tensor:
    """Additive ``[1, 1, T, 2 T]``: clean keys, then the row's own."""
    position = torch.arange(length)
    own = position[:, None] == position[None, :]
    clean = position[:, None] > position[None, :]
    if current_kv == "clean":
        own, clean = torch.zeros_like(own), clean | own
    visible = torch.cat((clean, own), dim=1)
    return torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)[None, None]


def target_log_probs(logits: Tensor, ids: Tensor) -> Tensor:
    """log p of each next token, ``[rows, T - 1]``."""
    targets = ids[1:].expand(logits.shape[0], -1)
    return -F.cross_entropy(logits[:, :-1].transpose(1, 2), targets, reduction="none")


@torch.no_grad()
def row_log_probs(
    model: PreTrainedModel, routers: list[TrainingRouter], block: Block, tau: float, n: int, current_kv: str
) -> Tensor:
    """log p of the block's tokens in n rows, ``[n, T - 1]``; row 0 is clean."""
    ids, length = torch.tensor(block.ids), len(block.ids)
    for router in routers:
        router.scale = 0.0
    cache = DynamicCache(config=model.config)
    clean = model(input_ids=ids[None], cache=cache, use_cache=True)
    if n == 1:
        return target_log_probs(clean.logits, ids)
    for router in routers:
        router.scale = tau
    cache.batch_repeat_interleave(n - 1)
    noisy = model(
        input_ids=ids.expand(n - 1, -1),
        cache=cache,
        attention_mask=row_mask(length, current_kv).expand(n - 1, 1, -1, -1),
        position_ids=torch.arange(length).expand(n - 1, -1),
    )
    return torch.cat((target_log_probs(clean.logits, ids), target_log_probs(noisy.logits, ids)))


def measure(
    model: PreTrainedModel, routers: list[TrainingRouter], found: list[Block], tau: float, current_kv: str, n: int
) -> dict[int, list[float]]:
    """Losses by document of every number of rows up to n: minus the log of the mean probability."""
    scores: dict[int, list[list[float]]] = {count: [] for count in (1, *ROWS) if count <= n}
    for block in found:
        rows = row_log_probs(model, routers, block, tau, n, current_kv).double()
        for count, kept in scores.items():
            kept.append((rows[:count].logsumexp(0) - math.log(count)).tolist())
    return {count: document_losses(kept, found) for count, kept in scores.items()}


def with_more_experts(model: PreTrainedModel, routers: list[TrainingRouter], found: list[Block]) -> list[float]:
    """Losses by document of the clean model with one expert more in every layer."""
    for router in routers:
        router.scale, router.top_k = 0.0, router.top_k + 1
    losses = document_losses(plain_log_probs(model, found), found)
    for router in routers:
        router.top_k -= 1
    return losses


def rows(losses: dict[int, list[float]], tau: float, current_kv: str, seconds: float, first: bool) -> list[dict]:
    """The rows of a report; the clean one (n = 1) once, with the first cell."""
    found = []
    for n, by_document in losses.items():
        which = Configuration(n, tau, current_kv) if n > 1 else Configuration()
        if n > 1 or first:
            found.append({**asdict(which), "losses": by_document, "seconds": seconds})
    return found


def mean_loss_of(losses: list[float], tokens: list[int]) -> float:
    """Nats per token, rounded for the log."""
    return round(sum(losses) / sum(tokens), 4)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a folder, or a checkpoint of train.py")
    parser.add_argument("--tokenizer", type=Path, default=Path("build/demo_text/tokenizer"))
    parser.add_argument("--data", type=Path, default=HELD_OUT / "test.jsonl")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = load_model(options.model, options.tokenizer)
    found = blocks(read(options.data), tokenizer)
    noise = torch.Generator().manual_seed(options.seed)
    routers = install_routers(model, 0.0, noise)
    install_experts(model)
    head = {"data_sha256": digest(options.data), "seed": options.seed, "tokens": document_tokens(found)}
    report = opened(options.out, head)
    for current_kv, n, tau in CELLS:
        if any((row["current_kv"], row["tau"]) == (current_kv, tau) for row in report["rows"]):
            continue
        before = time.monotonic()
        noise.manual_seed(options.seed)  # every cell has the same noise
        losses = measure(model, routers, found, tau, current_kv, n)
        seconds = round(time.monotonic() - before, 1)
        report["rows"] += rows(losses, tau, current_kv, seconds, first=not report["rows"])
        print(current_kv, tau, {m: mean_loss_of(losses[m], head["tokens"]) for m in losses}, f"{seconds} s", flush=True)
        options.out.write_text(json.dumps(report))
    if "one_expert_more" not in report:
        report["one_expert_more"] = with_more_experts(model, routers, found)
        options.out.write_text(json.dumps(report))


if __name__ == "__main__":
    main()
