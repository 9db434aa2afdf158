"""Scores the held-out test documents under RoE by the library's parallel scoring, configuration after configuration.

    python -m tools.demo_text.evaluate --model demo-text --out build/demo_text/demo-text/library.json

Results are written as they come, and configurations that the file already has are not run again.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import tokenscale as ts
from tools.demo_text.corpus import HELD_OUT, digest, read
from tools.demo_text.held_out import Block, blocks

TAUS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
ROWS = (2, 4, 8, 16)


@dataclass(frozen=True)
class Configuration:
    """One way to score; n = 1 is the clean model."""

    n: int = 1
    tau: float = 0.0
    current_kv: str = "own"
    clean_layers: int = 0

    @property
    def proposer(self) -> ts.TokenProposer:
        """The proposer that runs it."""
        if self.n == 1:
            return ts.Plain()
        return ts.RoE(n=self.n, tau=self.tau, clean_layers=self.clean_layers, current_kv=self.current_kv)


def configurations() -> Iterator[Configuration]:
    """The grid, what matters most first."""
    yield Configuration()
    for current_kv in ("own", "clean"):
        yield from (Configuration(8, tau, current_kv) for tau in TAUS)
        yield from (Configuration(n, 0.5, current_kv) for n in ROWS if n != 8)
        yield from (Configuration(n, tau, current_kv) for tau in TAUS if tau != 0.5 for n in ROWS if n != 8)
    yield from (Configuration(8, tau, clean_layers=1) for tau in TAUS)


def document_losses(log_probs: list[list[float]], found: list[Block]) -> list[float]:
    """The sum of -log p over each document's tokens, in nats."""
    losses = [0.0] * (found[-1].document + 1)
    for scores, block in zip(log_probs, found, strict=True):
        losses[block.document] -= math.fsum(scores[-(len(block.ids) - 1) :])
    return losses


def document_tokens(found: list[Block]) -> list[int]:
    """Scored tokens of each document."""
    counts = [0] * (found[-1].document + 1)
    for block in found:
        counts[block.document] += len(block.ids) - 1
    return counts


def measure(lm: ts.LanguageModel, found: list[Block], which: Configuration, seed: int) -> dict:
    """The configuration, its losses by document and the seconds they took."""
    before = time.monotonic()
    scores = lm.score([block.ids for block in found], which.proposer, ts.MeanProbability(), seed=seed)
    losses = document_losses([list(score.log_probs) for score in scores], found)
    return {**asdict(which), "losses": losses, "seconds": round(time.monotonic() - before, 1)}


def opened(path: Path, head: dict) -> dict:
    """The report in ``path``, or a new one; refuses one of other data or another seed."""
    report = json.loads(path.read_text()) if path.exists() else {**head, "rows": []}
    if {key: report[key] for key in head} != head:
        raise ValueError(f"{path} is of other data or another seed: name another file")
    return report


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a packaged name or a folder")
    parser.add_argument("--data", type=Path, default=HELD_OUT / "test.jsonl")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lm = ts.load(options.model)
    found = blocks(read(options.data), lm.tokenizer)
    head = {"data_sha256": digest(options.data), "seed": options.seed, "tokens": document_tokens(found)}
    report = opened(options.out, head)
    done = [{key: row[key] for key in asdict(Configuration())} for row in report["rows"]]
    for which in configurations():
        if asdict(which) in done:
            continue
        report["rows"].append(measure(lm, found, which, options.seed))
        loss = sum(report["rows"][-1]["losses"]) / sum(head["tokens"])
        print(f"{which} {loss:.4f} {report['rows'][-1]['seconds']} s", flush=True)
        options.out.write_text(json.dumps(report))


if __name__ == "__main__":
    main()
