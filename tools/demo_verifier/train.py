"""Trains the packaged verifier: a small Llama that says after every token whether a solution is right so far.

    python -m tools.demo_verifier.train --seed 0 --samples build/demo_verifier/samples --out build/demo_verifier/run

The model tells what comes next, compares that with what comes, and gathers the differences, each in layers of its own:
the loss is the sum of four means, of which two are taught inside the model by parts that are thrown away. They are the
label of every answer token, that of the last one again, whether each equation holds (from the last layer but one), and
with weight `Recipe.language` the next token of what is right (from the last layer but two). One thread, float32.
`--resume` goes on from the last checkpoint as if there had been no stop.
"""

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from tools.demo_verifier.batches import Batch, Recipe, pad, stream
from tools.demo_verifier.labels import Example, example
from tools.demo_verifier.samples import CHECKPOINTS, Row, read

PART = 3000  # tokens whose gradients are computed at once
HELD_BACK = 2048  # samples that only the log's figures are computed on


def build(tokenizer) -> LlamaForSequenceClassification:
    """A freshly initialised verifier."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=72,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForSequenceClassification(config).train()


class Teacher(nn.Module):
    """The parts that are thrown away: norms of inner hidden states, and the head that tells whether equations hold."""

    def __init__(self, hidden: int):
        super().__init__()
        self.before_words, self.before_holds = nn.RMSNorm(hidden, eps=1e-6), nn.RMSNorm(hidden, eps=1e-6)
        self.holds = nn.Linear(hidden, 1)


def scores(model: LlamaForSequenceClassification, tokens: Tensor) -> Tensor:
    """The score at every position; padding is on the right, where causal attention is blind."""
    hidden = model.model(input_ids=tokens, use_cache=False).last_hidden_state
    return model.score(hidden)[..., 0]


def told(logits: Tensor, labels: Tensor) -> Tensor:
    """Summed cross-entropy in nats of the labels that there are."""
    some = labels >= 0
    return F.binary_cross_entropy_with_logits(logits[some], labels[some].float(), reduction="sum")


def sums(model: LlamaForSequenceClassification, teacher: Teacher, batch: Batch) -> Tensor:
    """The four losses, summed over their labels: every token, last token, equations, next token."""
    outputs = model.model(input_ids=batch.tokens, use_cache=False, output_hidden_states=True)
    *_, foreseen, compared, _ = outputs.hidden_states
    logits = model.score(outputs.last_hidden_state)[..., 0]
    rows = torch.arange(len(batch.last))
    holds = teacher.holds(teacher.before_holds(compared))[..., 0]
    known = batch.targets >= 0
    words = teacher.before_words(foreseen[known]) @ model.model.embed_tokens.weight.t()
    return torch.stack(
        [
            told(logits, batch.labels),
            told(logits[rows, batch.last], batch.labels[rows, batch.last]),
            told(holds, batch.holds),
            F.cross_entropy(words, batch.targets[known], reduction="sum"),
        ]
    )


def counts(batch: Batch) -> Tensor:
    """How many labels each of the four losses has; at least one."""
    found = [(batch.labels >= 0).sum(), len(batch.last), (batch.holds >= 0).sum(), (batch.targets >= 0).sum()]
    return torch.tensor([max(1, int(count)) for count in found])


def parts(batch: Batch) -> list[Batch]:
    """The batch in pieces of about PART tokens."""
    size = max(1, PART // batch.tokens.shape[1])
    fields = (batch.tokens, batch.labels, batch.holds, batch.targets, batch.last)
    return [Batch(*piece) for piece in zip(*(field.split(size) for field in fields), strict=True)]


def auc(right: list[float], wrong: list[float]) -> float:
    """The share of (right, wrong) pairs in which the right one has the higher score; ties count half."""
    values = torch.tensor(right + wrong, dtype=torch.float64)
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    ranks = (counts.cumsum(0) - (counts - 1) / 2).double()[inverse]
    n, m = len(right), len(wrong)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


@torch.no_grad()
def last_scores(model: LlamaForSequenceClassification, examples: list[Example], pad_id: int) -> list[float]:
    """The score of every whole text."""
    found = [0.0] * len(examples)
    places = sorted(range(len(examples)), key=lambda i: len(examples[i].tokens))
    for start in range(0, len(places), 64):
        some = places[start : start + 64]
        batch = pad([examples[i] for i in some], pad_id)
        values = scores(model, batch.tokens)[torch.arange(len(some)), batch.last].tolist()
        for place, value in zip(some, values, strict=True):
            found[place] = value
    return found


class Run:
    """A verifier in training: everything that a checkpoint holds."""

    def __init__(self, recipe: Recipe, seed: int):
        self.recipe, self.seed = recipe, seed
        self.tokenizer = AutoTokenizer.from_pretrained(CHECKPOINTS / "demo")
        torch.manual_seed(seed)
        self.model = build(self.tokenizer)
        self.teacher = Teacher(self.model.config.hidden_size)
        matrices = [p for name, p in self.model.named_parameters() if "layers" in name and p.ndim == 2]
        chosen = {id(p) for p in matrices}
        others = [p for p in self.model.parameters() if id(p) not in chosen] + list(self.teacher.parameters())
        self.optimizers = [
            torch.optim.AdamW(others, lr=recipe.rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True),
            torch.optim.Muon(matrices, lr=recipe.muon_rate, weight_decay=0.0),
        ]
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        self.curve: list[dict[str, float]] = []

    def save(self, path: Path) -> None:
        """Writes the checkpoint; the file is replaced at once, so a kill never leaves half of one."""
        state = {
            "model": self.model.state_dict(),
            "teacher": self.teacher.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "counters": (self.step, self.tokens, self.seconds, self.curve),
            "recipe": asdict(self.recipe),
            "seed": self.seed,
        }
        torch.save(state, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)

    def load(self, path: Path) -> None:
        """Restores a checkpoint. Raises ValueError for one of another seed or recipe."""
        state = torch.load(path, weights_only=True)
        if (state["seed"], state["recipe"]) != (self.seed, asdict(self.recipe)):
            raise ValueError(f"{path} is of another seed or recipe: train from the start")
        self.model.load_state_dict(state["model"])
        self.teacher.load_state_dict(state["teacher"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.tokens, self.seconds, self.curve = state["counters"]

    def update(self, batch: Batch) -> list[float]:
        """One optimizer step; returns the four mean losses."""
        factor = self.recipe.factor(self.step)
        for optimizer, rate in zip(self.optimizers, (self.recipe.rate, self.recipe.muon_rate), strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
            optimizer.zero_grad(set_to_none=True)
        number, means = counts(batch), torch.zeros(4)
        weights = torch.tensor([1.0, 1.0, 1.0, self.recipe.language])
        for part in parts(batch):
            losses = sums(self.model, self.teacher, part) / number
            (losses * weights).sum().backward()
            means += losses.detach()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        self.tokens += int((batch.tokens != self.tokenizer.pad_token_id).sum())
        return means.tolist()


def train(run: Run, sampled: list[Row], out: Path, last: int, every: int = 100) -> None:
    """Trains to step `last`; logs and writes a checkpoint each `every` steps."""
    held = [example(row.bare(), run.tokenizer) for row in sampled[-HELD_BACK:]]
    before, recent = time.monotonic(), []
    for batch in stream(sampled[:-HELD_BACK], run.recipe, run.step, run.seed, run.tokenizer):
        if run.step >= last:
            break
        recent.append(run.update(batch))
        if run.step % every == 0 or run.step == last:
            now = time.monotonic()
            run.seconds, before = run.seconds + now - before, now
            losses = [round(sum(column) / len(recent), 4) for column in zip(*recent, strict=True)]
            found = last_scores(run.model.eval(), held, run.tokenizer.pad_token_id)
            run.model.train()
            marks = [e.right[-1] if e.right else False for e in held]
            right, wrong = ([f for f, m in zip(found, marks, strict=True) if m == side] for side in (True, False))
            run.curve.append({"step": run.step, "losses": losses, "auc": round(auc(right, wrong), 4)})
            print(f"{run.curve[-1]} {run.tokens} tokens {run.seconds:.0f} s", flush=True)
            run.save(out / "checkpoint.pt")
            recent = []


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--samples", type=Path, default=Path("build/demo_verifier/samples"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, help="stop early, the schedule unchanged")
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    recipe = Recipe()
    run = Run(recipe, options.seed)
    if options.resume:
        run.load(options.out / "checkpoint.pt")
    sampled = read(options.samples)
    train(run, sampled, options.out, options.steps or recipe.steps)
    summary = {
        "seed": run.seed, "parameters": sum(p.numel() for p in run.model.parameters()), "samples": len(sampled),
        "steps": run.step, "tokens": run.tokens, "seconds": round(run.seconds), "recipe": asdict(recipe),
        "curve": run.curve,
    }  # fmt: skip
    (options.out / "summary.json").write_text(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
