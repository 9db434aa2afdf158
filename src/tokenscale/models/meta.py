"""A model without weights, on torch's meta device: built from its configuration, run for its sizes alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from tokenscale.core.errors import ModelError
from tokenscale.models.source import LOADABLE, PACKAGED, find
from tokenscale.models.supported import cache_keyword

LENGTHS = (128, 256)  # of the prompts whose caches are compared; longer than a block of compressed keys
COUNTED_AT = LENGTHS[0] + 1


@dataclass(frozen=True)
class CacheLayer:
    """What one layer keeps of a sequence: `fixed` bytes, and `growing` per key, of at most `window` keys.

    Exact but for keys that are compressed by the block (deepseek_v4), where it holds at the ends of blocks.
    """

    fixed: float
    growing: float
    window: int | None

    def bytes_at(self, context: int) -> float:
        keys = context if self.window is None else min(context, self.window)
        return self.fixed + self.growing * keys


@dataclass(frozen=True)
class Measured:
    """What a forward on the meta device did: its cache, layer by layer, and the FLOPs of a step.

    `step_flops` are those of matrix products that torch counted in one cached step, whose token sees
    COUNTED_AT keys with its own, in transformers' own code.
    """

    layers: tuple[CacheLayer, ...]
    step_flops: float

    def bytes_at(self, context: int) -> float:
        """Bytes of a sequence of so many tokens in which the last one's key is still seen with its window."""
        return sum(layer.bytes_at(context) for layer in self.layers)


def read_config(path: str | Path) -> Any:
    """The configuration of a packaged model, of a folder (config.json is enough), or of a hub id.

    Only a hub id reaches the network. Raises ModelError for what is not there or not understood.
    """
    folder = Path(path)
    if str(path) not in PACKAGED and folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"the folder {str(path)!r} holds no config.json, so no model", LOADABLE)
        source: str | Path = path
    else:
        source = find(path)
    try:
        return AutoConfig.from_pretrained(source)
    except Exception as error:  # a configuration checks itself with errors of many kinds
        raise ModelError(f"the configuration of {str(path)!r} cannot be read: {error}", LOADABLE) from error


def build(config: Any, dtype: torch.dtype, name: str) -> Any:
    """The causal model of a configuration in evaluation mode, on the meta device: it takes no memory.

    Raises ModelError where transformers has no causal model for it, or cannot build it.
    """
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager")
    except Exception as error:
        raise ModelError(f"{name!r} is no causal language model that can be built: {error}", LOADABLE) from error
    return model.eval()


@torch.no_grad()
def measure(model: Any) -> Measured | str:
    """Sizes of caches and the FLOPs of a step, or why a model does not run without values.

    The model is one of `build`, whose experts are made to run as batched products: grouped ones have no
    meta form in float32.
    """
    try:
        model.set_experts_implementation("batched_mm")
        short, long = (_cache(model, length) for length in LENGTHS)
        layers = [_layer(*pair) for pair in zip(_sizes(short), _sizes(long), strict=True)]
        windows = [_window(layer) for layer in short.layers]
        if any(windows):
            pairs = zip(_sizes(_cache(model, 1)), _sizes(_cache(model, 2)), windows, layers, strict=True)
            layers = [_windowed(one, two, window) if window else layer for one, two, window, layer in pairs]
        with FlopCounterMode(display=False) as counter:
            _forward(model, 1, short)
    except Exception as error:  # each operation without a meta form raises its own kind
        return f"transformers' code needs values ({str(error).splitlines()[0]:.90})"
    return Measured(tuple(layers), float(counter.get_total_flops()))


def _forward(model: Any, length: int, cache: Any = None) -> Any:
    keyword = cache_keyword(model)
    given = {} if cache is None else {keyword: cache}
    output = model(input_ids=torch.zeros(1, length, dtype=torch.long, device="meta"), use_cache=True, **given)
    return getattr(output, keyword)


def _cache(model: Any, length: int) -> Any:
    return _forward(model, length)


def _window(layer: Any) -> int | None:
    """The window of a layer that keeps nothing but its keys and values."""
    plain = type(layer).__name__ == "DynamicSlidingWindowLayer"
    return layer.sliding_window if plain else None


def _layer(short: int, long: int) -> CacheLayer:
    growing = (long - short) / (LENGTHS[1] - LENGTHS[0])
    return CacheLayer(short - LENGTHS[0] * growing, growing, None)


def _windowed(one: int, two: int, window: int) -> CacheLayer:
    """`one` and `two`: bytes after so many tokens; a window of two keeps one key and sees the next beside it."""
    growing = one if window <= 2 else two - one
    return CacheLayer(one - growing, growing, window)


def _sizes(cache: Any) -> list[int]:
    """Bytes of every layer's tensors of numbers; counters and masks are left out."""
    return [sum(t.nbytes for t in {id(t): t for t in _tensors(vars(layer))}.values()) for layer in cache.layers]


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor) and value.is_floating_point():
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
