"""Tiny random models of the softmax-router families, and a dense one."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

SIZES: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
FAMILIES: dict[str, tuple[type, type, dict[str, Any]]] = {
    "olmoe": (OlmoeConfig, OlmoeForCausalLM, {"intermediate_size": 16, "num_experts": 8}),
    "olmoe-renormalised": (
        OlmoeConfig,
        OlmoeForCausalLM,
        {"intermediate_size": 16, "num_experts": 8, "norm_topk_prob": True},
    ),
    "mixtral": (MixtralConfig, MixtralForCausalLM, {"intermediate_size": 16, "num_local_experts": 8}),
    "mixtral-sliding": (
        MixtralConfig,
        MixtralForCausalLM,
        {"intermediate_size": 16, "num_local_experts": 8, "sliding_window": 4},
    ),
    "qwen2-moe": (
        Qwen2MoeConfig,
        Qwen2MoeForCausalLM,
        {
            "intermediate_size": 24,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 20,
            "num_experts": 8,
        },
    ),
    "qwen3-moe": (
        Qwen3MoeConfig,
        Qwen3MoeForCausalLM,
        {"intermediate_size": 24, "moe_intermediate_size": 16, "num_experts": 8, "head_dim": 16},
    ),
    "llama": (LlamaConfig, LlamaForCausalLM, {"intermediate_size": 24}),
}
MOE = [name for name in FAMILIES if name != "llama"]


def tiny(name: str, attention: str = "sdpa", seed: int = 0) -> Any:
    """A random float32 model; weights large enough that rows and experts differ visibly."""
    config, kind, extra = FAMILIES[name]
    torch.manual_seed(seed)
    model = kind._from_config(config(**{**SIZES, **extra}), attn_implementation=attention, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return model.eval()
