"""The suite for language models catches planted faults, each by the promise it breaks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tokenscale.core.model import State
from tokenscale.core.plan import PLAIN, RowPlan
from tokenscale.core.step import Step
from tokenscale.models.toy import ToyModel, ToyState
from tokenscale.testing import check_language_model


class FaultyModel(ToyModel):
    """The toy model with something wrong."""

    def __init__(self, fault: str) -> None:
        super().__init__(moe_layers=3)
        self.fault = fault
        if fault == "capability":
            self.shape = replace(self.shape, moe_layers=0)

    def step(self, state: State, tokens: torch.Tensor, plan: RowPlan = PLAIN) -> Step:
        assert isinstance(state, ToyState)
        if self.fault == "batch":
            mix_up(state)
        step = super().step(state, tokens, PLAN_FAULTS.get(self.fault, lambda plan: plan)(plan))
        if self.fault == "early order" and plan.early_layers:
            step = replace(step, logits=torch.cat([step.logits[:, :1], step.logits[:, 1:].flip(1)], 1))
        if self.fault == "noisy cache" and plan.routing is not None:
            for s in state.sequences:
                s.past = s.past + 1e-3
        return STEP_FAULTS.get(self.fault, lambda step: step)(step)

    def prefill(self, prompts: Any, routing: Any = None) -> ToyState:
        state = super().prefill(prompts, None if self.fault == "clean prefill" else routing)
        if self.fault == "prefill":
            for s in state.sequences:
                s.past = s.past + 1e-3
        if self.fault == "prefill experts":
            for s in state.sequences:
                s.prefill = replace(s.prefill, experts=s.prefill.experts * 0)
        return state


def mix_up(state: ToyState) -> None:
    """Short sequences see the first token of the longest, as with padding on the wrong side."""
    longest = max(state.sequences, key=lambda s: len(s.past)).past
    for sequence in state.sequences:
        if len(sequence.past) < len(longest):
            sequence.past = np.concatenate([longest[:1], sequence.past])[: len(sequence.past)]


def without_dropout_rows(plan: RowPlan) -> RowPlan:
    """Every sequence has the numbers of the first, as with rows in another order."""
    if plan.dropout is None:
        return plan
    first = plan.dropout.uniforms[:, :1].expand_as(plan.dropout.uniforms)
    return replace(plan, dropout=replace(plan.dropout, uniforms=first))


PLAN_FAULTS: dict[str, Callable[[RowPlan], RowPlan]] = {
    "stored": lambda plan: replace(plan, commit=True),
    "own key": lambda plan: replace(plan, current_kv="own"),
    "no dropout": lambda plan: replace(plan, dropout=None),
    "dropout order": without_dropout_rows,
    "ranks": lambda plan: plan if plan.routing is None else replace(plan, routing=replace(plan.routing, ranks=())),
    "silent": lambda plan: plan if plan.commit else replace(plan, routing=None),
}
STEP_FAULTS: dict[str, Callable[[Step], Step]] = {
    "row 0": lambda step: step if step.changed is None else replace(step, logits=step.logits.flip(1)),
    "rows": lambda step: replace(step, logits=step.logits + 1e-3 * torch.arange(step.logits.shape[1])[:, None]),
    "no change": lambda step: step if step.changed is None else replace(step, changed=step.changed & False),
    "experts": lambda step: replace(step, experts=torch.ones_like(step.experts)),
    "half": lambda step: replace(step, logits=step.logits.half()),
}


@pytest.mark.parametrize(
    ("fault", "promise"),
    [
        ("batch", "a batch equals its sequences alone"),
        ("noisy cache", "noise leaves nothing in the cache"),
        ("row 0", "row 0 is the model itself"),
        ("rows", "rows without noise equal the model"),
        ("no change", "changed marks the rows that run other experts"),
        ("experts", "each row runs top_k experts"),
        ("half", "logits are float32"),
        ("prefill", "a prefill equals its tokens one by one"),
        ("prefill experts", "experts are those its tokens ran"),
        ("capability", "inspect_layers|dense"),
        ("stored", "a step that commits stores one token, any other none"),
        ("own key", "a row that sees the clean key is another row"),
        ("no dropout", "dropout changes a row"),
        ("dropout order", "a row's dropout is its own"),
        ("ranks", "each row runs top_k experts, or those of its ranks"),
        ("silent", "rows of the last token are those that a step before it would have run"),
        ("early order", "the last layer read as an early one is the model itself"),
        ("clean prefill", "a noisy prefill equals its tokens one by one"),
    ],
)
def test_faulty_models_are_caught(fault: str, promise: str) -> None:
    with pytest.raises(AssertionError, match=promise):
        check_language_model(FaultyModel(fault))


def test_a_tolerance_is_granted() -> None:
    check_language_model(FaultyModel("rows"), atol=3e-3)
