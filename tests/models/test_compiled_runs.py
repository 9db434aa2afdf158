"""Compiled steps in whole runs, what happens where they cannot be had, and who gets them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import tokenscale as ts
from tests.models.compiled_twins import Twins, both, graphs_of, noise, small
from tokenscale.core.errors import ModelError, RoutingError, TokenscaleWarning
from tokenscale.core.plan import RowPlan
from tokenscale.models import compiled_step


@pytest.fixture
def traced_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are traced and run as they are; what compilers make of them is tested apart."""
    monkeypatch.setattr(torch, "compile", lambda graph, **_: graph)


def run(lm: Any, pipe: Any, prompts: int = 5, **settings: Any) -> list[tuple[Any, ...]]:
    """What a pipeline makes of prompts of several lengths: tokens, and their bills."""
    given = [ts.Prompt(token_ids=tuple(range(3, 3 + length))) for length in (4, 9, 2, 7, 5)[:prompts]]
    results = pipe.run(lm, given, **{"max_new_tokens": 8, "batch_size": 3, **settings})
    return [(r.winner.token_ids, r.cost) for r in results]


@pytest.mark.usefixtures("traced_only")
@pytest.mark.parametrize(
    "stages",
    ["RoE(n=4, tau=1, clean_layers=0)", "RoE(n=2, clean_layers=0) | BeamSearch(width=3)", "Sample(temperature=1.0)"],
)
def test_pipelines_give_the_same_tokens_and_bills(stages: str) -> None:
    lm, plain = both(small("olmoe"))
    pipe = ts.Pipeline.parse(stages)
    assert run(lm, pipe) == run(plain, pipe)
    assert lm.rows.failed == ""


@pytest.mark.usefixtures("traced_only")
def test_64_tokens_over_several_batch_sizes_take_a_graph_for_each_power_of_two() -> None:
    lm, _ = both(small("olmoe"))
    pipe = ts.Pipeline(ts.RoE(n=2, clean_layers=0))
    for batch_size in (5, 3, 2, 1):
        run(lm, pipe, max_new_tokens=16, batch_size=batch_size, prompts=batch_size)
    kinds = sorted((kind.batch, kind.rows, kind.columns) for kind in graphs_of(lm))
    assert kinds == [(batch, 2, 256) for batch in (1, 2, 4, 8)]


def test_what_cannot_be_traced_runs_uncompiled_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise ValueError("no tracing today\nmore")

    twins = Twins(small("olmoe"))
    monkeypatch.setattr(compiled_step, "traced", refuse)
    with pytest.raises(ModelError, match="OlmoeForCausalLM cannot be compiled \\(ValueError: no tracing today\\)"):
        twins.step(0, n=2)
    twins.lm.rows._required = False
    with pytest.warns(TokenscaleWarning, match="no tracing today"):
        twins.step(0, n=2)
    twins.step(1, n=2)  # warned once
    assert twins.lm.rows.engine == "uncompiled steps: ValueError: no tracing today"


def test_memory_that_runs_out_is_no_reason_to_stop_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    twins = Twins(small("olmoe"))
    monkeypatch.setattr(compiled_step, "traced", exhausted)
    with pytest.raises(torch.OutOfMemoryError):
        twins.step(0, n=2)
    assert twins.lm.rows.failed == ""


@pytest.mark.usefixtures("traced_only")
def test_wrong_noise_is_refused_as_it_is_uncompiled() -> None:
    twins = Twins(small("olmoe"))
    drawn = noise(twins.lm, 3, 2, 0)
    assert drawn is not None
    for n, batch in ((3, 3), (2, 2)):
        other = noise(twins.lm, batch, 2, 0)
        for lm, state in zip((twins.lm, twins.plain), twins.states, strict=True):
            with pytest.raises(RoutingError, match="chose for"):
                lm.step(state, torch.tensor([5, 6, 7]), RowPlan(n, other))
    with pytest.raises(RoutingError, match="keep_head=9"):
        twins.lm.step(twins.states[0], torch.tensor([5, 6, 7]), RowPlan(2, replace(drawn, keep_head=9)))
    assert twins.lm.rows.failed == ""
    twins.step(0, n=2)
