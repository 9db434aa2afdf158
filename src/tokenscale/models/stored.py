"""What a model's tensors hold: a quantised one is several plain tensors, an offloaded one lies elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def parts(tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The plain tensors that hold a tensor's numbers, each with its name in it; of a plain one itself, under "".

    Tensors of torchao and quanto look like the weights they stand for, and hold codes, scales and zero
    points. Those of bitsandbytes are codes, with their scales beside them. Sharded tensors count as plain.
    """
    if isinstance(tensor, DTensor) or not hasattr(tensor, "__tensor_flatten__"):
        yield "", tensor.data if isinstance(tensor, nn.Parameter) and type(tensor) is not nn.Parameter else tensor
        yield from _scales(tensor)
        return
    names, _ = tensor.__tensor_flatten__()
    for name in names:
        inner = getattr(tensor, name)
        if isinstance(inner, Tensor):
            yield from ((f"{name}.{behind}", part) for behind, part in parts(inner))


def _scales(tensor: Any) -> Iterator[tuple[str, Tensor]]:
    """Of a weight of bitsandbytes: block scales of 4 bits, which can be quantised themselves, or row scales of 8."""
    states = [("quant_state", getattr(tensor, "quant_state", None))]
    states.append(("state2", getattr(states[0][1], "state2", None)))
    for place, state in states:
        for name in ("absmax", "code"):
            if isinstance(part := getattr(state, name, None), Tensor):
                yield f"{place}.{name}", part
    if isinstance(rows := getattr(tensor, "SCB", None), Tensor):
        yield "SCB", rows


def held(module: nn.Module) -> list[Tensor]:
    """Parameters, buffers, and what layers of bitsandbytes keep in an object of their own once they have run."""
    found = [*module.parameters(), *module.buffers()]
    rows = [getattr(getattr(layer, "state", None), "SCB", None) for layer in module.modules()]
    return found + [part for part in rows if isinstance(part, Tensor)]


def stored_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of all that holds them; of sharded ones on all ranks together."""
    return sum(part.nbytes for tensor in tensors for _, part in parts(tensor))


def runs_on(module: nn.Module) -> torch.device:
    """Where a module computes: where its first weight lies, or where accelerate brings one that is offloaded."""
    for part in module.modules():
        for weight in part.parameters(recurse=False):
            brought = getattr(getattr(part, "_hf_hook", None), "execution_device", None) if weight.is_meta else None
            return weight.device if brought is None else torch.device(brought)
    return torch.device("cpu")


def offloaded(model: nn.Module, name: str) -> Tensor | None:
    """The numbers of a weight that accelerate keeps off its device until its module runs; None where it has none."""
    path, _, own = name.rpartition(".")
    hook: Any = getattr(model.get_submodule(path), "_hf_hook", None)
    for inner in (hook, *getattr(hook, "hooks", ())):
        weights = getattr(inner, "weights_map", None)
        if weights is not None and own in weights:
            found = weights[own]
            return found if isinstance(found, Tensor) else torch.as_tensor(found)
    return None
