"""Cases for aggregators that are the same in every run, unlike those that hypothesis finds."""

from __future__ import annotations

import torch

from tokenscale.core.strategy import Rows
from tokenscale.testing.aggregator_cases import Case, Oracle

NEVER = float("-inf")


def example(seed: int, oracle: Oracle, *, rows: int | None = None, lipschitz: float = 2.0) -> Case:
    """Three sequences of eight tokens: every second with ties, every third with padding, every fourth with vetoes."""
    source = torch.Generator().manual_seed(seed)
    n = rows or 1 + seed % 5
    logits = torch.randn(3, n, 8, generator=source) * (1 + seed % 10)
    if seed % 2:
        logits = (logits * 2).round() / 2
    valid = torch.ones(3, n, dtype=torch.bool)
    if seed % 3 == 0:
        valid = torch.rand(3, n, generator=source) < 0.7
        valid[:, seed % n] = True
    vetoed = torch.zeros_like(logits, dtype=torch.bool)
    if seed % 4 == 0:
        vetoed = torch.rand(3, n, 8, generator=source) < 0.3
        vetoed[:, :, 1] = True
        vetoed[:, :, 0] = False
    foreign = torch.arange(8) % n != torch.arange(n)[:, None]
    return Case(
        rows=Rows(logits.masked_fill(vetoed, NEVER), valid),
        disjoint=Rows(logits.masked_fill(foreign, NEVER), valid),
        shift=torch.randn(3, n, 1, generator=source) * 30,
        order=torch.randperm(n, generator=source),
        oracle=oracle,
        lipschitz=lipschitz,
    )
