"""Whether a model's steps are compiled: on a GPU unless told otherwise, elsewhere when asked."""

from __future__ import annotations

from typing import Any

from tokenscale.core.errors import ModelError
from tokenscale.models.supported import CacheForm


def why_uncompiled(model: Any, form: CacheForm, asked: bool | None, sharded: bool = False) -> str:
    """Why the steps of a model are not compiled; empty where they are.

    `asked` None is a GPU's default, True insists. `sharded`: several processes hold its weights. What is only
    seen when a step is traced is told then. Raises ModelError where compiling is insisted on and cannot be.
    """
    if asked is False:
        return "compile=False"
    why = obstacle(model, form, sharded)
    if why and asked:
        name = type(model).__name__
        raise ModelError(f"the steps of {name} cannot be compiled: {why}", "leave compile=True out")
    if not why and asked is None and model.device.type != "cuda":
        return f"off by default on {model.device.type}; compile=True asks for it"
    return why


def obstacle(model: Any, form: CacheForm, sharded: bool = False) -> str:
    """What stands against compiling a model's steps, as far as is known before one is traced; empty for nothing."""
    if form.name == "expanded":
        return f"{form.reason}, so its rows run on copies of a cache that grows"
    if sharded:
        return "several processes hold its weights"
    several = len({parameter.device for parameter in model.parameters()}) > 1
    if several or any(hasattr(module, "_hf_hook") for module in model.modules()):
        return "device_map has laid it out over several devices"
    return ""
