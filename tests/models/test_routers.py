"""What a router's rule is found to be, and that nothing but TopK(R) with softmax gates is offered for noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import DeepseekV2Config, Ernie4_5_MoeConfig, MixtralConfig, OlmoeConfig
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter
from transformers.models.ernie4_5_moe.modeling_ernie4_5_moe import Ernie4_5_MoeTopKRouter
from transformers.models.minimax_m2.configuration_minimax_m2 import MiniMaxM2Config
from transformers.models.minimax_m2.modeling_minimax_m2 import MiniMaxM2TopKRouter
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter
from transformers.models.olmoe.modeling_olmoe import OlmoeTopKRouter

from tokenscale.core.errors import ModelError
from tokenscale.models.routers import probe

EXPERTS = {"hidden_size": 16, "num_experts": 8, "num_experts_per_tok": 3, "num_attention_heads": 4}
GROUPS = {"n_group": 2, "topk_group": 1, "routed_scaling_factor": 1.0, "topk_method": "group_limited_greedy"}


def made(router: nn.Module) -> nn.Module:
    """The router with random weights."""
    torch.manual_seed(0)
    for parameter in router.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    return router.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("router", "renormalise"),
    [
        (OlmoeTopKRouter(OlmoeConfig(**EXPERTS)), False),
        (OlmoeTopKRouter(OlmoeConfig(**EXPERTS, norm_topk_prob=True)), True),
        (MixtralTopKRouter(MixtralConfig(hidden_size=16, num_local_experts=8, num_experts_per_tok=3)), True),
    ],
)
def test_softmax_routers_are_known_by_what_they_do(router: nn.Module, renormalise: bool, dtype: torch.dtype) -> None:
    found = probe("gate", made(router).to(dtype))
    assert (found.experts, found.top_k, found.renormalise) == (8, 3, renormalise)


def test_a_bias_on_the_choice_is_no_softmax_router() -> None:
    """Its gate weights are softmax shares, and yet TopK(R) at tau = 0 would not be its choice."""
    router = made(Ernie4_5_MoeTopKRouter(Ernie4_5_MoeConfig(**EXPERTS)))
    assert isinstance(router, Ernie4_5_MoeTopKRouter)
    nn.init.zeros_(router.moe_statics.e_score_correction_bias)
    assert probe("gate", router).renormalise is True
    nn.init.normal_(router.moe_statics.e_score_correction_bias, std=0.1)
    assert probe("gate", router).renormalise is None


def test_a_choice_among_groups_is_no_softmax_router() -> None:
    config: dict[str, Any] = {**EXPERTS, **GROUPS}
    assert probe("gate", made(DeepseekV2TopkRouter(DeepseekV2Config(**config)))).renormalise is None
    config["topk_method"] = "greedy"
    assert probe("gate", made(DeepseekV2TopkRouter(DeepseekV2Config(**config)))).renormalise is False


def test_a_router_that_needs_more_than_hidden_states_is_refused() -> None:
    router = made(MiniMaxM2TopKRouter(MiniMaxM2Config(hidden_size=16, num_local_experts=8, num_experts_per_tok=3)))
    with pytest.raises(ModelError, match=r"(?s)mlp.gate \(MiniMaxM2TopKRouter\) does not make.*fix: use a model"):
        probe("mlp.gate", router)
