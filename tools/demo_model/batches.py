"""The stream of training batches: a pure function of (seed, recipe, step), so that a run can resume.

A block of batches is drawn at once and cut by length, which wastes little on padding.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tools.demo_model.documents import Mix, Parts, document

BLOCK = 16  # batches drawn, sorted by length and shuffled together
LONGEST = 448  # tokens; longer documents are cut


@dataclass(frozen=True)
class Stage:
    """So many optimizer steps on one mix of documents."""

    name: str
    steps: int
    mix: Mix


@dataclass(frozen=True)
class Batch:
    """Token ids ``[documents, length]``, padded on the right, and the loss weight of each token."""

    tokens: Tensor
    weights: Tensor


def encode(parts: Parts, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[float]]:
    """Token ids and weights of one document; parts are tokenised apart, at boundaries of pieces."""
    tokens, weights = [], []
    for encoding, (_, weight) in zip(tokenizer([text for text, _ in parts])["input_ids"], parts, strict=True):
        tokens += encoding
        weights += [weight] * len(encoding)
    return tokens[:LONGEST], weights[:LONGEST]


def pad(documents: list[tuple[list[int], list[float]]], pad_id: int) -> Batch:
    """One right-padded batch; padding has weight 0."""
    length = max(len(tokens) for tokens, _ in documents)
    tokens = torch.full((len(documents), length), pad_id)
    weights = torch.zeros(len(documents), length)
    for row, (ids, loss) in enumerate(documents):
        tokens[row, : len(ids)] = torch.tensor(ids)
        weights[row, : len(ids)] = torch.tensor(loss)
    return Batch(tokens, weights)


def block(stage: Stage, index: int, seed: int, size: int, tokenizer: PreTrainedTokenizerFast) -> list[Batch]:
    """Block ``index`` of a stage: BLOCK batches of ``size`` documents of similar length."""
    rng = random.Random(f"tokenscale/batches/{seed}/{stage.name}/{index}")
    documents = [encode(document(stage.mix, rng), tokenizer) for _ in range(BLOCK * size)]
    documents.sort(key=lambda pair: len(pair[0]))
    cuts = [documents[i : i + size] for i in range(0, len(documents), size)]
    rng.shuffle(cuts)
    return [pad(cut, tokenizer.pad_token_id) for cut in cuts]


def stream(
    stages: tuple[Stage, ...], first: int, seed: int, size: int, tokenizer: PreTrainedTokenizerFast
) -> Iterator[tuple[Stage, Batch]]:
    """Batches from optimizer step ``first`` to the end of the last stage."""
    begin = 0
    for stage in stages:
        batches: list[Batch] = []
        for step in range(max(first - begin, 0), stage.steps):
            if step % BLOCK == 0 or not batches:
                batches = block(stage, step // BLOCK, seed, size, tokenizer)
            yield stage, batches[step % BLOCK]
        begin += stage.steps
