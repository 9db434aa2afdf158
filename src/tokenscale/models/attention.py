"""The attention of transformers' models over shared segments and tails: what a forward of ours runs in its place.

Registered with transformers as "tokenscale". Each forward names its layout, which says what keys there
are besides those that the model has just made.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tokenscale.core.errors import ModelError

NAME = "tokenscale"


@dataclass(frozen=True)
class Projected:
    """What one attention layer was called with."""

    queries: Float[Tensor, "batch heads queries dim"]
    keys: Float[Tensor, "batch kv_heads queries dim"]
    values: Float[Tensor, "batch kv_heads queries value_dim"]
    scale: float
    softcap: float
    sinks: Float[Tensor, " heads"] | None


class Layout(ABC):
    """Which keys the queries of a forward see; `cache` is what its model writes to."""

    cache: Any

    @abstractmethod
    def attend(self, given: Projected) -> Float[Tensor, "batch queries heads value_dim"]:
        """The attention of the layer that the forward has reached."""


_layout: ContextVar[Layout] = ContextVar("layout")


@contextmanager
def laid_out(layout: Layout, config: Any) -> Iterator[None]:
    """A model's attention follows `layout` for one forward; its configuration is as it was after any exit."""
    before = config._attn_implementation
    token = _layout.set(layout)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
        _layout.reset(token)


def attention_forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any = None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What a model calls. Masks of the model's own are refused: the layout says what is seen."""
    if attention_mask is not None:
        message = f"{type(module).__name__} attends with a mask of its own"
        raise ModelError(message, "load the model with shared_prompts=False")
    layout = _layout.get()
    if layout.cache.made is not key:
        message = f"{type(module).__name__} attends to other keys than it stores"
        raise ModelError(message, "load the model with shared_prompts=False")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return layout.attend(Projected(query, key, value, scale, softcap or 0.0, s_aux)), None


ALL_ATTENTION_FUNCTIONS.register(NAME, attention_forward)
