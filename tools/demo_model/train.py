"""Trains one demo model, all stages, from step 0 or from the last checkpoint.

    python -m tools.demo_model.train --seed 0 --out build/demo_model/demo-s0
    python -m tools.demo_model.train --seed 0 --noisy --out build/demo_model/demo-noisy-s0
    python -m tools.demo_model.train --model mixtral --seed 0 --out build/demo_model/tiny-mixtral

``--resume`` continues with the same batches, noise and learning rates as an uninterrupted run.
One thread (more are no faster), float32.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from tools.demo_model.batches import Batch, Stage, stream
from tools.demo_model.documents import Mix
from tools.demo_model.experts import install_experts
from tools.demo_model.model import AUX_LOSS, GUMBEL_SCALE, build, install_routers, parameter_counts

PART = 2500  # tokens whose gradients are computed at once


@dataclass(frozen=True)
class Recipe:
    """Stages and optimizer: linear warm-up, constant rate, linear decay to 2% over the last stage."""

    model: str
    stages: tuple[Stage, ...]
    batch: int = 64  # documents
    rate: float = 2.5e-3  # AdamW
    muon_rate: float = 1e-2  # attention matrices
    warm_up: int = 50  # steps

    @property
    def steps(self) -> int:
        """Optimizer steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    def factor(self, step: int) -> float:
        """What the learning rates are multiplied by at a step."""
        decay = self.stages[-1].steps
        return min((step + 1) / self.warm_up, 1.0, max(0.02, (self.steps - step) / decay))


RECIPES = {
    "olmoe": Recipe(
        "olmoe",
        (
            Stage("easy", 350, Mix(levels=(1, 0, 0), drills=0.4, direct=0.1, detail=0.4, terse=0.2, packed=0.02)),
            Stage("middle", 450, Mix(levels=(2, 6, 2), drills=0.3, direct=0.1, detail=0.4, terse=0.2)),
            Stage("hard", 750, Mix(levels=(1, 2, 7), drills=0.15, direct=0.1, detail=0.4, terse=0.3)),
            Stage("mix", 650, Mix(levels=(0, 1, 9), drills=0.15, direct=0.1, detail=0.1, terse=0.45, brief=True)),
        ),
    ),
    "mixtral": Recipe(
        "mixtral",
        (
            Stage("easy", 600, Mix(levels=(1, 0, 0), drills=0.3, direct=0.1, detail=0.3, terse=0.3)),
            Stage("mix", 300, Mix(levels=(1, 0, 0), drills=0.0, direct=0.15, detail=0.1, terse=0.65)),
        ),
        batch=32,
        rate=4e-3,
    ),
}


def check_same_past(saved: dict, recipe: Recipe, step: int) -> None:
    """Refuses a checkpoint whose steps so far followed other stages or another optimizer than ``recipe``."""
    past, begin = asdict(recipe), 0
    pairs = [(saved[key], past[key], key) for key in ("model", "batch", "rate", "muon_rate", "warm_up")]
    for was, now in zip(saved["stages"], past["stages"], strict=False):
        if begin < step:
            pairs.append((was, now, f"stage {now['name']}"))
        begin += was["steps"]
    for was, now, what in pairs:
        if was != now:
            raise ValueError(f"the checkpoint's {what} is {was}, the recipe's is {now}: train from the start")


