"""Compiled steps in whole runs, what happens where they cannot be had, and who gets them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import tokenscale as ts
from tests.models.compiled_twins import Twins, both, graphs_of, noise, small
from tests.models.zoo import tiny_model
from tokenscale.core.errors import ModelError, RoutingError, TokenscaleWarning
from tokenscale.core.plan import RowPlan
from tokenscale.models import compiled_step
from tokenscale.models.compiled import CompiledRows
from tokenscale.models.compiled_cache import StaticCache
from tokenscale.models.compiled_choice import why_uncompiled
from tokenscale.models.supported import cache_form


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
    [
        "RoE(n=4, tau=1, clean_layers=0)",
        pytest.param("RoE(n=2, clean_layers=0) | BeamSearch(width=3)", marks=pytest.mark.slow),
        "Sample(temperature=1.0)",
    ],
)
def test_pipelines_give_the_same_tokens_and_bills(stages: str) -> None:
    lm, plain = both(small("olmoe"))
    pipe = ts.Pipeline.parse(stages)
    assert run(lm, pipe) == run(plain, pipe)
    assert lm.rows.failed == ""


@pytest.mark.slow
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
        raise ValueError("no tracing today\nat all\nand more")

    twins = Twins(small("olmoe"))
    monkeypatch.setattr(compiled_step, "traced", refuse)
    with pytest.raises(
        ModelError, match="OlmoeForCausalLM cannot be compiled \\(ValueError: no tracing today at all\\)"
    ):
        twins.step(0, n=2)
    twins.lm.rows._required = False
    with pytest.warns(TokenscaleWarning, match="no tracing today"):
        twins.step(0, n=2)
    twins.step(1, n=2)  # warned once
    assert twins.lm.rows.engine == "uncompiled steps: ValueError: no tracing today at all"


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


def test_off_on_a_cpu_unless_asked() -> None:
    model = small("olmoe")
    for asked, told in ((None, "off by default on cpu; compile=True asks for it"), (False, "compile=False")):
        lm = ts.wrap(model, compile=asked)
        assert not isinstance(lm.rows, CompiledRows)
        assert lm.engine.endswith(f"uncompiled steps: {told}")
    lm = ts.wrap(model, compile=True)
    assert isinstance(lm.rows, CompiledRows)
    assert lm.engine == "compiled steps (inductor)"
    assert lm.cache_form == "query rows"
    assert ts.load("demo", compile=True).engine == "compiled steps (inductor)"


def test_on_by_default_on_a_gpu() -> None:
    class OnGpu:
        device, config = torch.device("cuda"), small("olmoe").config
        parameters = modules = staticmethod(lambda: ())

    form = cache_form(OnGpu.config)
    assert why_uncompiled(OnGpu(), form, None) == ""
    assert why_uncompiled(OnGpu(), form, False) == "compile=False"
    assert "several processes" in why_uncompiled(OnGpu(), form, None, sharded=True)


def test_what_cannot_be_compiled_is_refused_where_it_is_asked_for() -> None:
    recurrent, spread, looping = tiny_model("qwen3_next"), small("olmoe"), small("olmoe")
    spread.lm_head._hf_hook = object()
    for model, told in ((recurrent, "copies of a cache that grows"), (spread, "several devices")):
        with pytest.raises(ModelError, match=told):
            ts.wrap(model, compile=True)
        assert told in ts.wrap(model).engine
    looping.set_experts_implementation("eager")  # seen when a step is traced
    lm = ts.wrap(looping, compile=True)
    with pytest.raises(ModelError, match="waits for values"):
        lm.step(lm.prefill([[5, 6]]), torch.tensor([7]))


def test_buffers_of_a_run_are_kept_for_the_next_and_freed_when_memory_runs_out() -> None:
    twins = Twins(small("olmoe"))
    state = twins.states[0]
    cache = StaticCache(state.cache, twins.lm.rows.pool, 1)
    address, held = cache.layers[0].keys.data_ptr(), cache.kv_bytes
    del cache
    assert twins.lm.rows.pool.free_bytes == held
    again = StaticCache(state.cache, twins.lm.rows.pool, 1)
    assert again.layers[0].keys.data_ptr() == address
    del again
    twins.lm.release()
    assert twins.lm.rows.pool.free_bytes == 0
