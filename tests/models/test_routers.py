"""What a router's rule is found to be, for every architecture of the zoo, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import DeepseekV2Config, Ernie4_5_MoeConfig, MixtralConfig, OlmoeConfig
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter
from transformers.models.ernie4_5_moe.modeling_ernie4_5_moe import Ernie4_5_MoeTopKRouter
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter
from transformers.models.olmoe.modeling_olmoe import OlmoeTopKRouter

from tests.models.zoo import ZOO, causal_class, tiny_config, tiny_model
from tokenscale.core.errors import ModelError
from tokenscale.models.routers import Router, find_routers

GROUPED = "sigmoid + bias, groups, top-k, renormalised"
BIASED = "sigmoid + bias, top-k, renormalised"
FAMILIES: dict[str, tuple[str, ...]] = {
    "softmax, top-k": ("flex_olmo", "jamba", "olmoe", "qwen2_moe", "qwen3_moe"),
    "softmax, top-k, renormalised": (
        *("dbrx", "gemma4", "gemma4_text", "hunyuan_v1_moe", "lara_mini", "mellum", "minimax", "mixtral"),
        *("qwen3_5_moe_text", "qwen3_next", "qwen4_exp_text"),
    ),
    "logits, top-k, softmax": (
        *("aria_text", "cohere2_moe", "gpt_oss", "granitemoe", "granitemoe_swa", "granitemoehybrid"),
        *("granitemoeshared", "jetmoe"),
    ),
    "softmax, groups, top-k": ("deepseek_v2",),
    "softmax, groups, top-k, renormalised": ("mistral4",),
    "softmax + bias, top-k": ("longcat_flash",),
    "softmax + bias, top-k, renormalised": ("ernie4_5_moe",),
    "softmax + bias, top-1": ("zaya",),
    "sigmoid, top-k, renormalised": ("flint",),
    "sigmoid + bias, top-k": ("inkling_text",),
    "sigmoid + bias, groups, top-k": ("dots1",),
    BIASED: (
        *("afmoe", "hy_v3", "inkling2_loop_text", "inkling2_text", "laguna", "lfm2_moe", "minimax_m2"),
        "minimax_m3_vl_text",
    ),
    GROUPED: (
        *("axk1", "axk2", "bailing_hybrid", "beam", "deepseek_v3", "deepseek_v32", "dots3_note_text", "exaone_moe"),
        *("glm4_moe", "glm4_moe_lite", "glm_moe_dsa", "hy_v4", "kimi_linear", "mimo_v2_flash", "nemotron_h"),
        *("sarvam_mla", "sarvam_moe", "solar_open"),
    ),
    "logits + bias, top-k, sigmoid": ("kolibri1",),
    "logits, top-1, sigmoid": ("llama4_text",),
    "softplus + bias, top-k, renormalised": ("deepseek_v4",),
    "table of token ids": ("deepseek_v4",),
    "sparsemixer": ("phimoe",),
    "product keys, top-k, softmax": ("doge",),
}
ONE_EACH = sorted({names[0] for names in FAMILIES.values()} | {"dbrx", "inkling2_loop_text", "jetmoe"})
FEW = set(ONE_EACH) - {"dots1", "ernie4_5_moe", "flint", "hy_v3", "longcat_flash", "mistral4"}  # one for each way
WAYS = [pytest.param(name, marks=[] if name in FEW else pytest.mark.slow) for name in ZOO]
SLOW = [pytest.param(name, marks=[] if name in ONE_EACH else pytest.mark.slow) for name in ZOO]


def expected(name: str) -> set[str]:
    return {family for family, names in FAMILIES.items() if name in names}


def test_the_families_are_of_the_whole_zoo() -> None:
    assert sorted({name for names in FAMILIES.values() for name in names}) == ZOO


@pytest.mark.parametrize("name", SLOW)
def test_the_family_of_every_architecture(name: str) -> None:
    routers = find_routers(tiny_model(name))
    assert {router.family for router in routers} == expected(name)
    sizes = {(r.experts, r.top_k, r.free) for r in routers}
    special = {
        "doge": (16, 3, 0),
        "jetmoe": (8, 2, 0),
        "llama4_text": (8, 1, 0),
        "longcat_flash": (12, 3, 4),
        "phimoe": (8, 2, 0),
        "zaya": (9, 1, 1),
    }
    assert sizes == {special.get(name, (8, 3, 0))}
    monotone = all(not set("+,") & set(r.family.partition(", top")[0]) for r in routers)
    assert all(r.monotone for r in routers) == (monotone and name != "deepseek_v4")


@pytest.mark.parametrize("name", SLOW)
def test_no_weights_are_needed(name: str) -> None:
    with torch.device("meta"):
        model = causal_class(name)._from_config(tiny_config(name))
    found = [(r.name, r.family, r.experts, r.top_k, r.free, r.monotone, r.supports) for r in find_routers(model)]
    real = find_routers(tiny_model(name))
    assert found == [(r.name, r.family, r.experts, r.top_k, r.free, r.monotone, r.supports) for r in real]


def test_calls_of_a_looped_model_are_routers_of_their_own() -> None:
    names = [router.name for router in find_routers(tiny_model("inkling2_loop_text"))]
    layers = [("0", ""), ("1", " (pass 1)"), ("1", " (pass 2)"), ("1", " (pass 3)"), ("2", "")]
    assert names == [f"model.layers.{layer}.mlp.gate{call}" for layer, call in layers]


EXPERTS = {"hidden_size": 16, "num_experts": 8, "num_experts_per_tok": 3, "num_attention_heads": 4}
GROUPS = {"n_group": 2, "topk_group": 1, "routed_scaling_factor": 1.0, "topk_method": "group_limited_greedy"}


class Block(nn.Module):
    """A router alone."""

    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.gate = gate


def found(router: nn.Module) -> Router:
    torch.manual_seed(0)
    for parameter in router.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    [only] = find_routers(Block(router).eval())
    return only


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("router", "family"),
    [
        (OlmoeTopKRouter(OlmoeConfig(**EXPERTS)), "softmax, top-k"),
        (OlmoeTopKRouter(OlmoeConfig(**EXPERTS, norm_topk_prob=True)), "softmax, top-k, renormalised"),
        (
            MixtralTopKRouter(MixtralConfig(hidden_size=16, num_local_experts=8, num_experts_per_tok=3)),
            "softmax, top-k, renormalised",
        ),
    ],
)
def test_common_routers_take_the_short_way(router: nn.Module, family: str, dtype: torch.dtype) -> None:
    only = found(router.to(dtype))
    assert (only.experts, only.top_k, only.family, type(only.way).__name__) == (8, 3, family, "Softmax")


def test_a_bias_on_the_choice_takes_the_long_way() -> None:
    """Its gate weights are softmax shares, and yet TopK(R) at tau = 0 would not be its choice."""
    router = Ernie4_5_MoeTopKRouter(Ernie4_5_MoeConfig(**EXPERTS))
    nn.init.zeros_(router.moe_statics.e_score_correction_bias)
    only = found(router)
    assert (only.family, type(only.way).__name__) == ("softmax + bias, top-k, renormalised", "Replay")


def test_a_choice_among_groups_takes_the_long_way() -> None:
    config: dict[str, Any] = {**EXPERTS, **GROUPS}
    assert type(found(DeepseekV2TopkRouter(DeepseekV2Config(**config))).way).__name__ == "Replay"
    config["topk_method"] = "greedy"
    assert type(found(DeepseekV2TopkRouter(DeepseekV2Config(**config))).way).__name__ == "Softmax"


def test_a_group_that_is_all_is_no_limit() -> None:
    config: dict[str, Any] = {**EXPERTS, **GROUPS, "n_group": 1}
    assert found(DeepseekV2TopkRouter(DeepseekV2Config(**config))).monotone


def test_a_router_that_ranks_nothing_is_refused() -> None:
    class ArgmaxRouter(nn.Linear):
        def forward(self, hidden: torch.Tensor) -> Any:
            logits = super().forward(hidden)
            return logits, logits.max(-1).values, logits.argmax(-1)

    with pytest.raises(ModelError, match=r"(?s)gate \(ArgmaxRouter\) does not choose experts.*fix: use a model"):
        found(ArgmaxRouter(16, 8))


def test_a_router_that_wants_more_than_its_block_has_is_refused() -> None:
    class DemandingRouter(nn.Linear):
        def forward(self, hidden: torch.Tensor, temperature: float) -> Any:
            return (super().forward(hidden) / temperature).topk(2)

    with pytest.raises(ModelError, match=r"(?s)DemandingRouter\) does not choose.*temperature.*fix: use a model"):
        found(DemandingRouter(16, 8))
