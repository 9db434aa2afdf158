"""Which modules of a model the kernels run, and the forward in which they do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenscale.core.errors import ModelError
from tokenscale.models.native.bindings import DTYPES, linear, why_missing
from tokenscale.models.native.experts import MOST_PER_EXPERT, experts_forward, why_not
from tokenscale.models.native.small import ROTARY, norm_forward, rotary_of
from tokenscale.models.routing.router import Router

# Rows of a linear layer, up to which the kernel is the faster one (benchmarks/kernels.py).
MOST_ROWS = {torch.float32: 16, torch.bfloat16: 8}


@dataclass(frozen=True)
class Replacement:
    """A name of a module, or of the code of a model, that means another function while the kernels run."""

    names: dict[str, Any]
    name: str
    function: Callable[..., Any]
    original: Any = None

    def put(self) -> None:
        self.names[self.name] = self.function

    def undo(self) -> None:
        if self.original is None:
            self.names.pop(self.name, None)
        else:
            self.names[self.name] = self.original


class Kernels:
    """The functions of one model that the kernels replace while the model runs for us.

    `left` are modules to leave alone: routers, whose operations are watched. `experts` and `linear` are how many
    modules there are of these. The model itself is left as it is: all is given back after a forward.
    """

    def __init__(self, model: nn.Module, left: Iterable[nn.Module] = (), own_experts: bool = False) -> None:
        kept = {id(inner) for module in left for inner in module.modules()}
        self._replaced: list[Replacement] = []
        self.experts = self.linear = 0
        self.dtype = next(model.parameters()).dtype
        self.refused = ""
        for module in model.modules():
            if "forward" in vars(module) or id(module) in kept:  # replaced already, by a device map's hook for example
                continue
            name = type(module).__name__
            if name.endswith("Experts"):
                if not own_experts:
                    self._add_experts(module)
            elif type(module) is nn.Linear and _fits(module):
                self._add(module, _linear_forward(module))
                self.linear += 1
            elif name.endswith("RMSNorm") and (forward := norm_forward(module)):
                self._add(module, forward)
            elif name.endswith("Attention"):
                self._add_rotary(module)

    def _add(self, module: nn.Module, forward: Callable[..., Tensor]) -> None:
        self._replaced.append(Replacement(vars(module), "forward", forward))

    def _add_experts(self, module: nn.Module) -> None:
        if why := why_not(module):
            self.refused = why
            return
        self._add(module, partial(experts_forward, module))
        self.experts += 1

    def _add_rotary(self, module: nn.Module) -> None:
        found = rotary_of(module)
        if found is not None and not any(one.names is found[0] for one in self._replaced):
            names, function = found
            self._replaced.append(Replacement(names, ROTARY, function, names[ROTARY]))

    @property
    def told(self) -> str:
        """What they run, in words."""
        experts = f"{self.experts} layers of experts up to {MOST_PER_EXPERT[self.dtype]} rows an expert"
        linear = f"{self.linear} linear layers up to {MOST_ROWS[self.dtype]} rows"
        refused = f" (not for experts: {self.refused})" if self.refused else ""
        what = f"{experts} and {linear}" if self.experts else linear
        return f"kernels for {what}, and for attention{refused}"

    @contextmanager
    def installed(self) -> Iterator[None]:
        """The model runs by the kernels inside."""
        for replacement in self._replaced:
            replacement.put()
        try:
            yield
        finally:
            for replacement in self._replaced:
                replacement.undo()


def find_kernels(model: nn.Module, left: Iterable[nn.Module] = (), own_experts: bool = False) -> Kernels | str:
    """The kernels of a model, or why there are none, as the end of a sentence."""
    weight = next(model.parameters(), None)
    if weight is None or weight.device.type != "cpu":
        return "they are for models on a CPU"
    if weight.dtype not in DTYPES:
        return f"they compute in float32 and bfloat16, and the model in {weight.dtype}"
    return why_missing() or Kernels(model, left, own_experts)


def chosen_kernels(
    model: nn.Module, routers: Sequence[Router], asked: bool | None, sharded: bool, own_experts: bool
) -> Kernels | str:
    """`find_kernels` as the user asked: False for none, True insists, None takes what there is. Raises ModelError.

    `sharded`: several processes hold the weights. `own_experts`: the user chose how experts run.
    """
    if asked is False:
        return "kernels=False"
    left = [router.module for router in routers]
    found = "several processes hold its weights" if sharded else find_kernels(model, left, own_experts)
    if asked and isinstance(found, str):
        raise ModelError(f"{type(model).__name__} cannot run by our kernels: {found}", "leave kernels=True out")
    return found


def _fits(module: nn.Linear) -> bool:
    weight = module.weight
    plain = type(weight) is nn.Parameter  # a quantised or sharded weight only looks like one
    return plain and weight.device.type == "cpu" and weight.dtype in DTYPES and weight.is_contiguous()


def _linear_forward(module: nn.Linear) -> Callable[[Tensor], Tensor]:
    parameters, inputs = module._parameters, module.in_features

    def forward(x: Tensor) -> Tensor:
        weight, bias = parameters["weight"], parameters["bias"]
        assert weight is not None
        # Weights may have been replaced since the model was loaded.
        same = x.dtype == weight.dtype and weight.is_contiguous()
        if same and x.numel() <= MOST_ROWS.get(x.dtype, 0) * inputs:
            return linear(x, weight, bias)
        return F.linear(x, weight, bias)

    return forward
