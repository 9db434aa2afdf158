"""The bill of every architecture against torch's FLOP counter, its parameters, and what its caches hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers.integrations.mxfp4 import Mxfp4GptOssExperts

from tests.models.test_forms_zoo import CHANGES
from tests.models.test_router_checkpoints import Linear4bit, mxfp4
from tests.models.test_shape import count
from tests.models.zoo import ZOO, tiny_model
from tokenscale.core.plan import Routing
from tokenscale.core.shape import ModelShape
from tokenscale.models.routers import Router, find_routers, watch
from tokenscale.models.shape import model_shape
from tokenscale.models.supported import bill_note, cache_form, cache_keyword

QUICK = ("deepseek_v3", "dbrx", "doge", "inkling_text", "jetmoe", "llama4_text")
NAMES = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in ZOO]
KEYS = 4


def shaped(name: str) -> tuple[Any, list[Router], ModelShape, Any]:
    model = tiny_model(name, **CHANGES.get(name, {})).requires_grad_(False)
    routers = find_routers(model)
    form = cache_form(model.config, type(model))
    model.set_experts_implementation("batched_mm")
    return model, routers, model_shape(model, routers, form.windows), form


@torch.no_grad()
def counted(model: Any, routers: list[Router], routing: Routing | None) -> tuple[float, int]:
    """FLOPs of a step that sees KEYS keys, as torch counts them, and the experts that it ran."""
    keyword = cache_keyword(model)
    cache = getattr(model(torch.arange(5, 4 + KEYS)[None], use_cache=True), keyword)
    with watch(routers, routing) as record:
        seen = count(lambda: model(torch.tensor([[7]]), use_cache=True, **{keyword: cache}))
    return seen, int(record.marks(1, 1, max(r.experts for r in routers)).sum())


def expansion(model: Any) -> float:
    """What transformers spends beside the bill: latent keys, and doge's masks, are made of past ones in every step."""
    expanding = [p for name, p in model.named_parameters() if name.endswith(("kv_b_proj.weight", "dt_proj.weight"))]
    return 2.0 * (KEYS - 1) * sum(p.numel() for p in expanding)


@pytest.mark.parametrize("name", NAMES)
def test_step_flops_equal_torchs_count_or_the_bill_says_that_it_is_an_estimate(name: str) -> None:
    model, routers, shape, form = shaped(name)
    seen, runs = counted(model, routers, None)
    billed = shape.decode_flops([1], KEYS, runs=[runs])
    if form.name == "query rows":
        assert seen - expansion(model) == pytest.approx(billed, rel=1e-6)
    elif name == "llama4_text":  # transformers runs all experts on every row, weighed by zero
        assert seen == pytest.approx(billed + (sum(r.experts for r in routers) - runs) * shape.run_flops, rel=1e-6)
    else:
        assert seen >= billed
    exact = seen == pytest.approx(billed, rel=1e-6)
    config = model.config.get_text_config(decoder=True)
    assert exact or bill_note(config, form)


@pytest.mark.parametrize("name", [p for p in NAMES if p.values[0] not in ("phimoe", "jetmoe", "deepseek_v4")])
def test_one_expert_more_costs_what_the_bill_says(name: str) -> None:
    """Whatever else a forward computes, so for the models whose whole bill is an estimate too."""
    model, routers, shape, _ = shaped(name)
    more = Routing(ranks=((1, routers[-1].top_k + 1),))
    (few, runs), (many, more_runs) = counted(model, routers, None), counted(model, routers, more)
    made = len(routers)
    if name in ("zaya", "longcat_flash"):  # the expert more may be one that costs nothing, and transformers runs it
        assert 0 < more_runs - runs <= made
        assert many - few <= made * shape.run_flops * (1 + 1e-6)
        return
    assert more_runs - runs == made
    expected = 0 if name == "llama4_text" else made * shape.run_flops
    assert many - few == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_bytes_add_up_to_the_model(name: str) -> None:
    model, routers, shape, _ = shaped(name)
    unlike = {id(router.module): router for router in routers}.values()
    experts = sum(router.experts - router.free for router in unlike) * shape.expert_bytes
    tables = {id(t): t for t in (model.get_input_embeddings().weight, model.get_output_embeddings().weight)}
    everything = sum(p.nbytes for p in model.parameters()) - sum(t.nbytes for t in tables.values())
    assert shape.dense_bytes + experts == pytest.approx(everything, rel=1e-9)
    assert shape.head_bytes == model.get_output_embeddings().weight.nbytes


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_kv_bytes_are_what_transformers_stores(name: str) -> None:
    model, _, shape, form = shaped(name)
    if form.name == "expanded":
        pytest.skip("its layers keep other states than keys and values")
    cache = getattr(model(torch.arange(3, 6)[None], use_cache=True), cache_keyword(model))
    assert shape.kv_bytes * 3 == sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


@pytest.mark.parametrize("name", NAMES)
def test_sizes_of_routers(name: str) -> None:
    _, routers, shape, _ = shaped(name)
    assert shape.moe_layers == len(routers)
    assert (shape.experts, shape.top_k) == (max(r.experts for r in routers), max(r.top_k for r in routers))


def test_layers_of_different_width_are_billed_by_their_runs() -> None:
    """Hunyuan's configuration can give every layer a top-k of its own."""
    model = tiny_model("hunyuan_v1_moe", moe_topk=[2, 3, 4])
    routers = find_routers(model.requires_grad_(False))
    model.set_experts_implementation("batched_mm")
    shape = model_shape(model, routers, cache_form(model.config).windows)
    seen, runs = counted(model, routers, None)
    assert (shape.top_k, runs) == (4, 9)
    assert seen == pytest.approx(shape.decode_flops([1], KEYS, runs=[runs]), rel=1e-6)


def test_packed_weights_are_billed_by_the_numbers_that_they_hold() -> None:
    plain, packed = tiny_model("mixtral"), tiny_model("mixtral")
    for name, module in list(packed.named_modules()):
        if type(module) is nn.Linear and name != "lm_head":
            packed.set_submodule(name, Linear4bit(module))
    packed.hf_quantizer = object()
    windows = cache_form(plain.config).windows
    shapes = [model_shape(model, find_routers(model), windows) for model in (plain, packed)]
    assert shapes[0].dense_flops == shapes[1].dense_flops
    assert shapes[0].expert_flops == shapes[1].expert_flops
    # The stand-in packs four bytes into four; buffers of positions count too.
    positions = sum(b.nbytes for name, b in packed.named_buffers() if "packed" not in name)
    assert shapes[1].dense_bytes == shapes[0].dense_bytes + positions


def test_mxfp4_experts_are_billed_at_their_bits() -> None:
    plain, quantised = tiny_model("gpt_oss"), mxfp4(tiny_model("gpt_oss"))
    for layer in quantised.model.layers:
        layer.mlp.experts = Mxfp4GptOssExperts(quantised.config)
        del layer.mlp.experts.gate_up_proj  # as laying it out for the kernel does
    quantised.hf_quantizer = object()
    windows = cache_form(plain.config).windows
    one, other = (model_shape(model, find_routers(model), windows) for model in (plain, quantised))
    assert (one.expert_flops, one.dense_flops) == (other.expert_flops, other.dense_flops)
    weights, biases = 3 * 32 * 24, 2 * 24 + 32
    assert one.expert_bytes == 4 * (weights + biases)
    assert other.expert_bytes == weights * 4.25 / 8 + 4 * biases
