"""Which modules of a model the kernels run, and the forward in which they do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from tokenscale.core.errors import ModelError
from tokenscale.models.native.experts import MOST_PER_EXPERT, experts_forward, why_not
from tokenscale.models.native.library import DTYPES, linear, why_missing
from tokenscale.models.routing.router import Router

MOST_ROWS = 16  # of a linear layer, up to which reading its matrix is most of the work


class Kernels:
    """The modules of one model whose forward the kernels replace while the model runs for us.

    `left` are modules to leave alone: routers, whose operations are watched. `experts` and `linear` are how many
    there are. The model itself is left as it is: a forward is replaced on the
    instance, and given back.
    """

    def __init__(self, model: nn.Module, left: Iterable[nn.Module] = (), own_experts: bool = False) -> None:
        kept = {id(inner) for module in left for inner in module.modules()}
        self._forwards: list[tuple[dict[str, Any], Callable[..., Tensor]]] = []
        self.experts = self.linear = 0
        self.refused = ""
        for module in model.modules():
            if "forward" in vars(module) or id(module) in kept:  # replaced already, by a device map's hook for example
                continue
            if type(module).__name__.endswith("Experts"):
                if not own_experts:
                    self._add_experts(module)
            elif type(module) is nn.Linear and _fits(module):
                self._forwards.append((vars(module), _linear_forward(module)))
                self.linear += 1

    def _add_experts(self, module: nn.Module) -> None:
        if why := why_not(module):
            self.refused = why
            return
        self._forwards.append((vars(module), partial(experts_forward, module)))
        self.experts += 1

    @property
    def told(self) -> str:
        """What they run, in words."""
        experts = f"{self.experts} layers of experts up to {MOST_PER_EXPERT} rows an expert" if self.experts else ""
        linear = f"{self.linear} linear layers up to {MOST_ROWS} rows"
        return f"kernels for {' and '.join(filter(None, [experts, linear]))}, and for attention"

    @contextmanager
    def installed(self) -> Iterator[None]:
        """The model runs by the kernels inside."""
        for attributes, forward in self._forwards:
            attributes["forward"] = forward
        try:
            yield
        finally:
            for attributes, _ in self._forwards:
                attributes.pop("forward", None)


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
        if x.numel() > MOST_ROWS * inputs or x.dtype != weight.dtype:
            return F.linear(x, weight, bias)
        return linear(x, weight, bias)

    return forward
