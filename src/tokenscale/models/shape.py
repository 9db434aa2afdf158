"""The size of a transformers model as the bill needs it, read off its modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from tokenscale.core.cost import ModelShape
from tokenscale.models.routers import Router


def model_shape(model: Any, routers: Sequence[Router], windows: Sequence[int | None]) -> ModelShape:
    """The shape of a causal model; `windows[l]` is layer l's sliding window in keys, None for full attention.

    Every matrix but the embedding table and lm_head is multiplied once a row; an expert's matrices only
    where it is chosen. Attention takes two products of 2 * heads * head_dim FLOPs per row and key.
    """
    config = model.config.get_text_config(decoder=True)
    sizes = [_attention_sizes(layer) for layer in _layer_configs(config, len(windows))]
    experts = expert_parameters(model)
    head = model.get_output_embeddings().weight
    matrices = [p for p in _matrices(model) if p is not head]
    slots = sum(router.experts for router in routers) or 1
    per_expert = sum(p.numel() for p in experts if p.ndim == 3) // slots
    top_k = routers[0].top_k if routers else 0
    per_key: dict[int | None, float] = {}
    for window, (queries, _) in zip(windows, sizes, strict=True):
        per_key[window] = per_key.get(window, 0.0) + 4.0 * queries
    return ModelShape(
        dense_flops=2.0 * sum(p.numel() for p in matrices),
        head_flops=2.0 * head.numel(),
        expert_flops=2.0 * per_expert * top_k * len(routers),
        attention=tuple((flops, window) for window, flops in per_key.items()),
        dense_bytes=float(sum(p.nbytes for p in _read_parameters(model, experts))),
        head_bytes=float(head.nbytes),
        expert_bytes=sum(p.nbytes for p in experts) / slots,
        kv_bytes=2.0 * sum(keys for _, keys in sizes) * head.element_size(),
        moe_layers=len(routers),
        experts=routers[0].experts if routers else 0,
        top_k=top_k,
    )


def _layer_configs(config: Any, layers: int) -> list[Any]:
    """The configuration of every layer of attention; in most models one for all."""
    own = config.per_layer_config if getattr(config, "is_heterogeneous", False) else ()
    return list(own) if len(own) == layers else [config] * layers


def _attention_sizes(config: Any) -> tuple[int, int]:
    """Numbers of all query heads of a layer, and of all its keys."""
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    return heads * head_dim, kv_heads * head_dim


def expert_parameters(model: nn.Module) -> list[nn.Parameter]:
    """All parameters of the modules named ``*Experts``, which hold every expert of a layer."""
    modules = [m for m in model.modules() if type(m).__name__.endswith("Experts")]
    return [p for module in modules for p in module.parameters()]


def _matrices(model: nn.Module) -> list[nn.Parameter]:
    """Weights that every row is multiplied with: linear layers and routers, each once."""
    names = ("linear", "conv1d", "topkrouter")
    inside = {id(p) for p in expert_parameters(model)}
    found = {
        id(p): p
        for module in model.modules()
        if type(module).__name__.lower().endswith(names)
        for p in module.parameters(recurse=False)
        if p.ndim == 2 and id(p) not in inside
    }
    return list(found.values())


def _read_parameters(model: Any, experts: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """Parameters outside experts, lm_head and the input table, of which a row reads one line."""
    left_out = {id(p) for p in experts}
    left_out |= {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    return [p for p in model.parameters() if id(p) not in left_out]
