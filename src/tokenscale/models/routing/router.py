"""A router of a model, and the forward in which it is watched and told what to choose."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from tokenscale.core.errors import RoutingError
from tokenscale.core.plan import Routing
from tokenscale.models.routing.draw import Draw, on, tokens
from tokenscale.models.routing.record import RoutingRecord
from tokenscale.models.routing.replay import Routed

EVERYTHING = frozenset({"logits", "scores", "nothing", "perturbed", "keep_head", "candidate_pool", "ranks"})


class Way(Protocol):
    """How a router is run: as it is, or with another choice of experts."""

    def plain(self, call: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Routed: ...

    def route(
        self, module: nn.Module, call: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], draw: Draw
    ) -> Routed: ...


@dataclass(frozen=True)
class Router:
    """One MoE layer's choice of experts: the function `method` of `module`.

    `experts` compete, of which the last `free` cost nothing (identity or skip experts), and `top_k` run.
    `family` is how they are chosen, in words; `monotone`: by the logits alone. `supports` are the words
    of `Routing` that it can follow, and `limits` says why not the others. Where it supports nothing there
    is no choice that noise could move, and noise leaves it as it is.
    """

    name: str
    module: nn.Module
    experts: int
    top_k: int
    family: str
    way: Way
    method: str = "forward"
    free: int = 0
    monotone: bool = True
    supports: frozenset[str] = EVERYTHING
    limits: str = ""
    fused: nn.Module | None = None

    def lacks(self, *words: str) -> str:
        """Why the router cannot follow a routing that uses `words`; empty where it can."""
        missing = sorted(set(words) - self.supports)
        return f"{type(self.module).__name__} takes no {', no '.join(missing)}: {self.limits}" if missing else ""


def no_noise(routers: Sequence[Router]) -> str:
    """Why a model takes no routing noise, as the end of a sentence; empty where it does."""
    with_choice = [router for router in routers if router.supports]
    if not with_choice:
        return routers[0].limits if routers else "it is a dense model, without routers"
    return next((why for router in with_choice if (why := router.lacks("logits"))), "")


def no_ranks(routers: Sequence[Router]) -> str:
    """Why a model's rows cannot run other ranks of experts, as the end of a sentence; empty where they can."""
    if not routers:
        return "it is a dense model, without routers"
    return next((why for router in routers if (why := router.lacks("ranks"))), "")


def words(routing: Routing) -> set[str]:
    """What of a router a routing asks, in the words of `Router.supports`."""
    asked = {"ranks"} if any(routing.ranks) else set()
    if routing.noise is not None:
        asked |= {routing.noise_on}
        asked |= {"perturbed"} if routing.weights == "perturbed" else set()
        asked |= {"keep_head"} if routing.keep_head else set()
        asked |= {"candidate_pool"} if routing.candidate_pool is not None else set()
    return asked


@contextmanager
def watch(routers: Sequence[Router], routing: Routing | None) -> Iterator[RoutingRecord]:
    """Records every router's choice during one forward and, where `routing` says so, changes it.

    Tokens reach a router as [batch, rows], flattened or not. The model is as it was after any exit. Raises
    RoutingError for what a router cannot follow, and unless all were called, in the order of their layers.
    """
    record = RoutingRecord([router.experts - router.free for router in routers])
    draws = None if routing is None else Draws(routing, len(routers))
    if draws is not None:
        _refuse(routers, draws)
    with ExitStack() as stack:
        for site in _sites(routers):
            stack.enter_context(_steered(site, routers, draws, record))
        for block in {id(r.fused): r.fused for r in routers if r.fused is not None}.values():
            stack.enter_context(replaced(block, "forward", unfused(block)))
        yield record
    _check(routers, record)


class Draws:
    """A routing, layer by layer, on the device of the tokens."""

    def __init__(self, routing: Routing, layers: int) -> None:
        noisy = routing.noisy
        self.routing = routing
        if noisy is not None and torch.compiler.is_compiling():
            self.active = [True] * layers  # a graph serves any marks
        else:
            self.active = [False] * layers if noisy is None else noisy.flatten(1).any(1).tolist()
        self._placed: dict[torch.device, Routing] = {}

    def at(self, layer: int, device: torch.device) -> Draw | None:
        """None where all tokens of a layer choose as the model does."""
        if device not in self._placed:
            self._placed[device] = on(self.routing, device)
        return Draw.of(self._placed[device], layer, self.active[layer])


def _refuse(routers: Sequence[Router], draws: Draws) -> None:
    """Refuses what a router cannot follow. Where there is no choice to move, noise is no matter."""
    for router, active in zip(routers, draws.active, strict=True):
        asked = words(draws.routing) if active and router.supports else words(draws.routing) & {"ranks"}
        if why := router.lacks(*asked):
            raise RoutingError(f"the router {router.name} cannot do this: {why}", INSTEAD)


def _sites(routers: Sequence[Router]) -> list[list[int]]:
    """The routers of each module, which is called once for each of them, in their order."""
    sites: dict[int, list[int]] = {}
    for layer, router in enumerate(routers):
        sites.setdefault(id(router.module), []).append(layer)
    return list(sites.values())


@contextmanager
def _steered(
    site: Sequence[int], routers: Sequence[Router], draws: Draws | None, record: RoutingRecord
) -> Iterator[None]:
    router = routers[site[0]]
    original = getattr(router.module, router.method)
    calls = iter(site)

    def steered(*args: Any, **kwargs: Any) -> Any:
        layer = next(calls, site[-1])  # a call too many is noted here and told in the end
        way = routers[layer].way
        draw = draws.at(layer, args[0].device) if draws is not None and router.supports else None
        if draw is None:
            routed = way.plain(original, args, kwargs)
        else:
            draw.check(tokens(args[0]), router.experts, router.top_k, router.name)
            routed = way.route(router.module, original, args, kwargs, draw)
        record.add(layer, routed.chosen, routed.clean, draw.noisy if draw is not None else None)
        return routed.output

    with replaced(router.module, router.method, steered):
        yield


@contextmanager
def replaced(owner: nn.Module, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """An object's method is another for a while."""
    before = owner.__dict__.get(name)
    setattr(owner, name, function)
    try:
        yield
    finally:
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


def unfused(block: Any) -> Callable[[Any], Any]:
    """The forward of a block whose own makes the routes inside its kernel: here its router makes them."""

    def forward(hidden_states: Any) -> Any:
        hidden = hidden_states.reshape(-1, hidden_states.shape[-1])
        logits, weights, indices = block.router(hidden)
        return block.experts(hidden, indices, weights).reshape(hidden_states.shape), logits

    return forward


INSTEAD = "leave it out, or use a model whose routers can do it"
ONCE = "use a model whose layers run once, one after the other"


def _check(routers: Sequence[Router], record: RoutingRecord) -> None:
    if silent := len(routers) - len(set(record.layers)):
        raise RoutingError(
            f"{silent} of {len(routers)} routers were not called in a forward, so their choices are unknown",
            "load the model without fused expert kernels (use_kernels=False, or a dequantised checkpoint)",
        )
    if record.layers != list(range(len(routers))):
        called = ", ".join(routers[layer].name for layer in record.layers)
        raise RoutingError(f"routers were not called once each in the order of their layers, but as {called}", ONCE)
