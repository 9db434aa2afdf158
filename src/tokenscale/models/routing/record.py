"""What the routers of a model did in one forward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

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
    _marked: Bool[Tensor, "moe_layers tokens experts"] | None = None

    def add(
        self,
        layer: int,
        chosen: Int[Tensor, "*tokens width"],
        clean: Int[Tensor, "*tokens top_k"],
        drew: Bool[Tensor, " tokens"] | None,
    ) -> None:
        """One router's call. Padding of a row that runs fewer experts is -1."""
        self.layers.append(layer)
        self.chosen.append(chosen if chosen.ndim == 2 else chosen.flatten(0, -2))
        self.clean.append(clean if clean.ndim == 2 else clean.flatten(0, -2))
        self.drew.append(drew)

    def marks(self, batch: int, rows: int, experts: int) -> Bool[Tensor, "batch rows moe_layers experts"]:
        """The experts that every row ran, those that cost something."""
        paid = [min(self.paid[layer], experts) for layer in self.layers]
        marks = self._chosen(experts)
        if min(paid) < experts:
            marks = marks.clone()
            for layer, count in enumerate(paid):
                marks[layer, :, count:] = False
        return marks.view(-1, batch, rows, experts).permute(1, 2, 0, 3)

    def changed(self, batch: int, rows: int, experts: int) -> Bool[Tensor, "batch rows moe_layers"]:
        """Where noise changed the set of experts."""
        differs = (self._chosen(experts) != _marks(self.clean, experts)).any(-1)
        return (differs.view(-1, batch, rows) & self._drew.view(-1, batch, rows)).permute(1, 2, 0)

    def noisy(self, batch: int, rows: int) -> Bool[Tensor, "batch rows moe_layers"]:
        """Where noise took part in a choice."""
        return self._drew.view(-1, batch, rows).permute(1, 2, 0)

    def _chosen(self, experts: int) -> Bool[Tensor, "moe_layers tokens experts"]:
        """Marks of all that was chosen, made once; not to be written to."""
        if self._marked is None:
            self._marked = _marks(self.chosen, experts)
        return self._marked

    @cached_property
    def _drew(self) -> Bool[Tensor, "moe_layers tokens"]:
        device, given = self.chosen[0].device, [tokens for tokens in self.drew if tokens is not None]
        none = (
            torch.zeros(len(self.chosen[0]), dtype=torch.bool, device=device) if len(given) < len(self.drew) else None
        )
        return torch.stack([none if tokens is None else tokens.to(device) for tokens in self.drew])  # type: ignore[misc]


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
