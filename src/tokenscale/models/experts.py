"""The parameters of experts: which a token can use, and which are shared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from tokenscale.models.routers import Router

SHARED = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts", "num_experts_shared")


def active_parameters(model: Any, routers: Sequence[Router]) -> int:
    """Parameters that one token can use: all of the model but the experts it does not choose.

    P - sum over MoE layers of P_experts (1 - k / E), where E are the layer's experts that have
    parameters. All of the input table counts, as is usual. A layer that runs several times counts once.
    """
    total: int = sum(p.numel() for p in model.parameters())
    return total - sum(_idle(model, router) for router in _once(routers))


def _once(routers: Sequence[Router]) -> list[Router]:
    return list({id(router.module): router for router in routers}.values())


def _idle(model: Any, router: Router) -> int:
    paid = router.experts - router.free
    held = sum(p.numel() for p in layer_experts(model, router))
    return held - held // paid * min(router.top_k, paid)


def layer_experts(model: Any, router: Router) -> list[nn.Parameter]:
    """The parameters of all experts of one router's layer."""
    found = {id(p): p for holder in expert_holders(model, router) for p in holder.parameters()}
    return list(found.values())


def expert_holders(model: Any, router: Router) -> list[nn.Module]:
    """The modules that hold all experts of one router's layer."""
    block = _block(model, router)
    holders = [m for name, m in block.named_modules() if _routed(name, m)]
    # Experts can be rows of tables (doge).
    return holders or [m for m in block.modules() if isinstance(m, nn.Embedding)]


def _routed(path: str, module: nn.Module) -> bool:
    """Whether a module holds all experts that a router chooses from."""
    return type(module).__name__.endswith("Experts") and "shared" not in path.rpartition(".")[2]


def _block(model: nn.Module, router: Router) -> nn.Module:
    """The smallest module around a router that holds experts."""
    modules: dict[str, nn.Module] = dict(model.named_modules())
    name = router.name.partition(" ")[0]  # by name, so that a twin of the model will do
    while name:
        if any(_routed(path, m) or isinstance(m, nn.Embedding) for path, m in modules[name].named_modules()):
            return modules[name]
        name = name.rpartition(".")[0]
    return model


def shared_experts(model: Any, routers: Sequence[Router]) -> int:
    """Experts of a MoE layer that every token runs: 0 where no module in the layer is called shared."""
    if not routers:
        return 0
    modules = dict(model.named_modules())
    name = next(name for name, module in modules.items() if module is routers[-1].module)
    block = name.rpartition(".")[0]
    inside = [modules[place].named_children() for place in (name, block, block.rpartition(".")[0]) if place]
    shared = any("shared" in child for children in inside for child, _ in children)
    if not shared:
        return 0
    config = model.config.get_text_config(decoder=True)
    return next((count for key in SHARED if (count := getattr(config, key, None))), 1)
