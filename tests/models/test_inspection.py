"""`inspect` against transformers' own counts, torch's FLOP counter, real caches, the ledger, and published sizes."""

from __future__ import annotations

from itertools import combinations, pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, OlmoeConfig, T5Config

from tests.models.test_shape import count
from tests.models.zoo import ZOO, causal_class, tiny_config, tiny_model
from tokenscale.core.cost import Cached, Lane, Prefill, Usage
from tokenscale.core.errors import ArgumentError, ModelError
from tokenscale.core.ledger import Ledger
from tokenscale.core.step import pack_experts
from tokenscale.models.inspection import COUNTED_AT, ROWS, Inspection, inspect_built, inspect_model, uniform_experts
from tokenscale.models.routers import find_routers
from tokenscale.models.shape import model_shape
from tokenscale.models.supported import cache_form, cache_keyword

QUICK = ("olmoe", "mixtral", "gpt_oss", "deepseek_v3", "qwen3_next")
NAMES = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in ZOO]
UNMEASURED = {"dbrx", "gemma4", "jetmoe", "longcat_flash", "qwen4_exp_text"}
"""Their code asks for values, which the meta device has not."""


def on_meta(name: str) -> Any:
    with torch.device("meta"):
        return causal_class(name)._from_config(tiny_config(name), attn_implementation="eager", dtype=torch.float32)


def inspected(name: str, context: int = 40) -> Inspection:
    return inspect_built(on_meta(name).eval(), name, context)


def folder_of(config: Any, path: Path) -> Path:
    """A folder with config.json and nothing else."""
    config.save_pretrained(path)
    return path


def idle(model: Any) -> int:
    """Parameters of experts that one token leaves without a gradient: those it did not run."""
    keyword = {} if model.config.model_type != "zaya" else {"use_cache": False}
    model(torch.tensor([[7]]), **keyword).logits.square().sum().backward()
    named = [(path, m) for path, m in model.named_modules() if type(m).__name__.endswith("Experts")]
    holders = [m for path, m in named if not path.endswith("shared_experts")]
    parts = [p.grad for holder in holders for p in holder.parameters()]
    return sum(int((g.flatten(1) == 0).all(1).sum()) * g[0].numel() for g in parts if g is not None)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_those_of_transformers(name: str) -> None:
    assert inspected(name).parameters == tiny_model(name).num_parameters()


# Experts that are no slices, that run several times, or (jetmoe) make queries, which get no gradient from one key.
EXPERTS_AS_SLICES = [p for p in NAMES if p.values[0] not in ("dbrx", "doge", "inkling2_loop_text", "jetmoe")]
FEWER = ("deepseek_v4", "longcat_flash", "zaya")
"""An untrained table of token ids names one expert several times, and free experts use no parameters."""


@pytest.mark.parametrize("name", EXPERTS_AS_SLICES)
def test_active_parameters_are_those_that_get_a_gradient(name: str) -> None:
    model, found = tiny_model(name), inspected(name)
    used = found.parameters - idle(model)
    assert found.active_parameters is not None
    assert used == found.active_parameters or (name in FEWER and used < found.active_parameters)


