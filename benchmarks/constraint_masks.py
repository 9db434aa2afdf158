"""What a constraint costs per step and beam, and what outlines_core's index costs to build.

    python -m benchmarks.constraint_masks --out benchmarks/results/constraint_masks.json

The vocabulary is made up: all bytes, and words of random letters, half of them behind a space. `first_us` is a
step in states that were not met before, `again_us` the same walk again: allowed, advance and over, medians.
Needs an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from outlines_core import Index as OutlinesIndex
from outlines_core import Vocabulary as OutlinesVocabulary

from benchmarks.common import machine, write
from tokenscale.models.toy_tokenizer import ToyTokenizer
from tokenscale.sequence_level.guides import Index, RegexGuide
from tokenscale.sequence_level.guides_automaton import compile_regex
from tokenscale.sequence_level.guides_vocabulary import Vocabulary

PATTERNS = (" ?[0-9]+", "(yes|no|maybe)", '"[^"]{1,100}"', "[a-z ]+", ".{0,200}")
LETTERS = "etaoinshrdlucmfwypvbgkjqxz"
STEPS, ROUNDS = 60, 20


class Words:
    """As much of a language model as a vocabulary reads: `size` tokens, the first of which ends a text."""

    name, eos_ids, suppressed_ids = "words", frozenset({0}), frozenset[int]()

    def __init__(self, size: int) -> None:
        source, pieces = random.Random(0), dict.fromkeys(map(chr, range(1, 128)))
        while len(pieces) < size - 1:
            length = max(1, round(source.gauss(6, 2)))
            word = "".join(LETTERS[min(int(source.expovariate(0.25)), 25)] for _ in range(length))
            pieces[source.choice(("", " ")) + word] = None
        self.tokenizer, self.vocab_size = ToyTokenizer(tuple(pieces)), size
        self.fingerprint = f"words {size}"

    def decode(self, token_ids: list[int]) -> str:
        return self.tokenizer.decode(token_ids)


def walk(guide: RegexGuide, seed: int) -> tuple[list[int], list[float]]:
    """Random allowed tokens, and the seconds of every step."""
    source, ids, seconds = random.Random(seed), list[int](), list[float]()
    while len(ids) < STEPS and not (ids and guide.over):
        start = time.perf_counter()
        mask = guide.allowed()
        seconds.append(time.perf_counter() - start)
        ids.append(source.choice([i for i in torch.nonzero(mask).flatten().tolist() if i]))
        start = time.perf_counter()
        guide.advance(ids[-1])
        _ = guide.over
        seconds[-1] += time.perf_counter() - start
    return ids, seconds


def again(guide: RegexGuide, ids: list[int]) -> float:
    start = time.perf_counter()
    for token in ids:
        guide.allowed()
        guide.advance(token)
        _ = guide.over
    return (time.perf_counter() - start) / len(ids)


def figures(vocabulary: Vocabulary, outlines: Any, pattern: str) -> dict[str, Any]:
    start = time.perf_counter()
    OutlinesIndex(pattern, outlines)
    built = time.perf_counter() - start
    start = time.perf_counter()
    compile_regex.__wrapped__(pattern, "pattern")
    compiled = time.perf_counter() - start
    index = Index(vocabulary, compile_regex(pattern, "pattern"))
    guide = RegexGuide(index, index.automaton.start)
    ids, first = walk(guide.fork(), 1)  # type: ignore[arg-type]
    repeated = [again(guide.fork(), ids) for _ in range(ROUNDS)]  # type: ignore[arg-type]
    return {
        "pattern": pattern,
        "steps": len(ids),
        "outlines_index_s": round(built, 4),
        "compile_s": round(compiled, 4),
        "first_us": round(statistics.median(first) * 1e6, 1),
        "first_us_most": round(max(first) * 1e6, 1),
        "again_us": round(statistics.median(repeated) * 1e6, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[50_000, 150_000])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true", help="a small vocabulary: to see that it runs")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.sizes = [500]
    torch.set_num_threads(1)
    result: dict[str, Any] = {"machine": machine(), "sizes": {}}
    for size in arguments.sizes:
        lm: Any = Words(size)
        start = time.perf_counter()
        vocabulary = Vocabulary(lm)
        seconds = time.perf_counter() - start
        spelled = {text: [token] for token, text in enumerate(vocabulary.texts) if text}
        rows = [figures(vocabulary, OutlinesVocabulary(0, spelled), pattern) for pattern in PATTERNS]
        result["sizes"][size] = {"vocabulary_s": round(seconds, 3), "patterns": rows}
    write(result, arguments.out)


if __name__ == "__main__":
    main()
