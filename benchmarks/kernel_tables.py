"""The tables of benchmarks/kernels.py: ways to run experts, and from which number of rows on torch is faster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.page_text import Results, markdown, not_measured, threads

WAYS = "experts, by tokens, in other ways (milliseconds)"
SWEEPS = {"experts": "experts, by rows an expert", "a linear layer": "linear, by rows"}


def kernels(results: Results) -> str:
    """Both tables, for both types of numbers."""
    data = results.get("kernels")
    if data is None:
        return not_measured("kernels")
    types = [name for name in data if name != "machine"]
    return "\n".join([_ways(data, types), _sweeps(data, types), _place(data["machine"])])


def _ways(data: Mapping[str, Any], types: list[str]) -> str:
    names = list(next(iter(data[types[0]][WAYS].values())))
    rows = [
        (kind, tokens, *(f"{found[name]:.1f}" for name in names))
        for kind in types
        for tokens, found in data[kind][WAYS].items()
    ]
    return "All experts of a step, milliseconds:\n\n" + markdown(("type", "tokens", *names), rows)


def _sweeps(data: Mapping[str, Any], types: list[str]) -> str:
    texts = []
    for what, key in SWEEPS.items():
        counts = list(data[types[0]][key])
        rows = [(kind, *(f"{data[kind][key][n]['kernel is faster']['median']:.2f}" for n in counts)) for kind in types]
        title = f"How many times faster the kernel of {what} is than torch, by {key.rpartition('by ')[2]}:"
        texts.append(f"{title}\n\n{markdown(('type', *counts), rows)}")
    return "\n".join(texts)


def _place(machine: Mapping[str, Any]) -> str:
    return f"{machine['processor']}, {threads(machine['threads'])}, {machine['date']}, {machine['compiler']}.\n"
