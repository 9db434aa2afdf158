"""The command `inspect`: what a model is, and what RoE costs on it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tokenscale.experiments.tables import amount

if TYPE_CHECKING:
    from tokenscale.models.inspection import Inspection, RowCost

HEADERS = ("n", "FLOPs/token", "x n=1", "experts/layer", "bytes/token", "KV bytes")
LEGEND = (
    "experts/layer: distinct experts that a MoE layer loads for a token if its n rows chose independently and",
    "uniformly, E (1 - (1 - k/E)^n), exact for such rows. Rows of one token choose much alike, so real routing",
    "overlaps more and loads fewer. bytes/token: weights outside experts, those experts, and the sequence's",
    "cache, each read once. KV bytes: held with the clean cache; cache='private' holds n caches.",
)


def inspect(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A packaged model, a folder with config.json or a hub id.", show_default=False
        ),
    ],
    context: Annotated[int, typer.Option("--context", help="Keys that a token sees, its own included.")] = 1024,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Show a model's layers, routers and sizes, and what RoE costs on it; no weights are loaded."""
    from transformers.utils.logging import disable_progress_bar

    from tokenscale.models.inspection import inspect_model

    disable_progress_bar()
    found = inspect_model(model, context)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=1, allow_nan=False))
        return
    console = Console(highlight=False)
    console.print(_facts(found))
    if found.costs:
        console.print(_table(found))
        for line in LEGEND:
            console.print(escape(line), soft_wrap=True)
    for note in found.notes:
        console.print(f"note: {escape(note)}", soft_wrap=True)


def _facts(found: Inspection) -> Table:
    grid = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in _lines(found):
        grid.add_row(name, escape(value))
    return grid


def _lines(found: Inspection) -> Iterator[tuple[str, str]]:
    yield "model", f"{found.model} ({found.architecture}, {found.dtype}), read from its configuration"
    yield (
        "layers",
        f"{found.layers}, of which MoE: {found.moe_layers}"
        if found.moe_layers <= found.layers
        else (f"{found.layers}, with {found.moe_layers} choices of experts"),
    )
    if found.moe_layers:
        for family, layers in found.families.items():
            yield "router", f"{family} ({layers} layers)"
        yield "experts", _experts(found)
    yield "parameters", _parameters(found)
    if found.flops_per_token is not None:
        yield "FLOPs per token", f"{_amount(found.flops_per_token)} at {found.context} keys"
    if found.kv_bytes is not None:
        per_token, whole = _amount(found.kv_bytes_per_token), _amount(found.kv_bytes)
        yield "KV bytes", f"{per_token} per token, {whole} for a sequence of {found.context}"
    yield "windows", ", ".join(f"{layers} layers of {keys} keys" for keys, layers in found.windows.items()) or "none"
    yield "cache form", f"{found.cache_form}: {found.cache_form_reason}"
    yield "compiled steps", f"no: {found.uncompiled}" if found.uncompiled else "on a GPU, or with compile=True"
    yield "RoE", "offered" if not found.roe else f"not offered: {found.roe}"


def _experts(found: Inspection) -> str:
    free = f", {found.free_experts} of them without cost" if found.free_experts else ""
    shared = f", and {found.shared_experts} shared" if found.shared_experts else ""
    return f"{found.experts} a layer{free}; a token runs {found.top_k}{shared}"


def _parameters(found: Inspection) -> str:
    active = "unknown" if found.active_parameters is None else _amount(found.active_parameters)
    return f"{_amount(found.parameters)}, active per token: {active}"


def _table(found: Inspection) -> Table:
    grid = Table(
        title=f"A token under RoE(n) at {found.context} keys", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for header in HEADERS:
        grid.add_column(header, justify="right", no_wrap=True)
    for line in found.costs:
        grid.add_row(*_cells(line))
    return grid


def _cells(line: RowCost) -> tuple[str, ...]:
    return (
        str(line.n),
        _amount(line.flops),
        f"{line.multiple:.2f}",
        f"{line.distinct_experts:.1f}",
        _amount(line.bytes),
        _amount(line.kv_bytes),
    )


def _amount(value: float | None) -> str:
    return "-" if value is None else amount(value)
