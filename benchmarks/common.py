"""What the scripts here share: printing tables and writing result files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from tokenscale.bench import suite, tables
from tokenscale.bench.clock import Seconds, times_faster
from tokenscale.bench.machine import machine as where

RESULTS = Path(__file__).parent / "results"


def finish(entries: Iterable[dict[str, Any]], out: Path | None, command: str) -> None:
    """Prints the entries as tables, and writes them where `out` says."""
    found = list(entries)
    for table in tables.tables(found):
        print(f"\n{table.markdown()}")
    for reason in tables.omissions(found):
        print(f"left out: {reason}")
    if out is not None:
        suite.write(out, found, command)


def machine() -> dict[str, Any]:
    """Where figures come from, with the threads of this process."""
    return {**where(), "threads": torch.get_num_threads()}


def ratio(seconds: Seconds, slow: str, fast: str) -> dict[str, float]:
    """How many times faster: the median over rounds of the paired ratio, with the quartiles."""
    return {name: round(value, 2) for name, value in times_faster(seconds, slow, fast).to_dict().items()}


def write(result: dict[str, Any], out: Path | None) -> None:
    """Prints a result, and writes it where `out` says."""
    text = json.dumps(result, indent=1, ensure_ascii=False)
    print(text)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n")
