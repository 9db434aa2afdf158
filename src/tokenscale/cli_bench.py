"""The command `bench`: how fast a model runs here, beside transformers and beside the machine's limits."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from tokenscale.core.errors import ArgumentError, unknown

if TYPE_CHECKING:
    from tokenscale.experiments.tables import Table

LEGEND = (
    "ratio: the median over rounds, arms taking turns; how many times faster, or where a most is wanted, what we",
    "take in units of the other. of the limit: the time in which this machine could read the bytes that must be",
    "read, over ours. Wanted figures are those of docs/benchmarks.md, for a model larger than the caches.",
    "The machine should be otherwise idle.",
)


def bench(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A packaged or random model, a folder or a hub id.", show_default=False),
    ],
    parts: Annotated[
        str | None, typer.Option("--parts", help="Such as greedy,steps; else all. See docs/benchmarks.md.")
    ] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Threads; else torch's own number.")] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16 or float16; else its own.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="One round of little work, to see that it runs.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="A JSON file for all figures.")] = None,
) -> None:
    """Time a model against transformers' generate and forwards, and against the machine's memory (two minutes)."""
    from tokenscale.bench import suite, tables
    from tokenscale.bench.part import BRIEF, QUICK
    from tokenscale.bench.subject import Subject

    chosen = _parts(parts, list(suite.PARTS))
    _writable(out)
    console, status = Console(highlight=False), Console(stderr=True, highlight=False)
    with status.status("loading") as shown:
        subject = Subject.open(model, dtype, threads)
        entries = suite.runs(
            subject, chosen, QUICK if quick else BRIEF, quick, lambda part: shown.update(f"measuring {part}")
        )
    console.print(
        escape(f"{tables.subject_text(entries[0]['subject'])}; {tables.bandwidth_text(entries[0]['limits'])}")
    )
    for table in tables.tables(entries):
        console.print(_rich(table))
    for reason in tables.omissions(entries):
        console.print(f"left out, {escape(reason)}", soft_wrap=True)
    for line in LEGEND:
        console.print(line, soft_wrap=True)
    if out is not None:
        suite.write(out, entries, shlex.join(_command(model, parts, threads, dtype, quick)))
        console.print(f"written: {escape(str(out))}", soft_wrap=True)


def _parts(text: str | None, known: Sequence[str]) -> list[str]:
    """The parts that are named, in the order of the suite. Raises UnknownNameError."""
    if text is None:
        return list(known)
    named = [name.strip() for name in text.split(",") if name.strip()]
    if not named:
        raise ArgumentError("--parts names none", f"write --parts {known[0]}, or leave it out")
    for name in named:
        if name not in known:
            raise unknown("part", name, known)
    return [name for name in known if name in named]


def _writable(out: Path | None) -> None:
    """Refuses at once what could not be written in the end."""
    if out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
        what = "is a folder" if out.is_dir() else "lies in a folder that is not there"
        raise ArgumentError(f"--out {out} {what}", "name a file, such as --out bench.json")


def _command(model: str, parts: str | None, threads: int | None, dtype: str | None, quick: bool) -> list[str]:
    options: dict[str, Any] = {"--parts": parts, "--threads": threads, "--dtype": dtype}
    given = [str(part) for name, value in options.items() if value is not None for part in (name, value)]
    return ["tokenscale", "bench", model, *given, *(["--quick"] if quick else [])]


def _rich(table: Table) -> RichTable:
    grid = RichTable(title=escape(table.title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, header in enumerate(table.headers):
        grid.add_column(header, justify="left" if number < 2 else "right", overflow="fold")
    for row in table.rows:
        grid.add_row(*map(escape, row))
    return grid
