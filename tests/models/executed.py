"""What a forward of a model of the zoo executed: each layer's router logits, and the gate weights its experts used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from tests.models.router_oracle import Array, Oracle, numbers
from tokenscale.models.routers import Router


@dataclass
class Layer:
    """One MoE layer: its modules, and the inputs and gates of its calls (of doge: the outputs)."""

    router: Router
    module: Any
    block: Any
    inputs: list[tuple[Any, ...]] = field(default_factory=list)
    gates: list[Array] = field(default_factory=list)

    @torch.no_grad()
    def logits(self, call: int = 0) -> tuple[Array, Array | None]:
        """The router logits R of the tokens it got, by the model's own code, and those of shared experts."""
        kind, inputs = type(self.module).__name__, self.inputs[call]
        if kind == "DogeCDMoE":
            both = numbers(self.module.router_gate(inputs[0])).reshape(-1, 2, self.module.num_keys)
            return (both[:, 0, :, None] + both[:, 1, None, :]).reshape(len(both), -1), None
        output = self.module(*inputs)
        if kind == "InklingTopkRouter":
            full = numbers(inputs[0].reshape(-1, inputs[0].shape[-1]) @ self.module.weight.T)
            return full[:, : self.router.experts], full[:, self.router.experts :]
        if kind == "Gemma4TextRouter":
            return np.log(numbers(output[0])), None
        place = {"DbrxRouter": None, "Llama4Router": 1, "JetMoeTopKGating": 4}.get(kind, 0)
        return numbers(output if place is None else output[place]), None

    def oracle(self, name: str, config: Any) -> Oracle:
        return Oracle.of(name, config, self.module, self.block, self.router.top_k)


def layers(model: Any, routers: list[Router]) -> list[Layer]:
    """The layers of a model, calls of a loop sharing one."""
    modules, found = dict(model.named_modules()), dict[int, Layer]()
    for router in routers:
        name = router.name.partition(" ")[0]
        block = router.module if router.method != "forward" else modules[name.rpartition(".")[0]]
        module = block.router if router.method != "forward" else router.module
        found.setdefault(id(router.module), Layer(router, module, block))
    return list(found.values())


@contextmanager
def executed(found: list[Layer]) -> Iterator[None]:
    """Notes, at the modules themselves, what routers take in and what experts are given."""
    handles = []
    for layer in found:
        layer.inputs, layer.gates = [], []

        def taken(module: Any, args: Any, kwargs: Any, layer: Layer = layer) -> None:
            values = (*args, *kwargs.values())  # keywords are given in the order of the parameters
            layer.inputs.append(tuple(a.detach().clone() if isinstance(a, torch.Tensor) else a for a in values))

        handles.append(layer.module.register_forward_pre_hook(taken, with_kwargs=True))
        kind = type(layer.module).__name__
        if kind in READERS:
            reader = READERS[kind]

            def gave(module: Any, args: Any, out: Any, layer: Layer = layer, reader: Any = reader) -> None:
                layer.gates.append(reader(out))

            handles.append(layer.module.register_forward_hook(gave))
        else:

            def given(module: Any, args: Any, kwargs: Any, layer: Layer = layer) -> None:
                values = [*args, *kwargs.values()]
                layer.gates.append(_dense(values[1], values[2], layer.router.experts))

            handles.append(layer.block.experts.register_forward_pre_hook(given, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _dense(indices: torch.Tensor, weights: torch.Tensor, experts: int) -> Array:
    dense = torch.zeros(len(indices), experts, dtype=torch.double)
    return dense.scatter_add_(-1, indices, weights.double()).numpy()


def _scattered(output: Any) -> Array:
    return numbers(output[0])


def _sorted(output: Any) -> Array:
    """JetMoE gives gates in the order of experts, with each one's token."""
    _, tokens, gates, sizes, logits = output
    dense = torch.zeros(len(logits), len(sizes), dtype=torch.double)
    experts = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return dense.index_put_((tokens, experts), gates.double(), accumulate=True).numpy()


READERS = {"Llama4Router": _scattered, "JetMoeTopKGating": _sorted, "DogeCDMoE": _scattered}


def doge_block(block: Any, hidden: torch.Tensor, gates: Array) -> Array:
    """The output of a block of product keys with given gates: the shared MLP, and experts of one unit each."""
    h = numbers(hidden).reshape(-1, hidden.shape[-1])
    down, up = numbers(block.down_embed.weight), numbers(block.up_embed.weight)
    units = h @ down[: gates.shape[1]].T
    routed = (gates * units / (1 + np.exp(-units))) @ up[: gates.shape[1]]
    gate = h @ numbers(block.gate_proj.weight).T
    shared = (gate / (1 + np.exp(-gate)) * (h @ numbers(block.up_proj.weight).T)) @ numbers(block.down_proj.weight).T
    return routed + shared
