"""The experts of transformers' MoE blocks by the kernels."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.activations import SiLUActivation

from tokenscale.models.native.bindings import DTYPES, experts, grouped

# Rows of an expert on average, up to which the kernel is the faster one (benchmarks/kernels.py).
MOST_PER_EXPERT = {torch.float32: 32, torch.bfloat16: 16}


def experts_forward(
    module: Any,
    hidden: Float[Tensor, "tokens hidden"],
    chosen: Int[Tensor, "tokens top_k"],
    weights: Float[Tensor, "tokens top_k"],
) -> Float[Tensor, "tokens hidden"]:
    """The forward of an experts module: by the kernels where an expert has few rows, else the module's own."""
    few = chosen.numel() <= MOST_PER_EXPERT.get(hidden.dtype, 0) * module.num_experts
    if not few or not _fit(hidden, getattr(module, "gate_up_proj" if module.has_gate else "up_proj"), module.down_proj):
        return type(module).forward(module, hidden, chosen, weights)  # type: ignore[no-any-return]
    if _is_silu_gate(module):
        return experts(hidden, chosen, weights, module.gate_up_proj, module.down_proj)
    flat = chosen.reshape(-1)
    name = "gate_up_proj" if module.has_gate else "up_proj"
    up = grouped(hidden, flat, getattr(module, name), _bias(module, name), module.is_transposed)
    inner = module._apply_gate(up) if module.has_gate else module.act_fn(up)
    down = grouped(inner, flat, module.down_proj, _bias(module, "down_proj"), module.is_transposed)
    if module.has_post_expert_norm:
        down = module.post_expert_norm(down)
    kept = weights.masked_fill(chosen >= module.num_experts, 0) if module._is_expert_parallel else weights
    total = (down.view(*chosen.shape, -1).float() * kept[..., None].float()).sum(1)
    return total.to(hidden.dtype)


def _fit(hidden: Tensor, *weights: Tensor) -> bool:
    """Whether weights, which may have been replaced since the model was loaded, are still what the kernels read."""
    return all(weight.dtype == hidden.dtype and weight.is_contiguous() for weight in weights)


def why_not(module: Any) -> str:
    """Why the kernels cannot run an experts module, as the end of a sentence; empty where they can."""
    missing = [name for name in ATTRIBUTES if not hasattr(module, name)]
    if missing:
        return f"{type(module).__name__} is not one of transformers' modules of stacked experts"
    weights = [getattr(module, "gate_up_proj" if module.has_gate else "up_proj", None), module.down_proj]
    if not all(type(w) is nn.Parameter and w.ndim == 3 for w in weights):  # quantised ones only look like it
        return f"the weights of {type(module).__name__} are no stacked matrices"
    if any(w.device.type != "cpu" or w.dtype not in DTYPES for w in weights):
        return f"the weights of {type(module).__name__} are {weights[0].dtype} on {weights[0].device}"
    if not all(w.is_contiguous() for w in weights):
        return f"the weights of {type(module).__name__} are not contiguous"
    return ""


ATTRIBUTES = ("num_experts", "down_proj", "has_gate", "has_bias", "is_transposed", "is_concatenated", "_apply_gate")


def _is_silu_gate(module: Any) -> bool:
    """Whether one kernel can do all of it."""
    gate = getattr(type(module)._apply_gate, "__name__", "")
    plain = module.has_gate and module.is_concatenated and not (module.has_bias or module.is_transposed)
    silu = isinstance(getattr(module, "act_fn", None), nn.SiLU | SiLUActivation)
    return plain and silu and gate == "_default_apply_gate" and not module.has_post_expert_norm


def _bias(module: Any, name: str) -> Tensor | None:
    return getattr(module, f"{name}_bias") if module.has_bias else None
