"""What a model is and what RoE costs on it, from its configuration alone.

The model is built on torch's meta device, so no weights are read, and its routers are tried there
as `find_routers` tries them. FLOPs are the bill's (`ModelShape`), and beside them stands what torch
counts in a step of transformers' own code; the sizes of caches are read off caches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tokenscale.core.errors import ModelError, at_least
from tokenscale.core.shape import ModelShape
from tokenscale.models.blocks import find_blocks
from tokenscale.models.compiled_choice import obstacle
from tokenscale.models.experts import active_parameters, shared_experts
from tokenscale.models.meta import COUNTED_AT, Measured, build, measure, read_config
from tokenscale.models.routers import Router, find_routers, no_noise
from tokenscale.models.shape import model_shape
from tokenscale.models.source import PACKAGED
from tokenscale.models.supported import CacheForm, cache_form, refuse_hidden_experts, shared_form

ROWS = (1, 2, 4, 8, 16, 32, 64)
CLOSE = 0.01  # counted FLOPs that differ by less from the bill are not worth a note


@dataclass(frozen=True)
class RowCost:
    """What a token of `n` rows costs at the stated context.

    `multiple` is flops over those of n = 1. `distinct_experts` is per MoE layer, under uniform routing.
    `bytes` are read for the token: weights outside experts once, the distinct experts of all MoE layers
    and a sequence's keys and values once. `kv_bytes` are held while it is computed, with the clean cache. Both
    are None where caches were not measured.
    """

    n: int
    flops: float
    multiple: float
    distinct_experts: float
    bytes: float | None
    kv_bytes: float | None


@dataclass(frozen=True)
class Inspection:
    """A model in figures; `None` is what cannot be known from its configuration.

    families: how experts are chosen, and in how many MoE layers so. experts: those that compete in a
        layer, of which `free_experts` cost nothing. A layer's top_k run.
    parameters, active_parameters: all, and those that one token can use: all but the experts not chosen.
    flops_per_token: of one row that sees `context` keys (its own included), as bills count them.
    flops_counted: what torch counts in transformers' own step at `counted_at` keys, flops_billed the bill there.
    kv_bytes_per_token: how much the cache grows by a token while no window is full. kv_bytes: of one
        sequence of `context` tokens, states that do not grow included.
    windows: how many layers of attention have a sliding window of so many keys ("all" for none).
    uncompiled: why its decode steps cannot be compiled; empty where nothing is known against it.
    roe: empty where routing noise is offered, else why not.
    """

    model: str
    architecture: str
    dtype: str
    context: int
    layers: int
    moe_layers: int
    families: dict[str, int]
    experts: int
    free_experts: int
    top_k: int
    shared_experts: int
    parameters: int
    active_parameters: int | None
    flops_per_token: float | None
    counted_at: int
    flops_counted: float | None
    flops_billed: float | None
    kv_bytes_per_token: float | None
    kv_bytes: float | None
    windows: dict[str, int]
    cache_form: str
    cache_form_reason: str
    uncompiled: str
    roe: str
    costs: tuple[RowCost, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def uniform_experts(experts: int, top_k: int, n: int) -> float:
    """Expected distinct experts of n rows that choose independently and uniformly: E (1 - (1 - k/E)^n).

    Exact for such rows, since a row leaves an expert out with probability 1 - k/E, whatever its others are.
    Rows of one token choose alike, so a real model loads fewer.
    """
    return experts * (1 - (1 - top_k / experts) ** n) if experts else 0.0


def inspect_model(path: str | Path, context: int = 1024) -> Inspection:
    """The figures of a packaged model, a folder with config.json, or a hub id.

    Only a hub id reaches the network. Costs some seconds and no memory for weights. Raises ModelError
    for what is no causal model, and ArgumentError for a context below 1.
    """
    at_least("inspect", "context", context, 1)
    config = read_config(path)
    dtype = torch.float32 if str(path) in PACKAGED else _dtype(config)
    return inspect_built(build(config, dtype, str(path)), str(path), context)


def inspect_built(model: Any, name: str, context: int = 1024) -> Inspection:
    """The figures of a model on the meta device."""
    config = model.config.get_text_config(decoder=True)
    form = shared_form(model, cache_form(config, type(model)))
    routers, unknown = _routers(model)
    shape = None if unknown else model_shape(model, routers, form.windows)
    measured = measure(model)
    cache = measured if isinstance(measured, Measured) else None
    billed = None if shape is None else shape.decode_flops([1], COUNTED_AT)
    return Inspection(
        model=name,
        architecture=type(model).__name__,
        dtype=str(model.dtype).removeprefix("torch."),
        context=context,
        layers=len(find_blocks(model).layers) or config.num_hidden_layers,
        moe_layers=len(routers),
        families=dict(Counter(router.family for router in routers)),
        experts=max((router.experts for router in routers), default=0),
        free_experts=max((router.free for router in routers), default=0),
        top_k=max((router.top_k for router in routers), default=0),
        shared_experts=shared_experts(model, routers),
        parameters=sum(p.numel() for p in model.parameters()),
        active_parameters=None if unknown else active_parameters(model, routers),
        flops_per_token=None if shape is None else shape.decode_flops([1], context),
        counted_at=COUNTED_AT,
        flops_counted=None if cache is None else cache.step_flops,
        flops_billed=billed,
        kv_bytes_per_token=None if cache is None else sum(layer.growing for layer in cache.layers),
        kv_bytes=None if cache is None else cache.bytes_at(context),
        windows=_windows(form.windows),
        cache_form=form.name,
        cache_form_reason=form.reason,
        uncompiled=obstacle(model, form),
        roe=unknown or no_noise(routers),
        costs=_costs(shape, routers, cache, form, context) if shape and routers else (),
        notes=tuple(_notes(model.config, measured, billed)),
    )


def _dtype(config: Any) -> torch.dtype:
    """The type of a checkpoint's numbers, as its configuration says; float32 where it does not."""
    found = getattr(config, "dtype", None) or getattr(config.get_text_config(decoder=True), "dtype", None)
    return found if isinstance(found, torch.dtype) else torch.float32


