"""Finds the routers of a model by class, and learns from a trial what each of them does."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from tokenscale.core.errors import ModelError
from tokenscale.models.routing.adapters import ProductKeys, SparseMixer, TokenTable
from tokenscale.models.routing.fused import fused_block, refuse_foreign
from tokenscale.models.routing.replay import Replay
from tokenscale.models.routing.router import EVERYTHING, Router
from tokenscale.models.routing.rule import Rule, rule_of, traced
from tokenscale.models.routing.softmax import softmax_way

ROUTER = re.compile(r"(Router|TopKGating|MoEV1Gate)$", re.IGNORECASE)
BLOCK_METHOD = "route_tokens_to_experts"  # a function of the block chooses, and the router only makes logits (dbrx)
TRIAL = 32  # random hidden states of a trial


@dataclass(frozen=True)
class Place:
    """A module that may hold a router, the module around it, and what hidden states are like."""

    name: str
    module: nn.Module
    parent: nn.Module
    width: int | None
    dtype: torch.dtype | None


def find_routers(model: Any) -> list[Router]:
    """The routers in the order in which a forward calls them. The model is left as it was.

    No weights are needed: a model on the meta device will do. Raises ModelError for a router that
    cannot be tried, or that a fused kernel has replaced.
    """
    found = [router for place in _places(model) if (router := _router(place))]
    return _looped(sorted(found, key=_depth), _config(model))


def _depth(router: Router) -> tuple[list[int], bool]:
    """By layer, and in a layer attention (whose query experts jetmoe routes) before all else."""
    return [int(n) for n in re.findall(r"\d+", router.name)], "attention" not in router.name


def _places(model: Any) -> list[Place]:
    """The modules of the text decoder: towers of pictures and sound are left out."""
    modules = dict(model.named_modules())
    decoder = model.get_decoder() if isinstance(getattr(model, "get_decoder", None), MethodType) else model
    inside = next((name for name, module in modules.items() if module is decoder), "")
    like = getattr(_config(model), "hidden_size", None), getattr(model, "dtype", None)
    return [
        Place(name, module, modules[name.rpartition(".")[0]] if name else module, *like)
        for name, module in modules.items()
        if not inside or name == inside or name.startswith(f"{inside}.")
    ]


def _config(model: Any) -> Any:
    config = getattr(model, "config", None)
    return None if config is None else config.get_text_config(decoder=True)


def _router(place: Place) -> Router | None:
    kind = type(place.module).__name__
    if kind in NAMED:
        return NAMED[kind](place)
    if hasattr(place.module, BLOCK_METHOD):
        return _block_router(place)
    if not ROUTER.search(kind) or hasattr(place.parent, BLOCK_METHOD):
        return None
    refuse_foreign(place.name, place.parent)
    return _tried(place)


def _tried(place: Place) -> Router:
    """A router that takes hidden states, and what else its block hands it."""
    module, errors = place.module, []
    for shape in ((TRIAL, -1), (2, TRIAL // 2, -1)):  # some want tokens in a row, some [batch, rows]
        args = _arguments(place, shape)
        try:
            operations, output = traced(module, args)
        except (TypeError, ValueError, RuntimeError, IndexError) as error:
            errors.append(str(error))
            continue
        if rule := rule_of(operations, output):
            return _made(place, rule, output)
    raise ModelError(
        f"the router {place.name} ({type(module).__name__}) does not choose experts from hidden states in a way that "
        f"is understood{': ' + '; or '.join(dict.fromkeys(errors)) if errors else ''}",
        "use a model that transformers itself defines, without fused kernels, or dequantise it",
    )


def _made(place: Place, rule: Rule, output: Any) -> Router:
    kind = type(place.module).__name__
    supports, limits = EVERYTHING, ""
    if rule.made_at == -1:
        supports -= {"perturbed"}
        limits = "gate weights are made of logits from a kernel, which cannot be perturbed; dequantise the model"
    if kind == "JetMoeTopKGating":
        supports, limits = supports - {"ranks"}, "attention runs one query per chosen expert, so their number is fixed"
    return Router(
        place.name,
        place.module,
        rule.experts,
        rule.top_k,
        rule.family,
        softmax_way(rule, output) or Replay(rule, place.name),
        free=FREE.get(kind, lambda module: 0)(place.module),
        monotone=rule.monotone,
        supports=supports,
        limits=limits,
        fused=fused_block(place.parent),
    )


def _arguments(place: Place, shape: tuple[int, ...]) -> list[Any]:
    """Random hidden states, and for every further parameter what the block has by its name."""
    names = list(inspect.signature(type(place.module).forward).parameters)[2:]
    further = [getattr(place.parent, name, None) for name in names]
    if getattr(place.module, "use_eda", False):  # zaya hands the states of a router to the next one
        further = [_random((*shape[:-1], place.module.router_hidden_size), place)]  # type: ignore[arg-type]
    while further and further[-1] is None:
        further.pop()
    return [_hidden(place, place.module, shape), *further]


def _hidden(place: Place, module: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """Random hidden states for a module; without a configuration, of the width of its first matrix."""
    width = place.width or next(p.shape[-1] for p in module.parameters() if p.ndim == 2)
    return _random((*shape[:-1], width), place)


def _random(shape: Sequence[int], place: Place) -> Tensor:
    """Random numbers of the model's type, on the module's device, or where accelerate will move it to run."""
    like = _first_tensor(place.module)
    hook = getattr(place.module, "_hf_hook", None)
    device = torch.device(getattr(hook, "execution_device", None) or like.device) if like.is_meta else like.device
    if device.type == "meta":
        return torch.empty(shape, device="meta", dtype=place.dtype or like.dtype)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, place.dtype or like.dtype)


def _first_tensor(module: nn.Module) -> Tensor:
    """A parameter or buffer (quantised weights can be either)."""
    return next(itertools.chain(module.parameters(), module.buffers()))


def _block_router(place: Place) -> Router:
    """A block whose own function ranks the logits that its router makes."""
    block: Any = place.module
    logits = block.router(_hidden(place, block.router, (TRIAL, -1)))
    operations, output = traced(getattr(block, BLOCK_METHOD), [logits])
    rule = rule_of(operations, output)
    assert rule is not None
    way = Replay(rule, place.name)
    return Router(place.name, block, rule.experts, rule.top_k, rule.family, way, BLOCK_METHOD, monotone=rule.monotone)


def _sparse_mixer(place: Place) -> Router:
    module: Any = place.module
    limits = "sparsemixer chooses two experts, one after the other"
    return Router(
        place.name,
        module,
        module.num_experts,
        module.top_k,
        "sparsemixer",
        SparseMixer(),
        supports=EVERYTHING - {"ranks"},
        limits=limits,
    )


def _product_keys(place: Place) -> Router:
    module: Any = place.module
    return Router(place.name, module, module.num_keys**2, module.top_k, "product keys, top-k, softmax", ProductKeys())


def _token_table(place: Place) -> Router:
    module: Any = place.module
    limits = "it looks its experts up by token id"
    return Router(
        place.name,
        module,
        module.num_experts,
        module.top_k,
        "table of token ids",
        TokenTable(),
        monotone=False,
        supports=frozenset(),
        limits=limits,
    )


NAMED: dict[str, Callable[[Place], Router]] = {
    "PhimoeTopKRouter": _sparse_mixer,
    "DogeCDMoE": _product_keys,
    "DeepseekV4HashRouter": _token_table,
}
FREE: dict[str, Callable[[Any], int]] = {
    "LongcatFlashTopkRouter": lambda module: module.n_routed_experts - module.num_experts,
    "ZayaRouter": lambda module: module.num_router_classes - module.num_experts,
}


def _looped(routers: list[Router], config: Any) -> list[Router]:
    """The calls of a model that runs some of its layers several times (inkling2_loop), each a router of its own."""
    passes = getattr(config, "loop_num_passes", 1)
    if passes == 1:
        return routers
    first, last = config.loop_layer_index_start, config.loop_layer_index_end
    layers = [int(re.findall(r"\d+", router.name)[0]) for router in routers]
    looped = [r for r, layer in zip(routers, layers, strict=True) if first <= layer < last]
    before = [r for r, layer in zip(routers, layers, strict=True) if layer < first]
    after = [r for r, layer in zip(routers, layers, strict=True) if layer >= last]
    repeated = [replace(r, name=f"{r.name} (pass {i + 1})") for i in range(passes) for r in looped]
    return [*before, *repeated, *after]
