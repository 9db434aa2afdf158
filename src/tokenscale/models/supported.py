"""Which cache form a transformers model takes, what it can do with its rows, and what is refused by name."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

from transformers import DynamicCache
from transformers.cache_utils import (
    DummyLayer,
    DynamicIndexedLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
)

from tokenscale.core.errors import ModelError
from tokenscale.core.model import CLEAN_CURRENT_KV, DROPOUT, EARLY_LAYERS, EXPERT_RANKS, ROUTING_NOISE
from tokenscale.models.expanded import NO_CLEAN_KEYS
from tokenscale.models.network import Network
from tokenscale.models.routers import no_noise, no_ranks

ATTENTION_KINDS = {"full_attention", "sliding_attention"}
PADDED = {
    DummyLayer,
    DynamicIndexedLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
}
CACHES_OF_THEIR_OWN = {"minimax"}  # not told by the layers of a configuration
OWN_ATTENTION = {
    "doge": "its attention makes masks of its own",
    "jetmoe": "its attention repeats keys after it has stored them",
}
MASKED = ("eager", "sdpa")  # implementations of attention that take a mask of ours


@dataclass(frozen=True)
class CacheForm:
    """How a model runs the rows of a token, and why.

    `windows` are those of its layers that attend to keys, None for all keys. `pads`: sequences of
    different lengths can share a batch.
    """

    name: Literal["shared", "query rows", "expanded"]
    reason: str
    windows: tuple[int | None, ...]
    pads: bool = True


def cache_form(config: Any, kind: type | None = None) -> CacheForm:
    """The form of the model of a configuration; no weights are needed.

    Query rows need layers that store plain keys and values and take a mask of ours, with one length of
    sliding window. All others are expanded, and so is a model whose class, `kind`, transformers does not define.
    """
    config = config.get_text_config(decoder=True)
    layers = DynamicCache(config=config).layers
    windows = tuple(getattr(layer, "sliding_window", None) for layer in layers if isinstance(layer, DynamicLayer))
    if kind is not None and not any(base.__module__.startswith("transformers.models.") for base in kind.__mro__):
        return CacheForm("expanded", f"transformers does not define {kind.__name__}", windows, pads=False)
    if why := _why_not_query_rows(config, layers, windows):
        return CacheForm("expanded", why, windows, _pads(config, layers))
    return CacheForm("query rows", "all its layers store plain keys and values", windows)


def shared_form(model: Any, form: CacheForm) -> CacheForm:
    """The form of a model in memory: shared, where query rows would do and its attention can be ours."""
    if form.name != "query rows":
        return form
    why = _why_not_shared(model, len(form.windows))
    if why:
        return replace(form, reason=f"{form.reason}; its prompts are not shared, since {why}")
    reason = "all its layers store plain keys and values, and attend by a function of ours"
    return CacheForm("shared", reason, form.windows)


def _why_not_shared(model: Any, layers: int) -> str:
    config = model.config.get_text_config(decoder=True)
    if config.model_type in OWN_ATTENTION:
        return OWN_ATTENTION[config.model_type]
    storing = [module for module in model.modules() if _stores(module)]
    if len(storing) != layers:
        return f"{len(storing)} of its modules store keys, in {layers} layers"
    foreign = next((m for m in storing if "ALL_ATTENTION_FUNCTIONS" not in _source(m)), None)
    if foreign is not None:
        return f"{type(foreign).__name__} computes attention by itself"
    latent = next((m for m in storing if "expand_kv" in _source(m)), None)
    if latent is not None:
        return f"{type(latent).__name__} stores latent keys, which it expands after it has read them"
    if any(getattr(module, "config", None) is not config for module in storing):
        return "its layers have configurations of their own"
    return ""


def _stores(module: Any) -> bool:
    return "update(" in (source := _source(module)) and "self.layer_idx" in source


def _source(module: Any) -> str:
    kind: Any = type(module)
    return _forward_source(kind)


@cache
def _forward_source(kind: Any) -> str:
    """The code of a class's forward; empty where it cannot be read."""
    try:
        return inspect.getsource(inspect.unwrap(kind.forward))
    except (OSError, TypeError, AttributeError):
        return ""


def bill_note(config: Any, form: CacheForm) -> str:
    """Why the bills of a model are estimates; empty where FLOPs and cache are those that torch counts."""
    if getattr(config, "kv_lora_rank", None):
        return "its latent keys are billed as if each were expanded once, and transformers expands all in every step"
    if config.model_type == "doge":
        return "its attention masks are billed once per key, and transformers makes all of them anew in every step"
    if form.name == "expanded":
        return f"{form.reason}, and is billed as if all its layers attended to keys and values"
    return ""


def _pads(config: Any, layers: Sequence[Any]) -> bool:
    """Whether its layers leave padding on the left out of their states. Tested for each of these classes."""
    known = all(type(layer) in PADDED for layer in layers)
    return known and not _counts_positions(config) and config.model_type not in CACHES_OF_THEIR_OWN


def _why_not_query_rows(config: Any, layers: Sequence[Any], windows: Sequence[int | None]) -> str:
    foreign = {type(layer).__name__ for layer in layers if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer)}
    if foreign:
        return f"it has layers whose state is not plain keys and values ({', '.join(sorted(foreign))})"
    kinds = set(getattr(config, "layer_types", None) or ()) - ATTENTION_KINDS
    if kinds:
        return f"it has layers of another kind than full and sliding attention ({', '.join(sorted(kinds))})"
    if len({w for w in windows if w is not None}) > 1:
        return "it has sliding windows of several lengths"
    attention = getattr(config, "_attn_implementation", None)
    if attention is not None and attention not in MASKED:
        return f"{attention} attention takes no mask of ours; sdpa and eager attention do"
    if _counts_positions(config):
        return "its attention counts a token's position from the cache"
    return ""


def _counts_positions(config: Any) -> bool:
    """Whether queries are scaled by a position that is not the one we give (Llama 4)."""
    return bool(getattr(config, "attn_temperature_tuning", False))


def missing(network: Network, form: CacheForm) -> dict[str, str]:
    """Why each capability is not to be had, as the end of a sentence; empty where it is."""
    return {
        ROUTING_NOISE: no_noise(network.routers),
        EXPERT_RANKS: no_ranks(network.routers),
        DROPOUT: network.blocks.no_dropout,
        EARLY_LAYERS: network.blocks.no_early_layers,
        CLEAN_CURRENT_KV: NO_CLEAN_KEYS if form.name == "expanded" else "",
    }


def context_length(config: Any) -> int:
    """The most tokens that a text may have.

    LongRoPE rotates all tokens in another way once a text is longer than the model was first trained on, so
    that its cache is lost and a short text's rotations depend on its batch: it is used up to that length.
    """
    most = getattr(config, "max_position_embeddings", None) or 2**31
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(kind for kind in rope.values() if isinstance(kind, dict))]
    originals = [k["original_max_position_embeddings"] for k in kinds if k.get("rope_type") == "longrope"]
    return int(min([most, *originals]))


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
