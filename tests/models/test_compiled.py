"""Compiled steps against the uncompiled form they are made of, and how many graphs they take."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.models.compiled_twins import Twins, dense, graphs_of, noise, small
from tests.models.zoo import ZOO, tiny_model
from tokenscale.core import unread
from tokenscale.core.plan import Dropout, Routing
from tokenscale.models.clean_cache import CleanState
from tokenscale.models.compiled_cache import Pool, StaticCache, batch_bucket, column_bucket, row_bucket
from tokenscale.models.supported import cache_form


@pytest.fixture
def traced_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are traced and run as they are; what compilers make of them is tested apart."""
    monkeypatch.setattr(torch, "compile", lambda graph, **_: graph)


@given(st.integers(1, 10_000))
def test_buckets_hold_what_is_asked_and_not_much_more(count: int) -> None:
    assert count <= batch_bucket(count) < 2 * count
    assert count <= row_bucket(count) < 1.5 * count or count < 3
    assert count <= column_bucket(count) < max(257, 1.5 * count + 256)
    for bucket in (batch_bucket, row_bucket, column_bucket):
        assert bucket(bucket(count)) == bucket(count)


def test_buckets_are_few() -> None:
    assert sorted({row_bucket(n) for n in range(1, 65)}) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
    assert len({column_bucket(c) for c in range(1, 8193)}) == 10
    assert len({batch_bucket(b) for b in range(1, 65)}) == 7


def test_the_pool_hands_out_the_same_memory_again_and_forgets_what_is_more_than_was_used() -> None:
    pool, like = Pool(), torch.ones(1)
    first = pool.take(0, (2, 1, 4, 3), (2, 1, 4, 3), like)
    address, other = first.buffers[0].data_ptr(), pool.take(1, (2, 1, 4, 3), (2, 1, 4, 3), like)
    first.buffers[0].fill_(7)
    del first
    again = pool.take(0, (2, 1, 4, 3), (2, 1, 4, 3), like)
    assert again.buffers[0].data_ptr() == address
    assert not again.buffers[0].any()
    assert pool.take(0, (2, 1, 4, 3), (2, 1, 4, 3), like).buffers[0].data_ptr() != address
    most = pool.most_bytes
    for rows in range(1, 6):
        pool.take(0, (rows, 1, 4, 3), (rows, 1, 4, 3), like)
    del again, other
    assert pool.used_bytes == 0
    assert 0 < pool.free_bytes <= max(most, pool.most_bytes)


@pytest.mark.usefixtures("traced_only")
@pytest.mark.parametrize("name", ["olmoe", "mixtral", "llama"])
def test_steps_equal_the_uncompiled_form_through_forks_leavers_and_joiners(name: str) -> None:
    twins = Twins(dense() if name == "llama" else small(name))
    twins.step(0, n=4)
    twins.select(2, 0, 0, 1)  # out of order, one forked
    twins.step(1, n=4)
    twins.select(3, 1)
    twins.join([[30, 31, 32, 33], []])
    twins.step(2, n=4)
    twins.step(3, n=3)  # 3 sequences of 4 rows and 4 of 3 are kinds of their own
    twins.select(2)
    twins.step(4, n=4)
    assert {(kind.batch, kind.rows) for kind in graphs_of(twins.lm)} == {(4, 4), (4, 3), (1, 4)}


@pytest.mark.usefixtures("traced_only")
def test_one_graph_serves_other_marks_keys_and_uncommitted_rows() -> None:
    twins = Twins(small("olmoe"))
    twins.step(0, n=4)
    quiet = noise(twins.lm, 3, 4, 1)
    assert quiet is not None
    twins.step(1, n=4, routing=Routing(quiet.noise, torch.zeros_like(quiet.noisy)))
    twins.step(2, n=4, current_kv="clean")
    twins.step(3, n=4, commit=False)
    twins.step(4, n=4, commit=False, current_kv="clean")
    twins.step(5, n=4)
    assert len(graphs_of(twins.lm)) == 1


@pytest.mark.usefixtures("traced_only")
def test_padding_rows_are_dropped() -> None:
    twins = Twins(small("olmoe"))
    twins.step(0, n=5)
    twins.step(1, n=6)
    [kind] = graphs_of(twins.lm)
    assert (kind.batch, kind.rows, kind.columns) == (4, 6, 256)


@pytest.mark.usefixtures("traced_only")
@pytest.mark.parametrize(
    "rule",
    [
        {"noise_on": "scores", "keep_head": 1},
        {"noise_on": "nothing", "candidate_pool": 5},
        {"weights": "perturbed"},
    ],
)
def test_rules_of_routing(rule: dict[str, Any]) -> None:
    twins = Twins(small("qwen3_moe"))
    drawn = noise(twins.lm, 3, 3, 0)
    assert drawn is not None
    twins.step(0, n=3, routing=Routing(drawn.noise, drawn.noisy, **rule))


