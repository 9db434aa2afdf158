"""Finds the routers of a mixture-of-experts model and perturbs what they select.

Routers are found by class: transformers names them ``*TopKRouter``, and they return (logits R, gate
weights, expert indices). What a class does with R is not read from its name but tried: its own
forward must choose TopK(R), without groups or biases, and its gate weights must be the softmax of R,
perhaps renormalised over the chosen experts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tokenscale.core.errors import ModelError, RoutingError
from tokenscale.core.plan import Routing


@dataclass(frozen=True)
class Router:
    """One MoE layer's router. `renormalise`: whether gate weights sum to 1; None: not the softmax and top-k of R."""

    name: str
    module: nn.Module
    experts: int
    top_k: int
    renormalise: bool | None


def find_routers(model: nn.Module) -> list[Router]:
    """The routers in the order of their layers. The model is left as it was."""
    found = [(name, m) for name, m in model.named_modules() if type(m).__name__.lower().endswith("topkrouter")]
    return [probe(name, module) for name, module in found]


@torch.no_grad()
def probe(name: str, module: nn.Module) -> Router:
    """Learns experts, top-k and the rule of the gate weights from 32 random hidden states.

    Raises ModelError for a router that does not map hidden states to logits, gate weights and indices.
    """
    weight = next(module.parameters())
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(32, weight.shape[-1], generator=generator).to(weight.device, weight.dtype)
    try:
        logits, weights, indices = module(hidden)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"the router {name} ({type(module).__name__}) does not make logits, gate weights and expert indices of "
            f"hidden states alone: {error}",
            "use a model of another family, such as OLMoE, Mixtral, Qwen2-MoE or Qwen3-MoE",
        ) from error
    rules = [rule for rule in (False, True) if _follows(logits, weights, indices, rule)]
    return Router(name, module, logits.shape[-1], indices.shape[-1], rules[0] if rules else None)


def _follows(
    logits: Float[Tensor, "*rows experts"],
    weights: Float[Tensor, "*rows top_k"],
    indices: Int[Tensor, "*rows top_k"],
    renormalise: bool,
) -> bool:
    """Whether a router chose TopK(R), and weighed what it chose by `gates`."""
    # Values, not indices: of logits that are equal, or become so in the router's softmax, either may be chosen.
    chosen = logits.gather(-1, indices).sort(-1, descending=True).values.float()
    top = logits.topk(indices.shape[-1], dim=-1).values.float()
    weighed = torch.allclose(gates(logits, indices, renormalise), weights.float(), rtol=1e-2, atol=1e-6)
    return weighed and torch.allclose(chosen, top, rtol=1e-5, atol=1e-6)


def gates(
    logits: Float[Tensor, "*rows experts"], indices: Int[Tensor, "*rows top_k"], renormalise: bool
) -> Float[Tensor, "*rows top_k"]:
    """Gate weights of the chosen experts from the original router logits, in float32."""
    chosen = logits.float().softmax(-1).gather(-1, indices)
    return chosen / chosen.sum(-1, keepdim=True) if renormalise else chosen


@dataclass
class RoutingRecord:
    """What the routers did in one forward, call by call: which it was, its expert indices [tokens, top_k], and
    the noise-free ones."""

    layers: list[int] = field(default_factory=list)
    chosen: list[Tensor] = field(default_factory=list)
    clean: list[Tensor] = field(default_factory=list)

    def marks(self, batch: int, rows: int, experts: int) -> Bool[Tensor, "batch rows moe_layers experts"]:
        """The experts that every row ran."""
        return _marks(torch.stack(self.chosen), experts).view(-1, batch, rows, experts).permute(1, 2, 0, 3)

    def changed(self, batch: int, rows: int, experts: int) -> Bool[Tensor, "batch rows moe_layers"]:
        """Where the set of experts differs from the same row's choice without noise."""
        chosen, clean = torch.stack(self.chosen), torch.stack(self.clean)
        kept = _marks(clean, experts).gather(-1, chosen).all(-1)
        return ~kept.view(-1, batch, rows).permute(1, 2, 0)


def _marks(indices: Int[Tensor, "*rows top_k"], experts: int) -> Bool[Tensor, "*rows experts"]:
    marks = torch.zeros(*indices.shape[:-1], experts, dtype=torch.bool, device=indices.device)
    return marks.scatter_(-1, indices, True)


@contextmanager
def watch(routers: list[Router], routing: Routing | None) -> Iterator[RoutingRecord]:
    """Records every router's choice during one forward and, where `routing` says so, changes it.

    Tokens reach a router as [batch, rows] flattened. The hooks are gone after any exit. Raises
    RoutingError unless all were called once, in the order of their layers.
    """
    record = RoutingRecord()
    handles = []
    try:
        for layer, router in enumerate(routers):
            handles.append(router.module.register_forward_hook(_hook(router, layer, routing, record)))
        yield record
    finally:
        for handle in handles:
            handle.remove()
    if silent := len(routers) - len(set(record.layers)):
        raise RoutingError(
            f"{silent} of {len(routers)} routers were not called in a forward, so their choices are unknown",
            "load the model without fused expert kernels (use_kernels=False, or a dequantised checkpoint)",
        )
    if record.layers != list(range(len(routers))):
        called = ", ".join(routers[layer].name for layer in record.layers)
        raise RoutingError(
            f"routers were not called once each in the order of their layers, but as {called}",
            "use a model whose layers run once, one after the other",
        )


def _hook(router: Router, layer: int, routing: Routing | None, record: RoutingRecord) -> Any:
    noisy = routing is not None and routing.noisy is not None and bool(routing.noisy[layer].any())

    def hook(module: nn.Module, args: Any, output: tuple[Tensor, Tensor, Tensor]) -> Any:
        logits, weights, indices = output
        if routing is not None:
            record.clean.append(indices)
        if noisy:
            assert routing is not None
            assert routing.noise is not None
            assert routing.noisy is not None
            weights, indices = perturb(router, logits, weights, indices, routing.noise[layer], routing.noisy[layer])
        record.layers.append(layer)
        record.chosen.append(indices)
        return (logits, weights, indices) if noisy else None

    return hook


def perturb(
    router: Router,
    logits: Float[Tensor, "tokens experts"],
    weights: Float[Tensor, "tokens top_k"],
    indices: Int[Tensor, "tokens top_k"],
    noise: Float[Tensor, "batch rows experts"],
    noisy: Bool[Tensor, "batch rows"],
) -> tuple[Float[Tensor, "tokens top_k"], Int[Tensor, "tokens top_k"]]:
    """Indices = TopK(R + noise, k) with the gate weights of R; rows without noise keep what the router said."""
    assert router.renormalise is not None
    moved = logits.float() + noise.flatten(0, 1).to(logits.device)
    chosen = moved.topk(router.top_k, dim=-1).indices
    gate = gates(logits, chosen, router.renormalise).to(weights.dtype)
    where = noisy.flatten().to(logits.device)[:, None]
    return torch.where(where, gate, weights), torch.where(where, chosen, indices)
