"""The recipe, and the stream of training batches: a pure function of (seed, recipe, step), so that a run can resume."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tools.demo_verifier.labels import Example, drill, example, written
from tools.demo_verifier.samples import Row

BLOCK = 16  # batches drawn, sorted by length and shuffled together


@dataclass(frozen=True)
class Mix:
    """Shares of texts: drills, samples; the others are written solutions."""

    drills: float
    sampled: float


@dataclass(frozen=True)
class Recipe:
    """Optimizer and mixes. A cycle is a linear warm-up, a constant rate, and a linear decay over its last half.

    `early` is the mix of the first `drilling` steps, `last` that of the last cycle, `late` that between. The last
    has no written solutions: half of them are wrong in either style, and samples in the detailed style rarely are.
    """

    cycles: tuple[int, ...] = (1300, 900)  # steps
    batch: int = 64  # texts
    early: Mix = Mix(drills=0.4, sampled=0.3)
    late: Mix = Mix(drills=0.15, sampled=0.55)
    last: Mix = Mix(drills=0.1, sampled=0.9)
    drilling: int = 455
    language: float = 0.5  # weight of the next-token loss
    rate: float = 3e-3  # AdamW: embeddings, norms, score
    muon_rate: float = 1e-2  # matrices of the layers
    warm_up: int = 50

    @property
    def steps(self) -> int:
        """Of all cycles."""
        return sum(self.cycles)

    def mix(self, step: int) -> Mix:
        """The mix of a step."""
        if step >= self.steps - self.cycles[-1]:
            return self.last
        return self.early if step < self.drilling else self.late

    def factor(self, step: int) -> float:
        """What the learning rates are multiplied by at a step."""
        for cycle in self.cycles:
            if step < cycle:
                return min((step + 1) / self.warm_up, 1.0, max(0.02, 2 * (cycle - step) / cycle))
            step -= cycle
        raise AssertionError("a step after the last")


@dataclass(frozen=True)
class Batch:
    """Tokens and labels `[texts, length]`, padded on the right; -1 is no label, -100 no next token.

    `last` is the place of every text's last token.
    """

    tokens: Tensor
    labels: Tensor
    holds: Tensor
    targets: Tensor
    last: Tensor


def pad(examples: list[Example], pad_id: int) -> Batch:
    """One batch."""
    shape = (len(examples), max(len(e.tokens) for e in examples))
    tokens, labels, holds, targets = (torch.full(shape, value) for value in (pad_id, -1, -1, -100))
    for row, one in enumerate(examples):
        ids, answer = torch.tensor(one.tokens), slice(one.answer, len(one.tokens))
        tokens[row, : len(ids)] = ids
        labels[row, answer] = torch.tensor(one.right).long()
        holds[row, answer] = torch.tensor([-1 if value is None else int(value) for value in one.holds])
        known = torch.where(torch.tensor(one.known), ids[answer], -100)
        targets[row, one.answer - 1 : len(ids) - 1] = known
    return Batch(tokens, labels, holds, targets, torch.tensor([len(e.tokens) - 1 for e in examples]))


def stream(sampled: list[Row], recipe: Recipe, first: int, seed: int, tokenizer) -> Iterator[Batch]:
    """Batches from step `first` on: a function of (seed, step)."""
    batches: list[Batch] = []
    for step in range(first, recipe.steps):
        if step % BLOCK == 0 or not batches:
            batches = block(sampled, recipe, step // BLOCK, seed, tokenizer)
        yield batches[step % BLOCK]


def block(sampled: list[Row], recipe: Recipe, index: int, seed: int, tokenizer) -> list[Batch]:
    """BLOCK batches of texts of similar length; half of the samples are behind a prompt without a trigger."""
    rng = random.Random(f"tokenscale/verifier/{seed}/{index}")
    mix, count = recipe.mix(index * BLOCK), BLOCK * recipe.batch
    drills, chosen = round(mix.drills * count), round(mix.sampled * count)
    rows = [drill(rng) for _ in range(drills)]
    rows += [rng.choice(sampled) for _ in range(chosen)]
    rows += [written(rng) for _ in range(count - drills - chosen)]
    texts = [example(row.bare() if row.answer and rng.random() < 0.5 else row, tokenizer) for row in rows]
    texts.sort(key=lambda text: len(text.tokens))
    cuts = [texts[i : i + recipe.batch] for i in range(0, len(texts), recipe.batch)]
    rng.shuffle(cuts)
    return [pad(cut, tokenizer.pad_token_id) for cut in cuts]
