"""A second device that is none: tensors that say they lie on it, while the CPU computes them.

An operation of tensors on both raises, as it does on GPUs, so that a model whose layers lie on both shows
every place that forgets to move something. Scalars may meet any device, and an index may lie on the CPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

CPU, SECOND = torch.device("cpu"), torch.device("maia:1")  # a device that torch can name without a library of it
READ = {"tolist", "item", "__bool__", "__int__", "__float__", "__index__", "numel", "dim", "size", "stride"}
MIXING = {"copy_", "__setitem__"}  # what is written may come from anywhere


class Elsewhere(Tensor):
    """A tensor on SECOND."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return SECOND

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        return False

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert a tensor on another device to numpy; use .cpu() first")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class Placing(TorchFunctionMode):
    """Tensors can be made on SECOND, and moved there and back."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation, on the device of its tensors or the one that is asked for."""
    name = getattr(func, "__name__", "")
    given = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
    there = _checked(name, args, given)
    devices = [
        d
        for d in (*args[1:], kwargs.get("device"))
        if isinstance(d, torch.device) or (name == "to" and isinstance(d, str))
    ]
    if devices or name == "cpu":
        there = bool(devices) and torch.device(devices[0]).type == SECOND.type
        args = tuple(CPU if any(part is d for d in devices) else part for part in args)
        kwargs = {key: CPU if key == "device" else value for key, value in kwargs.items()}
    with torch._C.DisableTorchFunctionSubclass():
        given_args = tree_map(plain, args)
        if name == "histc":  # counts whole numbers on GPUs only
            given_args = (given_args[0].float(), *given_args[1:])
        result = func(*given_args, **tree_map(plain, kwargs))
        result = result.to(args[0].dtype) if name == "histc" else result
    if name in READ:
        return result
    return tree_map(lambda part: on(part, there), result)


def _checked(name: str, args: Any, given: list[Tensor]) -> bool:
    """Whether an operation's tensors lie on SECOND; raises where some do not."""
    there = any(isinstance(t, Elsewhere) for t in given)
    if there and name in ("__getitem__", *MIXING):
        if name == "__getitem__" and not isinstance(args[0], Elsewhere):
            raise RuntimeError("a tensor on the CPU is indexed from another device")
        return isinstance(args[0], Elsewhere)
    strays = [t for t in given if there and not isinstance(t, Elsewhere) and t.dim()]
    if strays and name not in ("to", "type_as", "new_zeros"):
        shapes = ", ".join(str(tuple(t.shape)) for t in strays)
        raise RuntimeError(f"{name}: expected all tensors on one device, but found {shapes} on the CPU")
    return there


def plain(value: Any) -> Any:
    return value.as_subclass(Tensor) if isinstance(value, Elsewhere) else value


def on(value: Any, there: bool) -> Any:
    """A tensor on the device it should be on."""
    if not isinstance(value, Tensor) or isinstance(value, Elsewhere) == there:
        return value
    with torch._C.DisableTorchFunctionSubclass():
        return value.as_subclass(Elsewhere if there else Tensor)


def place(module: nn.Module, there: bool = True) -> None:
    """Puts a module on SECOND, or leaves it; what it is given is moved to it, as accelerate's hooks do."""
    if there:
        for part in module.modules():
            for name, parameter in part.named_parameters(recurse=False):
                part._parameters[name] = on(parameter.detach(), True)  # type: ignore[assignment]
            for name, buffer in part.named_buffers(recurse=False):
                part._buffers[name] = on(buffer, True)
    forward = module.forward

    def moved(*args: Any, **kwargs: Any) -> Any:
        return forward(*tree_map(lambda t: on(t, there), args), **tree_map(lambda t: on(t, there), kwargs))

    module.forward = moved
