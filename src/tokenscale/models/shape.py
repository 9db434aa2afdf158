"""The size of a transformers model as the bill needs it, read off its modules."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from tokenscale.core.shape import ModelShape
from tokenscale.models.experts import expert_holders
from tokenscale.models.quantised import quantised
from tokenscale.models.routers import Router
from tokenscale.models.stored import held, stored_bytes

MXFP4_BITS = 4.25  # four bits a weight, and eight for every 32 of them


def model_shape(model: Any, routers: Sequence[Router], windows: Sequence[int | None]) -> ModelShape:
    """The shape of a causal model; `windows[l]` is layer l's sliding window in keys, None for full attention.

    What is said of lm_head goes for a sequence classifier's score as well. Every matrix but the embedding
    table and lm_head is multiplied once a row; an expert's matrices only
    where it is chosen, and experts that cost nothing never. Where layers differ in experts, top-k or
    size of experts, `experts` and `top_k` are the largest, and an expert is their mean.

    Attention takes a product over queries and one over values: 2 * heads * (query dim + value dim) FLOPs
    per row and key. Latent attention is counted as if every key were expanded when it is stored, which
    costs no more than that; what is stored is the latent key.

    A quantised model is counted by the shapes that its configuration says, and its bytes by what it holds.
    """
    config = model.config.get_text_config(decoder=True)
    logical = unquantised(model)
    sizes = [_attention(layer, window) for layer, window in zip(_per_layer(config, len(windows)), windows, strict=True)]
    per_key: dict[int | None, float] = {}
    for window, (flops, _) in zip(windows, sizes, strict=True):
        per_key[window] = per_key.get(window, 0.0) + flops
    head = output_head(model).weight
    runs = [_run_flops(logical, router) for router in routers]
    top_k = max((router.top_k for router in routers), default=0)
    slots = sum(router.experts - router.free for router in _once(routers)) or 1
    return ModelShape(
        dense_flops=2.0 * _dense(logical, routers),
        head_flops=2.0 * output_head(logical).weight.numel(),
        expert_flops=sum(runs) / len(runs) * top_k * len(runs) if runs else 0.0,
        attention=tuple((flops, window) for window, flops in per_key.items()),
        dense_bytes=_dense_bytes(model, routers),
        head_bytes=float(stored_bytes([head])),
        expert_bytes=sum(_expert_bytes(model, logical, router) for router in _once(routers)) / slots,
        kv_bytes=float(sum(stored for _, stored in sizes)) * model_bytes(model),
        moe_layers=len(routers),
        experts=max((router.experts for router in routers), default=0),
        top_k=top_k,
    )


def output_head(model: Any) -> Any:
    """lm_head, or the matrix that makes a sequence classifier's labels."""
    head = model.get_output_embeddings()
    if head is None:
        head = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == model.num_labels][-1]
    return head


def unquantised(model: Any) -> Any:
    """The model, or where it is quantised its twin without weights, whose modules have the shapes of the numbers."""
    if not quantised(model):
        return model
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        return type(model)._from_config(config).eval()


def model_bytes(model: Any) -> int:
    """Bytes of a number of the type that a model computes in."""
    return int(torch.empty(0, dtype=model.dtype).element_size())


def _per_layer(config: Any, layers: int) -> list[Any]:
    """The configuration of every layer of attention; in most models one for all."""
    own = config.per_layer_config if getattr(config, "is_heterogeneous", False) else ()
    return list(own) if len(own) == layers else [config] * layers


def _attention(config: Any, window: int | None) -> tuple[float, int]:
    """FLOPs per row and key of one layer, and numbers stored per token."""

    def size(name: str, default: int) -> int:
        """Some models have sizes of their own for layers with a window."""
        own = getattr(config, f"swa_{name}", None) if window is not None else None
        return int(own or getattr(config, name, None) or default)

    heads = size("num_attention_heads", 1)
    head_dim = size("head_dim", config.hidden_size // heads)
    values = size("v_head_dim", head_dim)
    if latent := getattr(config, "kv_lora_rank", None):
        queries = config.qk_nope_head_dim + config.qk_rope_head_dim
        return 2.0 * heads * (queries + values), latent + config.qk_rope_head_dim
    keys = size("num_key_value_heads", heads)
    if config.model_type == "mimo_v2_flash" and window is not None:
        keys *= 2  # its layers with a window have twice the keys, which only its code says
    return 2.0 * heads * (head_dim + values), keys * (head_dim + values)


def _once(routers: Sequence[Router]) -> list[Router]:
    """Routers of modules that differ: a layer that runs several times is stored once."""
    return list({id(router.module): router for router in routers}.values())


def _run_flops(model: Any, router: Router) -> float:
    """FLOPs of one row in one expert: of each matrix an expert's part, once. Biases and scales are no matrices."""
    total = 0
    for holder in expert_holders(model, router):
        for name, parameter in holder.named_parameters():
            if "bias" in name or "scale" in name or parameter.ndim < 2:
                continue
            total += parameter.numel() // (len(parameter) if parameter.ndim == 3 else _paid(router))
    return 2.0 * total


def _paid(router: Router) -> int:
    return router.experts - router.free


def _dense(model: Any, routers: Sequence[Router]) -> int:
    """Numbers that every row is multiplied with: linear layers, routers and shared experts, each once a run."""
    head = output_head(model).weight
    routed = {id(p) for router in routers for holder in expert_holders(model, router) for p in holder.parameters()}
    found: dict[int, int] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            matrix = parameter.ndim == 2 and _multiplies(module)
            shared = parameter.ndim == 3 and type(module).__name__.endswith("Experts") and "bias" not in name
            if (matrix or shared) and id(parameter) not in routed and parameter is not head:
                found[id(parameter)] = parameter.numel()
    return sum(found.values())


def _multiplies(module: nn.Module) -> bool:
    """Whether a module's matrices are multiplied with every row."""
    name = type(module).__name__.lower()
    return isinstance(module, nn.Linear) or name.endswith(("linear", "conv1d", "router"))


def _dense_bytes(model: Any, routers: Sequence[Router]) -> float:
    """Parameters outside experts, lm_head and the input table, of which a row reads one line."""
    left_out = {id(p) for router in routers for holder in expert_holders(model, router) for p in held(holder)}
    left_out |= {id(model.get_input_embeddings().weight), id(output_head(model).weight)}
    found = held(model) if quantised(model) else model.parameters()
    return float(stored_bytes(p for p in found if id(p) not in left_out))


def _expert_bytes(model: Any, logical: Any, router: Router) -> float:
    """Bytes of all experts of a layer. MXFP4 weights are no parameters once they are laid out for their kernel."""
    holders = expert_holders(model, router)
    if any(type(holder).__name__.startswith("Mxfp4") for holder in holders):
        twins = [p for h in expert_holders(logical, router) for name, p in h.named_parameters() if "bias" not in name]
        biases = [p for h in holders for name, p in h.named_parameters() if "bias" in name]
        return sum(p.numel() for p in twins) * MXFP4_BITS / 8 + stored_bytes(biases)
    return float(stored_bytes(p for holder in holders for p in held(holder)))
