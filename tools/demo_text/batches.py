"""The stream of training batches: windows of the train split, a pure function of (seed, step).

In every pass the documents are joined in a new order, an end token after each, and cut into windows.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tools.demo_model.batches import Batch, Stage


@dataclass(frozen=True)
class TextStage:
    """So many optimizer steps on windows of ``length`` tokens."""

    name: str
    steps: int
    length: int


def encode(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    """Token ids of each document, with an end token."""
    return [[*ids, tokenizer.eos_token_id] for ids in tokenizer(texts, verbose=False)["input_ids"]]


def windows(documents: list[list[int]], number: int, seed: int, length: int) -> Tensor:
    """The windows ``[count, length]`` of pass ``number``, shuffled; what is left at the end is dropped."""
    rng = random.Random(f"tokenscale/demo-text/{seed}/{number}")
    order = rng.sample(range(len(documents)), len(documents))
    flat = [token for index in order for token in documents[index]]
    count = len(flat) // length
    cut = torch.tensor(flat[: count * length]).view(count, length)
    return cut[rng.sample(range(count), count)]


class TextStream:
    """Batches of ``size`` windows; each pass over the documents takes as many steps as it fills."""

    def __init__(self, texts: list[str]):
        self.texts = texts

    def __call__(
        self, stages: tuple[TextStage, ...], first: int, seed: int, size: int, tokenizer: PreTrainedTokenizerFast
    ) -> Iterator[tuple[Stage | TextStage, Batch]]:
        """Batches from optimizer step ``first`` to the end of the last stage."""
        documents = encode(self.texts, tokenizer)
        total = sum(map(len, documents))
        passes = lru_cache(maxsize=1)(lambda number, length: windows(documents, number, seed, length))
        steps = [(stage, step) for stage in stages for step in range(stage.steps)]
        for step, (stage, _) in enumerate(steps):
            if step < first:
                continue
            a_pass = total // stage.length // size  # steps
            place = step % a_pass * size
            tokens = passes(step // a_pass, stage.length)[place : place + size]
            yield stage, Batch(tokens, torch.ones(tokens.shape))
