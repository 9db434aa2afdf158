"""A tiny random model of every causal mixture-of-experts architecture that the installed transformers defines.

`scan` finds them in transformers itself: what its causal mapping names, or a class ``*ForCausalLM``
beside it, whose source speaks of experts or of a top-k. Each is in SMALL (it can be built here) or in
NOT_MOE (with the reason), which `test_zoo.py` compares.
"""

from __future__ import annotations

import importlib
import re
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

LAYERS = 3
EXPERTS = 8
TOP_K = 3

COMMON: dict[str, Any] = {
    "vocab_size": 101,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "intermediate_size": 24,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 20,
    "num_experts": EXPERTS,
    "num_local_experts": EXPERTS,
    "n_routed_experts": EXPERTS,
    "moe_num_experts": EXPERTS,
    "num_experts_per_tok": TOP_K,
    "num_experts_per_token": TOP_K,
    "moe_topk": TOP_K,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
    "index_topk": 8,
    "index_head_dim": 16,
    "index_n_heads": 2,
    "sliding_window": 6,
    "mamba_d_state": 8,
    "mamba_d_conv": 4,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_head_dim": 8,
    "linear_num_heads": 4,
}
"""Given to every configuration that declares the name."""

MLA: dict[str, Any] = {"num_key_value_heads": 4, "head_dim": 8}
"""Of models with latent attention, where head_dim is that of the rotated part."""
SPARSE: dict[str, Any] = {"mlp_layer_types": ["dense", "sparse", "sparse"]}
GROUPS: dict[str, Any] = {"n_group": 4, "topk_group": 2}
LINEAR: dict[str, Any] = {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}
INKLING: dict[str, Any] = {
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 16,
    "d_rel": 4,
    "rel_extent": 16,
}
SLIDING: dict[str, Any] = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}

