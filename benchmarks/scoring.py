"""Scoring a text under RoE in one forward against scoring it step by step, on the demo model.

    python -m benchmarks.scoring --out benchmarks/results/scoring.json

The text has T + 1 random tokens, so T are scored, each in n rows. All in one run, arms taking turns;
medians and ratios. Needs an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import tokenscale as ts
from benchmarks.common import interleaved, machine, ratio
from tokenscale.core.score import MAX_MEMORY_MB, given_texts
from tokenscale.core.stepped import stepped
from tokenscale.models import scoring

CHUNKS = (64, 128, 256, 512, 1024)


class Arms:
    """Ways to score one text: all give the same numbers."""

    def __init__(self, model: str, tokens: int, proposer: ts.TokenProposer) -> None:
        self.lm = ts.load(model)
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(2, self.lm.vocab_size, (tokens + 1,), generator=generator)
        self.texts = given_texts(self.lm, [tuple(ids.tolist())])
        self.proposer, self.aggregator = proposer, proposer.default_aggregator

    @torch.no_grad()
    def steps(self) -> tuple[float, ...]:
        """Token by token, as decoding would."""
        [outcome] = stepped(self.lm, self.texts, self.proposer, self.aggregator, 1)
        return outcome.log_probs

    def forward(self, rows: int = scoring.CHUNK_ROWS) -> Callable[[], tuple[float, ...]]:
        """In chunks of at most `rows` rows."""

        def run() -> tuple[float, ...]:
            before, scoring.CHUNK_ROWS = scoring.CHUNK_ROWS, rows
            try:
                found = self.lm.forced(self.texts, self.proposer, self.aggregator, MAX_MEMORY_MB * 2**20)
            finally:
                scoring.CHUNK_ROWS = before
            assert found is not None
            return found[0].log_probs

        return run


def measured(model: str, tokens: int, n: int, rounds: int) -> dict[str, Any]:
    """Milliseconds, medians over rounds, and ratios."""
    roe = Arms(model, tokens, ts.RoE(n=n, tau=0.3))
    plain = Arms(model, tokens, ts.Plain())
    chunks = {f"chunks of {rows} rows": roe.forward(rows) for rows in CHUNKS}
    arms = {"steps": roe.steps, "one forward": roe.forward(), **chunks}
    arms |= {"steps, n = 1": plain.steps, "one forward, n = 1": plain.forward()}
    seconds = interleaved(arms, rounds)
    difference = max(abs(a - b) for a, b in zip(roe.steps(), roe.forward()(), strict=True))
    return {
        "model": model,
        "tokens": tokens,
        "n": n,
        "chunk_rows": scoring.CHUNK_ROWS,
        "milliseconds": {name: round(1e3 * statistics.median(values), 1) for name, values in seconds.items()},
        "times faster than steps": ratio(seconds, "steps", "one forward"),
        "times faster than steps, n = 1": ratio(seconds, "steps, n = 1", "one forward, n = 1"),
        "largest difference of a log-probability": difference,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--n", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = {"machine": machine(), **measured(options.model, options.tokens, options.n, options.rounds)}
    text = json.dumps(result, indent=1)
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