@pytest.mark.parametrize("name", [p for p in NAMES if p.values[0] not in UNMEASURED])
@torch.no_grad()
def test_flops_and_kv_bytes_are_those_of_a_real_forward(name: str) -> None:
    model, context = tiny_model(name), COUNTED_AT
    found = inspected(name, context)
    keyword = cache_keyword(model)
    cache = getattr(model(torch.arange(context - 1)[None] % 101, use_cache=True), keyword)
    model.set_experts_implementation("batched_mm")
    seen = count(lambda: model(torch.tensor([[7]]), use_cache=True, **{keyword: cache}))
    assert found.flops_counted == pytest.approx(seen, rel=1e-6)
    tensors = {id(t): t for layer in cache.layers for t in _tensors(vars(layer))}.values()
    stored = sum(t.nbytes for t in tensors if t.is_floating_point())
    # transformers drops a full window's oldest key before it adds the next.
    for layer in cache.layers:
        if type(layer).__name__ == "DynamicSlidingWindowLayer" and context >= layer.sliding_window:
            stored += layer.keys[:, :, :1].nbytes + layer.values[:, :, :1].nbytes
    if name != "deepseek_v4":  # stores compressed keys by the block: the figure holds at a block's end
        assert found.kv_bytes == stored


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def test_olmoe_as_published(tmp_path: Path) -> None:
    """OLMoE-1B-7B-0924: 6.92 B parameters, 1.28 B active (Muennighoff et al. 2024, arXiv 2409.02060)."""
    config = OlmoeConfig(
        vocab_size=50304,
        hidden_size=2048,
        intermediate_size=1024,
        num_hidden_layers=16,
        num_attention_heads=16,
        num_experts=64,
        num_experts_per_tok=8,
        dtype="bfloat16",
    )
    found = inspect_model(folder_of(config, tmp_path), 4096)
    expert = 3 * 2048 * 1024
    attention = 4 * 2048 * 2048 + 2 * 2048
    layer = attention + 2 * 2048 + 64 * 2048
    outside = 16 * layer + 2 * 50304 * 2048 + 2048
    assert found.parameters == outside + 16 * 64 * expert == 6_919_161_856
    assert found.active_parameters == outside + 16 * 8 * expert == 1_282_017_280
    assert (found.layers, found.moe_layers, found.experts, found.top_k) == (16, 16, 64, 8)
    assert found.kv_bytes_per_token == 16 * 2 * 2048 * 2
    assert found.kv_bytes == 4096 * 16 * 2 * 2048 * 2
    products = 16 * (4 * 2048 * 2048 + 64 * 2048 + 8 * expert) + 50304 * 2048
    assert found.flops_per_token == 2 * products + 16 * 4 * 2048 * 4096
    assert (found.cache_form, found.roe, found.families) == ("shared", "", {"softmax, top-k": 16})


def test_mixtral_as_published(tmp_path: Path) -> None:
    """Mixtral-8x7B: 46.7 B parameters, 12.9 B active (Jiang et al. 2024, arXiv 2401.04088)."""
    config = MixtralConfig(num_key_value_heads=8, dtype="bfloat16")
    found = inspect_model(folder_of(config, tmp_path))
    expert = 3 * 4096 * 14336
    layer = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 2 * 4096 + 8 * 4096
    outside = 32 * layer + 2 * 32000 * 4096 + 4096
    assert found.parameters == outside + 32 * 8 * expert == 46_702_792_704
    assert found.active_parameters == outside + 32 * 2 * expert == 12_879_925_248
    assert found.kv_bytes_per_token == 32 * 2 * 1024 * 2
    assert found.costs[0].distinct_experts == 2
    assert found.costs[-1].bytes is not None
    assert found.costs[-1].bytes < 2 * found.parameters + 1024 * 32 * 2 * 1024 * 2


def test_expected_experts_against_all_choices() -> None:
    sets = list(combinations(range(5), 2))
    unions = [len(set().union(*rows)) for rows in product(sets, repeat=3)]
    assert uniform_experts(5, 2, 3) == pytest.approx(np.mean(unions), rel=1e-12)


@given(st.integers(1, 300), st.data())
def test_expected_experts_are_bounded_and_grow(experts: int, data: st.DataObject) -> None:
    top_k = data.draw(st.integers(1, experts))
    loads = [uniform_experts(experts, top_k, n) for n in ROWS]
    assert loads[0] == pytest.approx(top_k, rel=1e-9)
    assert all(a <= b + 1e-9 for a, b in pairwise(loads))
    assert all(load <= min(experts, n * top_k) + 1e-9 for n, load in zip(ROWS, loads, strict=True))


def test_a_token_of_one_row_costs_what_the_ledger_bills() -> None:
    """All rows of the table for FLOPs; of one row its bytes too, since it loads its top-k for certain."""
    context, model = 40, on_meta("olmoe").eval()
    found = inspect_built(model, "olmoe", context)
    shape = model_shape(model, find_routers(model), cache_form(model.config).windows)
    for line in found.costs:
        marks = torch.zeros(1, shape.moe_layers, shape.experts, dtype=torch.bool)
        marks[..., :3] = True
        packed = np.stack(pack_experts(marks))
        runs = line.n * shape.moe_layers * shape.top_k
        cached = Cached("m", shape, tuple(range(context)), Prefill(packed[0], 0))
        ledger = Ledger()
        ledger.add([Usage((Lane(cached, (line.n,), (line.n,), (runs,), packed),))], 0)
        bill = ledger.decode()
        assert line.flops == bill.flops
        assert line.multiple == line.n
        if line.n == 1:
            assert line.bytes == bill.bytes


