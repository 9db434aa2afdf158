"""What one forward gave, and what it ran: the record that bills are made of."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokenscale.core.cost import Packed
from tokenscale.core.shape import ModelShape
from tokenscale.core.unread import Reads


@dataclass(frozen=True)
class Work:
    """What every sequence of a batch ran on one of its caches for one token: what bills are made of.

    `rows` token rows, `heads` rows whose logits were computed, `runs` products of a row with an
    expert (summed over MoE layers), `experts` those that ran, of which noise made `choices`
    selections and `changed` so many of them. A proposer that saves rows says which tokens it `checked`
    and which `differed` (see `RoutingStats`); None where none does. `forwards` are the parts of a token's work
    that followed one another; empty where it was one forward.
    """

    rows: Int[Tensor, " batch"]
    heads: Int[Tensor, " batch"]
    runs: Int[Tensor, " batch"]
    experts: Bool[Tensor, "batch moe_layers experts"]
    choices: Int[Tensor, " batch"]
    changed: Int[Tensor, " batch"]
    checked: Bool[Tensor, " batch"] | None = None
    differed: Bool[Tensor, " batch"] | None = None
    forwards: tuple[Work, ...] = ()

    def plus(self, other: Work) -> Work:
        """Both, as the work of one token: another forward over the same cache after this one."""
        return Work(
            self.rows + other.rows,
            self.heads + other.heads,
            self.runs + other.runs,
            self.experts | other.experts,
            self.choices + other.choices,
            self.changed + other.changed,
            forwards=(*(self.forwards or (self,)), other),
        )


@dataclass(frozen=True)
class Step(Reads):
    """One forward's outcome.

    `logits` are float32 and raw; large ones are computed when they are read. `experts` marks the experts each
    row ran; None for a dense model. `noisy[b, i, l]` says that noise took part in row i's choice in MoE layer l,
    and `changed` that it changed the set of experts, compared with the same row's choice without noise; both
    None where no noise was asked for.
    """

    logits: Float[Tensor, "batch rows vocab"]
    experts: Bool[Tensor, "batch run_rows moe_layers experts"] | None = None
    changed: Bool[Tensor, "batch run_rows moe_layers"] | None = None
    noisy: Bool[Tensor, "batch run_rows moe_layers"] | None = None

    def work(self, shape: ModelShape, valid: Bool[Tensor, "batch run_rows"] | None = None) -> Work:
        """The forward as work. Rows that are not `valid` are padding, which nobody is billed for."""
        batch, heads, _ = self.held.shape
        run_rows = heads if self.experts is None else self.experts.shape[1]
        if valid is None:
            rows, logits = _same(batch, run_rows), _same(batch, heads)
        else:
            valid = valid.cpu()
            rows = logits = valid.sum(1)
        nothing = _same(batch, 0)
        if self.experts is None:
            return Work(rows, logits, nothing, no_experts(batch, shape), nothing, nothing)
        ran = _of(self.experts, valid)
        choices = nothing if self.noisy is None else _of(self.noisy, valid).sum((1, 2))
        changed = nothing if self.changed is None else _of(self.changed, valid).sum((1, 2))
        return Work(rows, logits, ran.sum((1, 2, 3)), ran.any(1), choices, changed)


@lru_cache(64)
def _same(batch: int, count: int) -> Int[Tensor, " batch"]:
    """The same count for all sequences, made once; not to be written to."""
    return torch.full((batch,), count, device="cpu")


def _of(marks: Bool[Tensor, "batch rows *rest"], valid: Bool[Tensor, "batch rows"] | None) -> Tensor:
    marks = marks.cpu()
    return marks if valid is None else marks & valid.view(*valid.shape, *[1] * (marks.ndim - 2))


def pack_experts(marks: Bool[Tensor, "*batch experts"]) -> Packed:
    """Boolean expert marks as packed bits along the last axis, for `core.cost`."""
    return np.packbits(marks.cpu().numpy(), axis=-1)


def no_experts(batch: int, shape: ModelShape) -> Bool[Tensor, "batch moe_layers experts"]:
    """Marks of a forward that ran no experts (a dense model or an empty prefill)."""
    return torch.zeros(batch, shape.moe_layers, shape.experts, dtype=torch.bool)
