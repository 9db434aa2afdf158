"""What a transformers model must be like for the clean cache and the bill; all else is refused by name."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from transformers import DynamicCache

from tokenscale.core.errors import ModelError

ATTENTION_KINDS = {"full_attention", "sliding_attention"}


def layer_windows(config: Any, name: str) -> list[int | None]:
    """Each layer's sliding window, None for full attention; other layers are refused by name.

    Latent attention too: it stores a compressed key, of which neither cost nor size is known here.
    """
    layers = DynamicCache(config=config).layers
    foreign = {type(layer).__name__ for layer in layers} - {"DynamicLayer", "DynamicSlidingWindowLayer"}
    foreign |= set(getattr(config, "layer_types", None) or ()) - ATTENTION_KINDS
    foreign |= {"multi-head latent attention"} if getattr(config, "kv_lora_rank", None) else set()
    if foreign or not layers:
        raise ModelError(
            f"{name} has layers whose state is not plain keys and values ({', '.join(sorted(foreign)) or 'unknown'})",
            "use a model of full and sliding-window attention layers; the others are not supported yet",
        )
    windows = [getattr(layer, "sliding_window", None) for layer in layers]
    if len({w for w in windows if w is not None}) > 1:
        raise ModelError(f"{name} has sliding windows of several lengths", "use a model with one length of window")
    return windows


def refuse_hidden_experts(config: Any, routers: Sequence[Any], name: str) -> None:
    """A model with experts but without routers that we find would be billed wrongly in silence."""
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    experts = max(getattr(config, n, None) or 0 for n in names)
    if experts > 1 and not routers:
        raise ModelError(
            f"{name} has {experts} experts, but its routers are of no known class, so its cost is unknown",
            "use a model whose routers are transformers' *TopKRouter classes",
        )


def cache_keyword(model: Any) -> str:
    """`cache` in newer versions of transformers, `past_key_values` in older ones."""
    names = inspect.signature(model.forward).parameters
    if "position_ids" not in names:
        raise ModelError(f"{type(model).__name__} takes no position_ids", "use a model with explicit positions")
    return "cache" if "cache" in names else "past_key_values"
