"""Blocks whose kernels choose experts themselves, so that a router of ours would be bypassed in silence."""

from __future__ import annotations

from typing import Any

from torch import nn

from tokenscale.core.errors import ModelError

SELF_ROUTING = {"Mxfp4GptOssMLP"}
"""Classes of transformers that make the routes inside a kernel and can take them from their router instead."""


def fused_block(block: nn.Module) -> nn.Module | None:
    """The block, where its forward must be replaced for its router to be called."""
    return block if type(block).__name__ in SELF_ROUTING else None


def refuse_foreign(name: str, block: Any) -> None:
    """Refuses a block whose forward is that of another class, as kernels from the hub put it there."""
    forward = block.__dict__.get("forward", type(block).forward)
    while hasattr(forward, "__wrapped__"):
        forward = forward.__wrapped__
    home = getattr(getattr(forward, "__func__", forward), "__module__", None) or ""
    known = {kind.__module__ for kind in type(block).__mro__} | {"torch.nn.modules.module"}
    if home in known or home.startswith(("accelerate.", "transformers.", "functools")):
        return
    raise ModelError(
        f"the block around {name} ({type(block).__name__}) runs a fused kernel of {home}, which chooses experts itself",
        "load the model with use_kernels=False",
    )