SMALL: dict[str, dict[str, Any]] = {
    "afmoe": SLIDING,
    "aria_text": {},
    "axk1": MLA | GROUPS | SPARSE,
    "axk2": MLA | GROUPS | SPARSE,
    "bailing_hybrid": MLA | LINEAR | SPARSE | {"num_expert_group": 4, "topk_group": 2},
    "beam": SLIDING | SPARSE | GROUPS,
    "cohere2_moe": SLIDING | {"logit_scale": 1.0},
    "dbrx": {
        "d_model": 32,
        "n_heads": 4,
        "n_layers": LAYERS,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": EXPERTS, "moe_top_k": TOP_K, "hidden_size": 32},
    },
    "deepseek_v2": MLA | GROUPS | {"topk_method": "group_limited_greedy"},
    "deepseek_v3": MLA | GROUPS | {"first_k_dense_replace": 1},
    "deepseek_v32": MLA | GROUPS | SPARSE,
    "deepseek_v4": {
        "mlp_layer_types": ["hash_moe", "moe", "moe"],
        **{"num_key_value_heads": 1, "o_groups": 2, "o_lora_rank": 8},
    },
    "doge": {"is_moe": True, "num_experts": 16},
    "dots1": GROUPS,
    "dots3_note_text": MLA
    | GROUPS
    | SPARSE
    | {
        "shared_experts_intermediate_size": 16,
        "layer_types": ["indexed_attention", "sliding_attention", "indexed_attention"],
        "use_dsa": True,
        "head_dim": 16,
        **{f"swa_{name}": 2 for name in ("num_attention_heads", "num_key_value_heads")},
        **{f"swa_{name}": 16 for name in ("q_lora_rank", "kv_lora_rank", "head_dim")},
        **{"swa_qk_nope_head_dim": 8, "swa_v_head_dim": 12},
    },
    "ernie4_5_moe": {"moe_k": TOP_K, "moe_layer_end_index": LAYERS - 1},
    "exaone_moe": SLIDING | SPARSE | GROUPS,
    "flex_olmo": {},
    "flint": SLIDING | {"mlp_only_layers": [0]},
    "gemma4": {"text_config": "gemma4_text"},
    "gemma4_text": SLIDING
    | {
        "enable_moe_block": True,
        "top_k_experts": TOP_K,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 101,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "per_layer_config": {},
    },
    "glm4_moe": GROUPS,
    "glm4_moe_lite": MLA | SPARSE | GROUPS,
    "glm_moe_dsa": MLA | SPARSE | GROUPS,
    "gpt_oss": SLIDING | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "granitemoe": {},
    "granitemoe_swa": {"shared_intermediate_size": 20},
    "granitemoehybrid": LINEAR | {"mamba_n_heads": 4, "mamba_d_head": 16, "shared_intermediate_size": 20},
    "granitemoeshared": {"shared_intermediate_size": 20},
    "hunyuan_v1_moe": {"moe_topk": [TOP_K] * LAYERS, "num_experts": EXPERTS},
    "hy_v3": SPARSE,
    "hy_v4": MLA | GROUPS | SPARSE,
    "inkling2_loop_text": INKLING
    | {
        "unpadded_vocab_size": 101,
        "loop_layer_index_start": 1,
        "loop_layer_index_end": 2,
        "loop_gate_rank": 4,
        "n_layers_per_attn_res_block": 1,
    },
    "inkling2_text": INKLING | {"unpadded_vocab_size": 101, "n_layers_per_attn_res_block": 1},
    "inkling_text": INKLING | SPARSE | {"logits_mup_width_multiplier": 1.0},
    "jamba": {
        "expert_layer_period": 1,
        "expert_layer_offset": 0,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "mamba_dt_rank": 4,
    },
    "jetmoe": {"kv_channels": 16, "num_key_value_heads": 2, "num_experts_per_tok": 2},
    "kimi_linear": MLA | LINEAR | SPARSE | {"num_expert_group": 4, "topk_group": 2},
    "kolibri1": SLIDING,
    "laguna": SLIDING | SPARSE,
    "lara_mini": {"layer_types": ["linear_attention", "sliding_attention", "linear_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1},
    "llama4_text": {"intermediate_size_mlp": 24, "num_experts_per_tok": 1},
    "longcat_flash": MLA
    | {"num_layers": LAYERS, "ffn_hidden_size": 24, "expert_ffn_hidden_size": 16, "zero_expert_num": 4},
    "mellum": SLIDING,
    "mimo_v2_flash": SLIDING | SPARSE | GROUPS,
    "minimax": LINEAR,
    "minimax_m2": {"rotary_dim": 8},
    "minimax_m3_vl_text": SPARSE
    | {
        "dense_intermediate_size": 24,
        "shared_intermediate_size": 20,
        "rotary_dim": 8,
        "index_block_size": 4,
        "index_topk_blocks": 2,
        "layer_types": ["full_attention", "minimax_m3_sparse", "minimax_m3_sparse"],
    },
    "mistral4": {"num_key_value_heads": 4, "rope_parameters": None} | GROUPS,
    "mixtral": {},
    "nemotron_h": GROUPS
    | {
        "layers_block_type": ["linear_attention", "moe", "full_attention", "moe"],
        "moe_shared_expert_intermediate_size": 20,
        "ssm_state_size": 8,
        "mamba_num_heads": 4,
        "mamba_head_dim": 8,
        "n_groups": 2,
        "chunk_size": 16,
    },
    "olmoe": {},
    "phimoe": {"num_experts_per_tok": 2},
    "qwen2_moe": {},
    "qwen3_5_moe_text": LINEAR,
    "qwen3_moe": {},
    "qwen3_next": LINEAR,
    "qwen4_exp_text": {
        "layer_types": ["linear_attention", "indexed_attention", "linear_attention"],
        "hc_lowrank": 8,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    },
    "sarvam_mla": {"num_key_value_heads": 4} | GROUPS,
    "sarvam_moe": GROUPS,
    "solar_open": GROUPS,
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 12},
}
"""What each architecture's configuration is given beside COMMON."""

SAME: dict[str, str] = {
    "dots3_note": "dots3_note_text",
    "llama4": "llama4_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
    "qwen4_exp": "qwen4_exp_text",
}
"""Model types of a model with vision or sound whose causal class is that of its text part."""

NOT_MOE: dict[str, str] = {
    "bamba": "one MLP a layer: num_experts is a constant 1",
    "bart": "the top-k is in a docstring",
    "gemma3n": "the top-k is an activation that keeps the largest units of a dense MLP",
    "gemma3n_text": "the top-k is an activation that keeps the largest units of a dense MLP",
    "gemma4_assistant": "a drafter with a dense MLP; the top-k picks clusters of the vocabulary",
    "gemma4_unified_assistant": "a drafter with a dense MLP; the top-k picks clusters of the vocabulary",
    "mbart": "the top-k is in a docstring",
    "plbart": "the top-k is in a docstring",
    "xlm": "the top-k is of its question answering head",
    "xlnet": "the top-k is of its question answering head",
}
"""Model types that the scan finds and that have no experts to choose from."""


@cache
def _files() -> dict[str, Path]:
    """Class name -> the modeling file of transformers that defines it, where that speaks of experts or a top-k."""
    found: dict[str, Path] = {}
    for path in sorted(Path(transformers.__file__).parent.glob("models/*/modeling_*.py")):
        text = path.read_text(encoding="utf-8")
        lower = text.lower()
        if "topk(" in lower or "expert" in lower:
            found |= dict.fromkeys(re.findall(r"^class (\w+)\(", text, re.MULTILINE), path)
    return found


def _class(name: str) -> Any:
    path = _files()[name]
    return getattr(importlib.import_module(f"transformers.models.{path.parent.name}.{path.stem}"), name)


def causal_class(name: str) -> Any:
    """The causal class of a model type."""
    mapped = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(name)
    return getattr(transformers, mapped) if mapped else _class(scan()[name])


@cache
def scan() -> dict[str, str]:
    """Model type -> the name of its causal class, for all whose source speaks of experts or of a top-k."""
    mapped = dict(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    causal = [name for name in _files() if name.endswith("ForCausalLM") and name not in set(mapped.values())]
    unmapped = {_class(name).config_class.model_type: name for name in causal}
    return {model: name for model, name in (unmapped | mapped).items() if name in _files()}


def tiny_config(name: str, **changes: Any) -> Any:
    """The small configuration of a model type."""
    kind = CONFIG_MAPPING[name]
    small = SMALL[name] | changes
    if isinstance(small.get("text_config"), str):
        return kind(**{**small, "text_config": tiny_config(small["text_config"])})
    declared = set(kind().to_dict())
    return kind(**{key: value for key, value in COMMON.items() if key in declared} | small)


def tiny_model(name: str, attention: str = "eager", seed: int = 0, **changes: Any) -> Any:
    """A random float32 model in evaluation mode; weights large enough that rows and experts differ visibly.

    Biases are random too, those that move a router's choice among them. `changes` are of the configuration.
    """
    torch.manual_seed(seed)
    config = tiny_config(name, **changes)
    model = causal_class(name)._from_config(config, attn_implementation=attention, dtype=torch.float32)
    for key, value in [*model.named_parameters(), *model.named_buffers()]:
        if key.endswith("bias") and value.is_floating_point():
            torch.nn.init.normal_(value, std=0.1)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return model.eval()


ZOO = sorted(SMALL)