def test_kv_bytes_of_rows() -> None:
    """One cache and a key of each other row, or a copy of the cache for each row."""
    rows, copies = inspected("olmoe"), inspected("qwen3_next")
    assert rows.kv_bytes is not None
    assert rows.kv_bytes_per_token is not None
    assert [line.kv_bytes for line in rows.costs] == [rows.kv_bytes + (n - 1) * rows.kv_bytes_per_token for n in ROWS]
    assert copies.kv_bytes is not None
    assert [line.kv_bytes for line in copies.costs] == [n * copies.kv_bytes for n in ROWS]
    assert (rows.cache_form, copies.cache_form) == ("shared", "expanded")
    assert "LinearAttentionLayer" in copies.cache_form_reason
    assert (rows.uncompiled, "copies of a cache" in copies.uncompiled) == ("", True)


def test_windows_end_the_growth_of_a_cache() -> None:
    long, longer = inspected("mixtral", 1000), inspected("mixtral", 2000)
    assert long.windows == {"6": 3}
    assert long.kv_bytes == longer.kv_bytes == 6 * (long.kv_bytes_per_token or 0)


@pytest.mark.parametrize(
    ("name", "shared"), [("olmoe", 0), ("qwen2_moe", 1), ("granitemoeshared", 1), ("aria_text", 2)]
)
def test_shared_experts(name: str, shared: int) -> None:
    assert inspected(name).shared_experts == shared


LLAMA = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "vocab_size": 101,
}


def test_why_roe_is_not_offered() -> None:
    with torch.device("meta"):
        dense = LlamaForCausalLM(LlamaConfig(**LLAMA)).eval()
        hidden = LlamaForCausalLM(LlamaConfig(**LLAMA, num_experts=8)).eval()
    found = inspect_built(dense, "dense")
    assert found.roe == "it is a dense model, without routers"
    assert (found.moe_layers, found.experts, found.costs) == (0, 0, ())
    assert found.active_parameters == found.parameters == dense.num_parameters()
    found = inspect_built(hidden, "hidden")
    assert "its routers are of no known class" in found.roe
    assert (found.active_parameters, found.flops_per_token, found.costs) == (None, None, ())


def test_a_router_that_is_not_understood_is_told() -> None:
    class ArgmaxRouter(nn.Linear):
        def forward(self, hidden: torch.Tensor) -> Any:
            return super().forward(hidden).argmax(-1)

    model = on_meta("olmoe").eval()
    model.model.layers[0].mlp.gate = ArgmaxRouter(32, 8, device="meta")
    found = inspect_built(model, "odd")
    assert "ArgmaxRouter) does not choose experts" in found.roe


def test_a_quantised_checkpoint_is_told(tmp_path: Path) -> None:
    config = tiny_config("gpt_oss", quantization_config={"quant_method": "mxfp4"})
    notes = inspect_model(folder_of(config, tmp_path)).notes
    assert any("quantised (mxfp4). Bytes here are those of the dequantised model" in note for note in notes)


def test_a_bill_that_is_not_exact_is_told() -> None:
    found = inspected("qwen3_next")
    assert found.flops_counted is not None
    assert found.flops_billed is not None
    assert (abs(found.flops_counted / found.flops_billed - 1) > 0.01) == any(
        "Bills are not exact" in n for n in found.notes
    )
    exact = inspected("olmoe")
    assert exact.flops_counted == exact.flops_billed
    assert exact.notes == ()


def test_a_model_whose_code_needs_values_is_told() -> None:
    found = inspected("jetmoe")
    assert (found.kv_bytes, found.flops_counted) == (None, None)
    assert any("Sizes of caches were not measured" in note for note in found.notes)
    assert found.costs[1].flops == 2 * found.costs[0].flops


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "config.json"),
        ('{"model_type": "no_such_model"}', "no_such_model"),
        ('{"model_type": "olmoe", "num_hidden_layers": "many"}', "num_hidden_layers"),
    ],
)
def test_a_wrong_configuration_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=rf"(?s)the configuration of .* cannot be read: .*{message}.*fix: give 'demo'"):
        inspect_model(tmp_path)


def test_what_is_no_causal_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"(?s)is no causal language model.*fix: give 'demo'"):
        inspect_model(folder_of(T5Config(), tmp_path))
    with pytest.raises(ModelError, match=r"(?s)holds no config.json.*fix"):
        inspect_model(tmp_path.parent)
    with pytest.raises(ModelError, match=r"(?s)did you mean 'demo'"):
        inspect_model("dmeo")
    with pytest.raises(ArgumentError, match="context must be at least 1"):
        inspect_model("demo", 0)
