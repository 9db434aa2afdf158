"""What the tests of constraints share: models by their vocabulary alone, random walks, exhaustive enumeration."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from typing import Any

import torch

import tokenscale
from tokenscale.core.constraint import Guide
from tokenscale.models.text import decode


@functools.cache
def demo() -> tokenscale.HFModel:
    return tokenscale.load("demo")


class Speller:
    """As much of a language model as a constraint reads: a tokenizer, and which tokens end a text."""

    name = "speller"

    def __init__(
        self, tokenizer: Any, ends: Sequence[int] = (), *, size: int = 0, suppressed: Sequence[int] = ()
    ) -> None:
        self.tokenizer = tokenizer
        self.vocab_size = size or len(tokenizer)
        self.eos_ids, self.suppressed_ids = frozenset(ends), frozenset(suppressed)
        self.fingerprint = str(id(tokenizer))

    def decode(self, token_ids: Sequence[int]) -> str:
        return decode(self.tokenizer, token_ids, self.name)


def tokens(guide: Guide, size: int) -> set[int]:
    mask = guide.allowed()
    return set(range(size)) if mask is None else set(torch.nonzero(mask).flatten().tolist())


def walk(lm: Any, guide: Guide, seed: int, most: int) -> tuple[list[int], bool]:
    """Random allowed tokens up to an end, and whether the text may end there."""
    source, ids = random.Random(seed), list[int]()
    while len(ids) < most and not guide.over:
        token = source.choice(sorted(tokens(guide, lm.vocab_size)))
        if token in lm.eos_ids:
            break
        ids.append(token)
        guide.advance(token)
    return ids, guide.met


def reachable(lm: Any, guide: Guide, longest: int) -> set[str]:
    """All texts of at most `longest` characters that end where the guide lets them. No token may lead nowhere."""
    found, waiting = set[str](), [(guide, tuple[int, ...]())]
    while waiting:
        guide, ids = waiting.pop()
        allowed = tokens(guide, lm.vocab_size)
        assert bool(allowed & lm.eos_ids) == guide.met
        assert guide.over == (not allowed - lm.eos_ids)
        assert allowed, ids
        if guide.met:
            found.add(lm.decode(ids))
        for token in allowed - lm.eos_ids:
            if len(lm.decode([*ids, token])) <= longest:
                waiting.append((guide.fork(), (*ids, token)))
                waiting[-1][0].advance(token)
    return found
