"""Norms and rotary positions of transformers' models by the kernels, where a trial shows that they are the same."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tokenscale.models.native.bindings import DTYPES, rms_norm, rotate

MOST_ROWS = 256  # beyond, the calls are few beside the work
ROTARY = "apply_rotary_pos_emb"


def norm_forward(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """The forward of a module that computes w x / sqrt(mean(x^2) + eps); None where it does something else."""
    weight = module._parameters.get("weight")
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if type(weight) is not nn.Parameter or not isinstance(eps, float) or weight.ndim != 1:
        return None
    if weight.device.type != "cpu" or weight.dtype not in DTYPES:
        return None
    original = type(module).forward

    def forward(x: Tensor) -> Tensor:
        weight = module._parameters["weight"]
        assert weight is not None
        same = x.dtype == weight.dtype and x.dtype in DTYPES and weight.is_contiguous()
        if not same or x.numel() > MOST_ROWS * weight.numel() or x.shape[-1] != weight.numel():
            return original(module, x)  # type: ignore[no-any-return]
        return rms_norm(x, weight, eps)

    return forward if _same_norm(module, forward, weight) else None


@torch.no_grad()
def _same_norm(module: nn.Module, forward: Callable[[Tensor], Tensor], weight: Tensor) -> bool:
    x = torch.linspace(-2.0, 3.0, 2 * weight.numel()).view(2, -1).to(weight.dtype)
    try:
        return torch.allclose(forward(x).float(), module(x).float(), atol=1e-6, rtol=1e-5)
    except (TypeError, ValueError, RuntimeError, AttributeError):
        return False


def rotary_of(attention: nn.Module) -> tuple[dict[str, Any], Callable[..., tuple[Tensor, Tensor]]] | None:
    """Where a model's code looks up its rotary function, and ours in its place; None where ours is another."""
    namespace = vars(sys.modules[type(attention).__module__])
    original = namespace.get(ROTARY)
    if original is None or list(inspect.signature(original).parameters)[:4] != ["q", "k", "cos", "sin"]:
        return None

    def applied(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if kwargs or len(args) != 4 or not _fits(args[0], args[2]) or not _fits(args[1], args[2]):
            return original(*args, **kwargs)  # type: ignore[no-any-return]
        q, k, cos, sin = args[0], args[1], args[2].contiguous(), args[3].contiguous()
        return rotate(q, cos, sin), rotate(k, cos, sin)

    return (namespace, applied) if _same_rotation(original, applied) else None


def _fits(x: Tensor, cos: Tensor) -> bool:
    if x.ndim != 4 or cos.ndim != 3 or x.dtype not in DTYPES or x.dtype != cos.dtype or x.device.type != "cpu":
        return False
    return (x.shape[0], x.shape[2], x.shape[3]) == cos.shape and x.shape[0] * x.shape[2] <= MOST_ROWS


@torch.no_grad()
def _same_rotation(original: Callable[..., Any], applied: Callable[..., Any]) -> bool:
    q, k = torch.linspace(-1, 1, 96).view(1, 2, 3, 16), torch.linspace(1, -2, 48).view(1, 1, 3, 16)
    cos, sin = torch.linspace(-1, 1, 48).view(1, 3, 16), torch.linspace(1, -1, 48).view(1, 3, 16)
    try:
        theirs = original(q, k, cos, sin)
        pairs = zip(applied(q, k, cos, sin), theirs, strict=True)
        return all(torch.allclose(ours, other, atol=1e-6) for ours, other in pairs)
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError):
        return False