@pytest.mark.usefixtures("traced_only")
def test_ranks_dropout_and_early_layers() -> None:
    twins = Twins(small("olmoe"))
    twins.step(0, n=3, routing=Routing(ranks=(None, (1, 2), (2, 6))))
    uniforms = torch.rand(2, 3, 3, 32, generator=torch.Generator().manual_seed(0))
    uniforms[:, :, 0] = 1
    twins.step(1, n=3, dropout=Dropout(0.3, uniforms))
    assert len(graphs_of(twins.lm)) == 2
    twins.step(2, n=1, routing=None, early_layers=(0,))  # uncompiled
    assert len(graphs_of(twins.lm)) == 2


@pytest.mark.usefixtures("traced_only")
def test_buffers_grow_by_buckets_when_the_rows_of_a_step_no_longer_fit() -> None:
    twins = Twins(small("olmoe"), [[2 + i % 90 for i in range(length)] for length in (251, 3)])
    state = twins.states[0]
    assert isinstance(state, CleanState)
    for stored, columns in ((251, 256), (252, 256), (253, 512)):
        twins.step(stored, n=4)
        assert isinstance(state.cache, StaticCache)
        assert state.cache.columns == columns
    twins.select(1)  # the short one stays, far behind in its row
    twins.step(0, n=4)
    assert {kind.columns for kind in graphs_of(twins.lm)} == {256, 512}


@pytest.mark.usefixtures("traced_only")
def test_logits_too_large_to_be_held_are_made_when_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unread, "LOGITS_BYTES", 4 * 4 * 2 * 101)
    twins = Twins(small("olmoe"))
    twins.step(0, n=2)
    twins.step(1, n=3)
    made = [graph._heads is not None for graph in graphs_of(twins.lm).values()]
    assert made == [False, True]


@pytest.mark.usefixtures("traced_only")
def test_sinks_and_layers_of_two_kinds() -> None:
    twins = Twins(small("gpt_oss"))
    twins.step(0, n=4)
    twins.select(1, 0)
    twins.step(1, n=4)


def test_every_kind_is_compiled_once_by_torch() -> None:
    torch._dynamo.reset()
    twins = Twins(dense(), backend="aot_eager")
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    twins.step(0, n=2)
    twins.select(0, 2, 1)
    twins.step(1, n=2)
    twins.select(0)
    twins.step(2, n=2)
    twins.step(3, n=2)
    twins.join([[4, 5, 6], [7], [8, 9]])
    twins.step(4, n=2)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - before == len(graphs_of(twins.lm)) == 2


def test_what_a_graph_writes_or_keeps_has_an_address_that_does_not_change() -> None:
    """What torch demands of a CUDA graph that changes its inputs, read off the graph that a compiler is given."""
    moving: list[str] = []

    def backend(graph: Any, inputs: Any) -> Any:
        for node in graph.graph.find_nodes(op="placeholder"):
            if node.meta["tensor_dict"].get("_dynamo_static_input_type") is None:
                moving.append(node.name)
        return graph

    twins = Twins(dense(), backend=backend)
    twins.step(0, n=2)
    assert moving == []


@pytest.mark.usefixtures("traced_only")
def test_a_graph_of_noise_holds_no_tensor_of_the_cpu() -> None:
    """A constant that is made in a step would be copied to a GPU in each, and a CUDA graph cannot."""
    twins = Twins(small("olmoe"))
    twins.step(0, n=4)
    [graph] = graphs_of(twins.lm).values()
    model = {id(tensor) for tensor in (*twins.lm.model.parameters(), *twins.lm.model.buffers())}
    held = [*graph.traced.parameters(), *graph.traced.buffers()]
    assert len(held) == len(model)
    assert {tensor.data_ptr() for tensor in held} == {
        t.data_ptr() for t in (*twins.lm.model.parameters(), *twins.lm.model.buffers())
    }


@pytest.mark.slow
@pytest.mark.usefixtures("traced_only")
@pytest.mark.parametrize("name", ZOO)
def test_every_architecture_of_query_rows(name: str) -> None:
    model = tiny_model(name)
    if cache_form(model.config, type(model)).name == "expanded" or name in ("dbrx", "longcat_flash"):
        pytest.skip("expanded, or experts in a loop of Python")
    twins = Twins(model)
    twins.step(0, n=4, **({} if "routing_noise" in twins.lm.capabilities else {"routing": None}))
    twins.select(1, 0)
    twins.step(1, n=4, **({} if "routing_noise" in twins.lm.capabilities else {"routing": None}))
    assert len(graphs_of(twins.lm)) == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")  # torch's own, in inductor
@pytest.mark.parametrize("name", ["olmoe", "gpt_oss"])
def test_the_compiler_of_torch_keeps_the_results(name: str) -> None:
    twins = Twins(tiny_model(name), backend="inductor")
    twins.step(0, n=4)
    twins.select(2, 0)
    twins.step(1, n=4)
    twins.step(2, n=4)
    assert len(graphs_of(twins.lm)) == 2