def _routers(model: Any) -> tuple[list[Router], str]:
    """The routers, or why they are not known."""
    try:
        routers = find_routers(model)
        refuse_hidden_experts(model.config.get_text_config(decoder=True), routers, type(model).__name__)
    except ModelError as error:
        return [], error.message
    return routers, ""


def _windows(windows: Sequence[int | None]) -> dict[str, int]:
    return dict(Counter("all" if window is None else str(window) for window in windows))


def _costs(
    shape: ModelShape, routers: Sequence[Router], cache: Measured | None, form: CacheForm, context: int
) -> tuple[RowCost, ...]:
    """One line for every n of ROWS."""
    alone = shape.decode_flops([1], context)
    lines = []
    for n in ROWS:
        loads = sum(_paid(router, n) for router in routers)
        flops = shape.decode_flops([n], context)
        weights = shape.dense_bytes + shape.head_bytes + loads * shape.expert_bytes
        read = None if cache is None else weights + cache.bytes_at(context)
        held = None if cache is None else _held(cache, form, context, n)
        lines.append(RowCost(n, flops, flops / alone, loads / len(routers), read, held))
    return tuple(lines)


def _held(cache: Measured, form: CacheForm, context: int, n: int) -> float:
    """Query rows hold one cache and a key of each other row; expanded rows a copy each."""
    if form.name == "expanded":
        return n * cache.bytes_at(context)
    return cache.bytes_at(context) + (n - 1) * sum(layer.growing for layer in cache.layers)


def _paid(router: Router, n: int) -> float:
    """Expected distinct experts of one layer that must be read; all experts are as likely, free ones too."""
    return uniform_experts(router.experts, router.top_k, n) * (1 - router.free / router.experts)


def _notes(config: Any, measured: Measured | str, billed: float | None) -> list[str]:
    notes = []
    quantised = getattr(config, "quantization_config", None)
    if quantised:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else type(quantised).__name__
        notes.append(
            f"The checkpoint is quantised ({method}). Bytes here are those of the dequantised model; whether its "
            "kernels leave the routers to RoE is known when it is loaded."
        )
    if isinstance(measured, str):
        notes.append(f"Sizes of caches were not measured without weights: {measured}.")
    elif billed is not None and abs(measured.step_flops / billed - 1) > CLOSE:
        notes.append(
            f"Bills are not exact for this model: in a step that sees {COUNTED_AT} keys torch counts "
            f"{measured.step_flops:.4g} FLOPs in transformers' own code, and the bill says {billed:.4g}."
        )
    return notes
