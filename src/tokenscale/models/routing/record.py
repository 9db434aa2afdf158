"""What the routers of a model did in one forward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass
class RoutingRecord:
    """Per MoE layer the experts that every token chose, -1 where it ran fewer, and would have chosen by itself.

    `paid[layer]`: experts from this index on cost nothing (identity and skip experts). `drew` are the
    layers in which noise took part.
    """

    paid: Sequence[int]
    layers: list[int] = field(default_factory=list)
    chosen: list[Int[Tensor, "tokens width"]] = field(default_factory=list)
    clean: list[Int[Tensor, "tokens top_k"]] = field(default_factory=list)
    drew: list[Bool[Tensor, " tokens"] | None] = field(default_factory=list)

    def add(
        self,
        layer: int,
        chosen: Int[Tensor, "*tokens width"],
        clean: Int[Tensor, "*tokens top_k"],
        drew: Bool[Tensor, " tokens"] | None,
    ) -> None:
        """One router's call. Padding of a row that runs fewer experts is -1."""
        self.layers.append(layer)
        self.chosen.append(chosen.flatten(0, -2))
        self.clean.append(clean.flatten(0, -2))
        self.drew.append(drew)

    def marks(self, batch: int, rows: int, experts: int) -> Bool[Tensor, "batch rows moe_layers experts"]:
        """The experts that every row ran, those that cost something."""
        paid = [min(self.paid[layer], experts) for layer in self.layers]
        marks = _marks(self.chosen, experts)
        for layer, count in enumerate(paid):
            if count < experts:
                marks[layer, :, count:] = False
        return marks.view(-1, batch, rows, experts).permute(1, 2, 0, 3)

    def changed(self, batch: int, rows: int, experts: int) -> Bool[Tensor, "batch rows moe_layers"]:
        """Where noise changed the set of experts."""
        differs = (_marks(self.chosen, experts) != _marks(self.clean, experts)).any(-1)
        return (differs.view(-1, batch, rows) & self._drew(batch, rows)).permute(1, 2, 0)

    def noisy(self, batch: int, rows: int) -> Bool[Tensor, "batch rows moe_layers"]:
        """Where noise took part in a choice."""
        return self._drew(batch, rows).permute(1, 2, 0)

    def _drew(self, batch: int, rows: int) -> Bool[Tensor, "moe_layers batch rows"]:
        drew = torch.zeros(len(self.chosen), batch * rows, dtype=torch.bool, device=self.chosen[0].device)
        for layer, tokens in enumerate(self.drew):
            if tokens is not None:
                drew[layer] = tokens
        return drew.view(-1, batch, rows)


def _marks(indices: Sequence[Int[Tensor, "tokens _"]], experts: int) -> Bool[Tensor, "moe_layers tokens experts"]:
    """Marks of indices; -1 marks nothing."""
    widest = max(i.shape[-1] for i in indices)
    device = indices[0].device
    same = [i.to(device) if i.shape[-1] == widest else _padded(i.to(device), widest) for i in indices]
    stacked = torch.stack(same)
    marks = torch.zeros(*stacked.shape[:-1], experts + 1, dtype=torch.bool, device=device)
    return marks.scatter_(-1, stacked.where(stacked >= 0, experts), True)[..., :experts]


def _padded(indices: Int[Tensor, "tokens width"], widest: int) -> Int[Tensor, "tokens widest"]:
    return torch.nn.functional.pad(indices, (0, widest - indices.shape[-1]), value=-1)
