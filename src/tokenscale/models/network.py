"""A transformers model as both cache forms use it: called, watched, its rows varied, its work read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tokenscale.core.cost import Prefill
from tokenscale.core.plan import RowPlan
from tokenscale.core.shape import ModelShape
from tokenscale.core.step import Step, no_experts, pack_experts
from tokenscale.core.unread import Logits, at_places, too_large
from tokenscale.models.blocks import Blocks, dropped, early
from tokenscale.models.heads import Heads, UnreadHeads, find_heads
from tokenscale.models.native.kernels import Kernels
from tokenscale.models.routers import Router, RoutingRecord, watch
from tokenscale.models.stored import runs_on

PREFILL_TOKENS = 8192  # tokens, padding included, of one prefill forward


@dataclass(frozen=True)
class Network:
    """The transformers object, and what was found out about it. `kernels` run its products, where there are any."""

    model: Any
    routers: Sequence[Router]
    shape: ModelShape
    blocks: Blocks
    cache_keyword: str
    kernels: Kernels | None = None

    @cached_property
    def device(self) -> torch.device:
        """Where ids, positions and masks are made: where the input table computes."""
        return runs_on(self.model.get_input_embeddings())

    def run(
        self,
        module: Any,
        cache: Any,
        ids: Int[Tensor, "batch length"],
        positions: Int[Tensor, "batch length"],
        mask: Any,
    ) -> Any:
        """One forward of the model, or of its decoder without lm_head, that reads and writes `cache`."""
        keywords = {self.cache_keyword: cache}
        with self.installed():
            return module(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, **keywords)

    def installed(self) -> AbstractContextManager[None]:
        """The kernels run the model inside, where there are any."""
        return self.kernels.installed() if self.kernels else nullcontext()

    def heads(self, sequences: int, plan: RowPlan) -> Heads | None:
        """lm_head apart from the decoder, for a step whose logits are too large to be held at once.

        None where they are not, or where the model does not allow it. To be asked for outside of `varied`.
        """
        rows = (sequences, plan.n, self.model.get_output_embeddings().weight.shape[0])
        return self._heads if too_large(rows) and not plan.early_layers else None

    @cached_property
    def _heads(self) -> Heads | None:
        return find_heads(self.model, self.blocks.decoder, self.installed)

    def logits(self, out: Any, heads: Heads | None) -> Logits:
        """Those of a forward of the model, or of `heads.decoder`: raw, float32 [batch, rows, vocab]."""
        if heads is not None:
            return UnreadHeads(heads, out.last_hidden_state)
        logits: Tensor = out.logits.float()
        return logits

    @contextmanager
    def varied(self, plan: RowPlan) -> Iterator[RoutingRecord]:
        """Rows of one forward differ as the plan says; what their routers choose is recorded."""
        with ExitStack() as stack:
            record = stack.enter_context(watch(self.routers, plan.routing))
            if plan.dropout is not None:
                stack.enter_context(dropped(self.blocks, plan.dropout))
            if plan.early_layers:
                assert plan.n == 1, "early layers are read from one row"
                stack.enter_context(early(self.blocks, plan.early_layers))
            yield record

    def step(self, logits: Logits, record: RoutingRecord, plan: RowPlan) -> Step:
        """The outcome of a forward of `plan.n` rows."""
        batch, experts, routing = logits.shape[0], self.shape.experts, plan.routing
        marks = record.marks(batch, plan.n, experts) if self.routers else None
        if routing is None or routing.noisy is None:
            return Step.of(logits, marks)
        return Step.of(logits, marks, record.changed(batch, plan.n, experts), record.noisy(batch, plan.n))

    def prefills(self, record: RoutingRecord, real: Bool[Tensor, "batch length"]) -> list[Prefill]:
        """What every prompt ran; `real` are the columns that are not padding."""
        if not self.routers:
            return self.no_prefills(len(real))
        batch, length = real.shape
        marks = record.marks(batch, length, self.shape.experts)
        marks = marks & real.to(marks.device)[..., None, None]
        runs = marks.sum((1, 2, 3)).tolist()
        return [Prefill(e, r) for e, r in zip(pack_experts(marks.any(1)), runs, strict=True)]

    def no_prefills(self, count: int) -> list[Prefill]:
        """Of empty prompts."""
        return [Prefill(experts, 0) for experts in pack_experts(no_experts(count, self.shape))]


def left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, positions and first columns of prompts that all end in the last column."""
    length = max(len(p) for p in prompts)
    ids = torch.tensor([[0] * (length - len(p)) + list(p) for p in prompts], device=device)
    first = torch.tensor([length - len(p) for p in prompts], device=device)
    positions = (torch.arange(length, device=device) - first[:, None]).clamp_min(0)
    return ids, positions, first


def reordered(plan: RowPlan, index: Sequence[int]) -> RowPlan:
    """The plan of the sequences at `index`."""
    if plan.routing is None and plan.dropout is None:
        return plan
    places = torch.tensor(index)
    routing = None if plan.routing is None else plan.routing.at(places)
    dropout = None if plan.dropout is None else replace(plan.dropout, uniforms=plan.dropout.uniforms[:, places])
    return replace(plan, routing=routing, dropout=dropout)


def at(step: Step, index: Sequence[int]) -> Step:
    """The step's sequences at `index`."""
    places = torch.tensor(index)

    def picked(value: Tensor | None) -> Tensor | None:
        return None if value is None else value[places.to(value.device)]

    return Step.of(at_places(step.held, places), picked(step.experts), picked(step.changed), picked(step.noisy))
