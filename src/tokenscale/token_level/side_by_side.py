"""Several proposals for the same tokens, side by side: their rows are joined, their caches stay apart."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from tokenscale.core.cost import Cached
from tokenscale.core.step import Work
from tokenscale.core.strategy import Proposals, Rows


class SideBySide(Proposals):
    """The rows of all members, in their order; every member is fed the same tokens and runs its own forward."""

    def __init__(self, members: Sequence[Proposals]) -> None:
        self._members = list(members)

    def propose(self, tokens: Int[Tensor, " batch"]) -> tuple[Rows, tuple[Work, ...]]:
        proposed = [member.propose(tokens) for member in self._members]
        device = proposed[0][0].logits.device
        rows = Rows(
            torch.cat([rows.logits.to(device) for rows, _ in proposed], dim=1),
            torch.cat([rows.valid.to(device) for rows, _ in proposed], dim=1),
        )
        return rows, tuple(work for _, works in proposed for work in works)

    @property
    def cached(self) -> list[tuple[Cached, ...]]:
        every = zip(*(member.cached for member in self._members), strict=True)
        return [tuple(cache for caches in sequence for cache in caches) for sequence in every]

    @property
    def lengths(self) -> list[int]:
        return self._members[0].lengths

    def select(self, index: Sequence[int]) -> SideBySide:
        return SideBySide([member.select(index) for member in self._members])

    def join(self, other: Proposals) -> SideBySide:
        assert isinstance(other, SideBySide)
        return SideBySide([one.join(two) for one, two in zip(self._members, other._members, strict=True)])