def optimizers(model: PreTrainedModel, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the square attention matrices, AdamW for everything else."""
    attention = [p for name, p in model.named_parameters() if "self_attn" in name and p.ndim == 2]
    chosen = {id(p) for p in attention}
    others = [p for p in model.parameters() if id(p) not in chosen]
    muon = torch.optim.Muon(attention, lr=recipe.muon_rate, weight_decay=0.0)
    adam = torch.optim.AdamW(others, lr=recipe.rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    return [adam, muon]


def losses(model: PreTrainedModel, routers: list, batch: Batch) -> tuple[Tensor, Tensor]:
    """(weighted mean cross-entropy in nats, mean load-balancing loss over layers)."""
    logits = model(input_ids=batch.tokens, use_cache=False).logits[:, :-1]
    weights = batch.weights[:, 1:].reshape(-1)
    kept = weights > 0
    targets = batch.tokens[:, 1:].reshape(-1)[kept]
    loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1])[kept], targets, reduction="none")
    balance = torch.stack([router.balance for router in routers]).mean()
    return (loss * weights[kept]).sum() / weights[kept].sum(), balance


def parts(batch: Batch) -> list[Batch]:
    """The batch in pieces of about PART tokens, whose activations fit the processor's cache."""
    size = max(1, PART // batch.tokens.shape[1])
    return [Batch(*pair) for pair in zip(batch.tokens.split(size), batch.weights.split(size), strict=True)]


class Run:
    """A model in training: everything that a checkpoint holds."""

    def __init__(self, recipe: Recipe, seed: int, scale: float, tokenizer_folder: Path):
        self.recipe, self.seed, self.scale = recipe, seed, scale
        self.tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
        torch.manual_seed(seed)
        self.model = build(recipe.model, len(self.tokenizer), self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        self.noise = torch.Generator().manual_seed(seed)
        self.routers = install_routers(self.model, scale, self.noise)
        install_experts(self.model)
        self.optimizers = optimizers(self.model, recipe)
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        self.curve: list[dict[str, float]] = []

    def save(self, path: Path) -> None:
        """Writes the checkpoint; the file is replaced at once, so a kill never leaves half of one."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "noise": self.noise.get_state(),
            "counters": (self.step, self.tokens, self.seconds, self.curve),
            "recipe": asdict(self.recipe),
            "seed": self.seed,
            "scale": self.scale,
        }
        torch.save(state, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)

    def load(self, path: Path) -> None:
        """Restores a checkpoint. Raises ValueError for one of another seed, noise or past."""
        state = torch.load(path, weights_only=True)
        for key, now in (("seed", self.seed), ("scale", self.scale)):
            if state.get(key, now) != now:  # absent from the first checkpoints
                raise ValueError(f"the checkpoint's {key} is {state[key]}, this run's is {now}: train from the start")
        check_same_past(state["recipe"], self.recipe, state["counters"][0])
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.noise.set_state(state["noise"])
        self.step, self.tokens, self.seconds, self.curve = state["counters"]

    def update(self, batch: Batch) -> float:
        """One optimizer step; returns the cross-entropy."""
        factor = self.recipe.factor(self.step)
        for optimizer, rate in zip(self.optimizers, (self.recipe.rate, self.recipe.muon_rate), strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
            optimizer.zero_grad(set_to_none=True)
        total, weight = 0.0, batch.weights[:, 1:].sum()
        for part in parts(batch):
            loss, balance = losses(self.model, self.routers, part)
            share = part.weights[:, 1:].sum() / weight
            (share * (loss + AUX_LOSS * balance)).backward()
            total += (share * loss).item()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        self.tokens += int((batch.tokens != self.tokenizer.pad_token_id).sum())
        return total


Stream = Callable[[tuple[Stage, ...], int, int, int, PreTrainedTokenizerFast], Iterator[tuple[Stage, Batch]]]


def train(run: Run, out: Path, last: int, every: int = 150, batches: Stream = stream) -> None:
    """Trains to step ``last``; logs each 50 steps, writes a checkpoint each ``every`` and at a stage's end."""
    out.mkdir(parents=True, exist_ok=True)
    recent: list[float] = []
    ends = {sum(s.steps for s in run.recipe.stages[: i + 1]): s.name for i, s in enumerate(run.recipe.stages)}
    before = time.monotonic()
    for stage, batch in batches(run.recipe.stages, run.step, run.seed, run.recipe.batch, run.tokenizer):
        if run.step >= last:
            break
        recent.append(run.update(batch))
        if run.step % 50 == 0 or run.step == last:
            now = time.monotonic()
            run.seconds, before = run.seconds + now - before, now
            run.curve.append({"step": run.step, "loss": round(sum(recent) / len(recent), 4)})
            speed = run.tokens / run.seconds
            print(f"{stage.name} {run.curve[-1]} {run.tokens} tokens {speed:.0f}/s {run.seconds:.0f} s", flush=True)
            recent = []
        if run.step % every == 0 or run.step == last:
            run.save(out / "checkpoint.pt")
        if run.step in ends:
            run.save(out / f"checkpoint-{ends[run.step]}.pt")


def summary(run: Run) -> dict:
    """What the model card and results.json say about the run."""
    total, active = parameter_counts(run.model)
    return {
        "model": run.recipe.model, "seed": run.seed, "gumbel_scale": run.scale,
        "parameters": total, "active_parameters": active, "steps": run.step, "tokens": run.tokens,
        "seconds": round(run.seconds), "recipe": asdict(run.recipe), "curve": run.curve,
    }  # fmt: skip


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(RECIPES), default="olmoe")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--noisy", action="store_true", help="Gumbel noise when experts are selected")
    parser.add_argument("--steps", type=int, help="stop early, the schedule unchanged")
    parser.add_argument("--tokenizer", type=Path, default=Path("build/demo_model/tokenizer"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--resume-from", type=Path, help="a checkpoint file other than OUT/checkpoint.pt")
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe = RECIPES[options.model]
    run = Run(recipe, options.seed, GUMBEL_SCALE if options.noisy else 0.0, options.tokenizer)
    if options.resume or options.resume_from:
        run.load(options.resume_from or options.out / "checkpoint.pt")
    train(run, options.out, options.steps or recipe.steps)
    (options.out / "summary.json").write_text(json.dumps(summary(run), indent=1))


if __name__ == "__main__":
    main()
