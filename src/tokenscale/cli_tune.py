"""The command `tokenscale tune`: what it takes, its progress bar, and what it prints."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table as RichTable

if TYPE_CHECKING:
    from tokenscale.experiments.tables import Table
    from tokenscale.experiments.tuning import TuningProgress
    from tokenscale.recipe import Recipe


def tune(
    recipe: Annotated[Path, typer.Argument(help="A recipe file with a `tune:` key.", show_default=False)],
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to it.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the studies and the profiles.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the recipe and print what is searched.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Search the parameters that a recipe's `tune:` names; a folder that was begun goes on."""
    from tokenscale.recipe import Recipe

    loaded = Recipe.load(recipe, arguments or ())
    if dry_run:
        _plan(loaded, as_json)
    elif out is None:
        raise typer.BadParameter("give a folder for the studies and the profiles", param_hint="--out")
    else:
        _tune(loaded, out, as_json)


def _plan(recipe: Recipe, as_json: bool) -> None:
    """What would be searched."""
    from tokenscale.experiments.tuning import required

    tune = required(recipe)
    if as_json:
        typer.echo(json.dumps({"tune": tune.model_dump(mode="json"), "trials": tune.budget.trials}, indent=1))
        return
    typer.echo(recipe.question)
    for arm, parameters in tune.parameters.items():
        typer.echo(f"  {arm}: {', '.join(parameters)} of {recipe.arms[arm].pipeline.resolved()}")
    count = len(tune.parameters) * tune.budget.trials
    typer.echo(f"{count} trials: {len(tune.parameters)} arms x {tune.budget.trials}, by {tune.objective}. Nothing ran.")


def _tune(recipe: Recipe, folder: Path, as_json: bool) -> None:
    from transformers.utils.logging import disable_progress_bar

    from tokenscale.experiments.tuning import tune as search
    from tokenscale.experiments.tuning_report import lines, table

    disable_progress_bar()  # the bars that transformers draws while it loads a model
    with _bar() as progress:
        report = search(recipe, folder, progress=progress)
    if as_json:
        typer.echo(json.dumps(report, indent=1, allow_nan=False))
        return
    console = Console(highlight=False)
    console.print(escape(report["question"]))
    _print(console, table(report))
    for line in lines(report):
        console.print(escape(line), soft_wrap=True)
    for arm in report["arms"]:
        if arm["profile"]:
            console.print(f"profile of {arm['name']}: {escape(str(folder / arm['profile']))}", soft_wrap=True)
    console.print(f"The whole report: {escape(str(folder / 'tuning.md'))}", soft_wrap=True)


@contextmanager
def _bar() -> Iterator[Callable[[TuningProgress], None]]:
    """A progress bar on stderr: arm, trials done, least loss, cost so far, time left."""
    from tokenscale.experiments.tables import amount

    columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
    columns += [TextColumn("{task.fields[best]}"), TextColumn("{task.fields[cost]}"), TimeRemainingColumn()]
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("loading", total=None, cost="", best="")

        def update(now: TuningProgress) -> None:
            best = "" if now.best is None else f"best {now.best:.4g}"
            cost = f"{amount(now.cost.flops)}FLOP"
            bar.update(task, description=now.arm, completed=now.done, total=now.total, best=best, cost=cost)

        yield update


def _print(console: Console, table: Table) -> None:
    grid = RichTable(title=escape(table.title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for header in table.headers:
        grid.add_column(header, justify="left" if header == "arm" else "right")
    for row in table.rows:
        grid.add_row(*map(escape, row))
    console.print(grid)
