"""Held-out documents as blocks of tokens, and their loss by plain transformers: the oracle of every other score."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tools.demo_text.batches import encode

LENGTH = 256  # tokens of a block, its first (the end token) included: the length of training windows


@dataclass(frozen=True)
class Block:
    """A piece of a document: the end token, then up to LENGTH - 1 tokens that are scored."""

    document: int
    ids: tuple[int, ...]


def blocks(texts: list[str], tokenizer: PreTrainedTokenizerFast, length: int = LENGTH) -> list[Block]:
    """The documents, each with its end token, cut into blocks; every token is scored once."""
    end, step = tokenizer.eos_token_id, length - 1
    return [
        Block(number, (end, *ids[i : i + step]))
        for number, ids in enumerate(encode(texts, tokenizer))
        for i in range(0, len(ids), step)
    ]


@torch.no_grad()
def plain_log_probs(model: PreTrainedModel, found: Sequence[Block]) -> list[list[float]]:
    """log p of each block's tokens after the first, in nats; one forward a block."""
    result = []
    for block in found:
        ids = torch.tensor([block.ids])
        scores = -F.cross_entropy(model(input_ids=ids, use_cache=False).logits[0, :-1], ids[0, 1:], reduction="none")
        result.append(scores.tolist())
    return result


def mean_loss(log_probs: Sequence[Sequence[float]]) -> float:
    """Nats per token."""
    return -sum(map(sum, log_probs)) / sum(map(len, log_probs))
