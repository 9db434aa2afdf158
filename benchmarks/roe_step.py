"""One RoE step against n forwards, its memory, and greedy decoding against transformers' generate.

    python -m benchmarks.roe_step --out benchmarks/results/roe_step.json

All in one run, arms taking turns; medians and ratios. Needs an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

import tokenscale as ts
from benchmarks.common import interleaved, machine, random_olmoe, ratio
from tokenscale.models.clean_cache import CleanCache, CleanState

CONTEXT, TAU = 512, 1.0


def prompt(model: Any) -> tuple[int, ...]:
    """CONTEXT tokens, always the same."""
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randint(2, model.config.vocab_size, (CONTEXT,), generator=generator).tolist())


class Step:
    """RoE's own step at a fixed position: the column that it stores is given back each time."""

    def __init__(self, model: Any, n: int) -> None:
        pipe = ts.Pipeline(ts.RoE(n=n, tau=TAU, clean_layers=0))
        self.proposals = pipe.proposer.start(ts.wrap(model), [prompt(model)], [ts.Stream((0, "bench"))])
        self.aggregator = pipe.aggregator

    @torch.no_grad()
    def __call__(self) -> None:
        rows, _ = self.proposals.propose(torch.tensor([7]))
        self.aggregator.aggregate(rows)
        self.cache.commit(-1)

    @property
    def cache(self) -> CleanCache:
        """The cache of the proposals."""
        state = self.proposals._state
        assert isinstance(state, CleanState)
        return state.cache

    @property
    def kv_bytes(self) -> int:
        """Memory that the cache holds."""
        return self.cache.kv_bytes

    def distinct_experts(self) -> float:
        """Mean number of experts per layer that the rows of one step run."""
        _, [work] = self.proposals.propose(torch.tensor([7]))
        self.cache.commit(-1)
        return float(work.experts.sum(-1).float().mean())


class Forwards:
    """`count` forwards of one token in turn, by transformers alone, each with a cache of 511 tokens."""

    def __init__(self, model: Any, count: int) -> None:
        self.model, self.count = model, count
        self.cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(input_ids=torch.tensor([prompt(model)[:-1]]), cache=self.cache, use_cache=True)

    @torch.no_grad()
    def __call__(self) -> None:
        total = None
        for _ in range(self.count):
            logits = self.model(input_ids=torch.tensor([[7]]), cache=self.cache, use_cache=True).logits[:, -1]
            self.cache.crop(-1)
            probs = logits.float().softmax(-1)
            total = probs if total is None else total + probs


class OwnCaches:
    """One forward of n equal sequences with a cache each, by transformers alone: all run the same experts."""

    def __init__(self, model: Any, n: int) -> None:
        self.model = model
        self.tokens = torch.full((n, 1), 7)
        self.cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(input_ids=torch.tensor([prompt(model)[:-1]] * n), cache=self.cache, use_cache=True)

    @torch.no_grad()
    def __call__(self) -> None:
        self.model(input_ids=self.tokens, cache=self.cache, use_cache=True).logits[:, -1].float().softmax(-1).mean(0)
        self.cache.crop(-1)


def steps(model: Any, n: int, rounds: int) -> dict[str, Any]:
    """Milliseconds of a step, medians over rounds, and ratios."""
    ours, alone = Step(model, n), Step(model, 1)
    arms = {
        f"RoE step, n = {n}": ours,
        f"{n} forwards in turn": Forwards(model, n),
        f"batch of {n} equal sequences, no noise": OwnCaches(model, n),
        "one forward": Forwards(model, 1),
    }
    seconds = interleaved(arms, rounds)
    first, turn, batch, one = arms
    shape, loads = ts.wrap(model).shape, ours.distinct_experts()
    fixed = shape.dense_bytes + shape.head_bytes + CONTEXT * shape.kv_bytes
    layer = shape.moe_layers * shape.expert_bytes
    return {
        "milliseconds": {name: round(1e3 * statistics.median(values), 1) for name, values in seconds.items()},
        f"times faster than {n} forwards": ratio(seconds, turn, first),
        f"times faster than a batch of {n} equal sequences": ratio(seconds, batch, first),
        "cost in single forwards": ratio(seconds, first, one),
        "distinct experts per layer, n rows": loads,
        f"times fewer bytes to read than {n} forwards": round(
            n * (fixed + shape.top_k * layer) / (fixed + loads * layer), 2
        ),
        "kv_bytes held, n": ours.kv_bytes,
        "kv_bytes held, n = 1": alone.kv_bytes,
    }


def greedy(model: Any, prompt_tokens: int, batch: int, rounds: int) -> dict[str, Any]:
    """Seconds for 64 greedy tokens: our loop against transformers' generate, the same tokens."""
    ids = torch.tensor([prompt(model)[:prompt_tokens]] * batch)
    ids[:, 0] = torch.arange(2, 2 + batch)
    lm, pipe = ts.wrap(model), ts.Pipeline(ts.Greedy())
    prompts = [ts.Prompt(token_ids=tuple(row)) for row in ids.tolist()]
    mask = torch.ones_like(ids)
    out: dict[str, list[list[int]]] = {}

    def ours() -> None:
        results = pipe.run(lm, prompts, max_new_tokens=64, batch_size=batch)
        out["ours"] = [list(r.winner.token_ids) for r in results]

    def theirs() -> None:
        generated = model.generate(ids, attention_mask=mask, max_new_tokens=64, min_new_tokens=64, do_sample=False)
        out["theirs"] = generated[:, prompt_tokens:].tolist()

    seconds = interleaved({"ours": ours, "generate": theirs}, rounds)
    return {
        "seconds": {name: round(statistics.median(values), 3) for name, values in seconds.items()},
        "times faster than generate": ratio(seconds, "generate", "ours"),
        "same tokens": out["ours"] == out["theirs"],
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--experts", default="grouped_mm", help="transformers' experts implementation")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = random_olmoe(options.experts)
    model.generation_config.eos_token_id = None  # every run decodes the same number of tokens
    result = {
        "machine": machine(),
        "step": steps(model, options.n, options.rounds),
        "greedy, prompt 32, batch 1": greedy(model, 32, 1, max(5, options.rounds // 4)),
        "greedy, prompt 32, batch 8": greedy(model, 32, 8, max(5, options.rounds // 4)),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
