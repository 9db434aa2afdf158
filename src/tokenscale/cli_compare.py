"""What the commands `demo` and `run` show: a plan, a progress bar, and the tables of a comparison."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table as RichTable

if TYPE_CHECKING:
    from tokenscale.experiments.execute import Progress as RunProgress
    from tokenscale.experiments.tables import Table
    from tokenscale.recipe import Recipe

NARROW = 100
FIGURES_WIDTH = 100


def plan(recipe: Recipe, as_json: bool) -> None:
    """What a recipe would run."""
    from tokenscale.experiments.report import planned
    from tokenscale.experiments.tables import counted, smallest_shown
    from tokenscale.experiments.tasks import reported

    problems = {name: len(reported(name, section)) for name, section in recipe.tasks.items()}
    arms = {name: str(arm.pipeline.resolved()) for name, arm in recipe.arms.items()}
    counts = (sum(problems.values()), len(arms), len(recipe.seeds), len(recipe.models))
    answers, smallest = math.prod(counts), planned(recipe, problems)
    if as_json:
        found = {"arms": arms, "problems": problems, "answers": answers, "smallest_shown": smallest}
        print_json(found | {"recipe": recipe.resolved()})
        return
    typer.echo(recipe.question)
    for name, pipeline in arms.items():
        typer.echo(f"  {name}: {pipeline}")
    for line in smallest_shown({"smallest_shown": smallest}):
        typer.echo(line)
    product = " x ".join(map(str, counts))
    typer.echo(f"{counted(answers, 'answer')}: problems x arms x seeds x models = {product}. Nothing was run.")


def compare(recipe: Recipe, folder: Path, as_json: bool, kept: bool = True) -> None:
    """Runs a recipe with a progress bar and prints what came out."""
    from tokenscale.experiments.execute import execute
    from tokenscale.experiments.tables import arm_tables, claims, legend, notes, smallest_shown

    quiet()
    with _bar() as report_progress:
        report = execute(recipe, folder, progress=report_progress)
    if as_json:
        print_json(report)
        return
    console = Console(highlight=False)
    console.print(escape(report["question"]))
    below = [line for table in arm_tables(report) for line in _print_table(console, table)]
    for line in dict.fromkeys(below):  # tables of several models have the same pipelines
        console.print(line, soft_wrap=True)
    console.print()
    for line in [legend(report), *claims(report), *smallest_shown(report), *notes(report), report["caveat"]]:
        console.print(escape(line))
    if kept:
        console.print(f"The whole report: {escape(str(folder / 'report.md'))}", soft_wrap=True)


@contextmanager
def _bar() -> Iterator[Callable[[RunProgress], None]]:
    """A progress bar on stderr: arm, problems done, cost so far, time left."""
    from tokenscale.experiments.tables import amount

    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[cost]}")]
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("loading", total=None, cost="")

        def update(now: RunProgress) -> None:
            name = f"{now.slot.model} {now.slot.arm}, seed {now.slot.seed}"
            cost = f"{amount(now.cost.flops)}FLOP"
            bar.update(task, description=name, completed=now.done, total=now.total, cost=cost)

        yield update


def _print_table(console: Console, table: Table) -> list[str]:
    """A table of arms. Returns what is to stand below all tables: in a narrow terminal, the pipelines."""
    pipelines = [row[table.headers.index("pipeline")] for row in table.rows]
    wide = console.width >= FIGURES_WIDTH + max(map(len, pipelines))
    shown = [i for i, header in enumerate(table.headers) if wide or header != "pipeline"]
    padding = (0, 0) if console.width < NARROW else (0, 1)
    grid = RichTable(title=escape(table.title), title_justify="left", box=box.SIMPLE_HEAD, padding=padding)
    for i in shown:
        text = table.headers[i] in ("arm", "pipeline")
        grid.add_column(table.headers[i], justify="left" if text else "right", no_wrap=" " not in table.headers[i])
    for row in table.rows:
        grid.add_row(*(escape(row[i]) for i in shown))
    console.print(grid)
    if wide:
        return []
    return [f"{escape(row[0])}: {escape(pipeline)}" for row, pipeline in zip(table.rows, pipelines, strict=True)]


def quiet() -> None:
    """Turns off the bars that transformers draws while it loads a model."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=1, allow_nan=False))
