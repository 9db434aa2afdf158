"""The command line. Exit codes: 0 done, 1 the run failed, 2 bad input, 130 interrupted."""

from __future__ import annotations

import functools
import json
import math
import sys
import tempfile
import warnings
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

from tokenscale.cli_inspect import inspect
from tokenscale.cli_score import score
from tokenscale.cli_tune import tune
from tokenscale.core.errors import PromptError, RoutingError, TokenscaleError, TokenscaleWarning

if TYPE_CHECKING:
    from tokenscale.experiments.execute import Progress as RunProgress
    from tokenscale.experiments.tables import Table
    from tokenscale.recipe import Recipe

RECIPES = Path(__file__).parent / "recipes"
NARROW = 100
FIGURES_WIDTH = 100

app = typer.Typer(
    name="tokenscale",
    help="Decoding strategies that spend inference compute per token and per sequence, compared at stated costs.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Out = Annotated[Path | None, typer.Option("--out", help="Folder for the answers and the report.")]


def guarded(resume: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes errors of tokenscale one message and an exit code; `resume` says what Ctrl-C leaves behind."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(*args: Any, **kwargs: Any) -> None:
            try:
                with _plain_warnings():
                    command(*args, **kwargs)
            except KeyboardInterrupt:
                _say(f"interrupted: {resume}")
                raise typer.Exit(130) from None
            except TokenscaleError as error:
                _say(f"error: {error}")
                raise typer.Exit(1 if isinstance(error, RoutingError) else 2) from None
            except OSError as error:
                _say(f"error: {error}")
                raise typer.Exit(1) from None

        return run

    return decorate


def _say(text: str) -> None:
    """Text for people; the output itself goes to stdout."""
    Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(text)


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings of tokenscale as one line each, without the place in the source."""

    def show(message: Warning | str, category: type[Warning], *place: Any, **rest: Any) -> None:
        if issubclass(category, TokenscaleWarning):
            _say(f"note: {message}")
        else:
            before(message, category, *place, **rest)

    with warnings.catch_warnings():
        before = warnings.showwarning
        warnings.simplefilter("always", TokenscaleWarning)
        warnings.showwarning = show
        yield


@app.command()
@guarded("nothing was kept; run `tokenscale demo` again, or give --out DIR to be able to go on")
def demo(out: Out = None, as_json: Json = False) -> None:
    """Compare four strategies on the packaged demo model (about a minute)."""
    import torch

    from tokenscale.recipe import Recipe

    recipe = Recipe.load(RECIPES / "quickstart.yaml")
    # The demo model's products are too small to share between threads, which wait for each other on a busy machine.
    torch.set_num_threads(1)
    if out is not None:
        _compare(recipe, out, as_json)
        return
    with tempfile.TemporaryDirectory() as folder:
        _compare(recipe, Path(folder), as_json, kept=False)


@app.command()
@guarded("what is answered is kept; run the same command again to go on")
def run(
    recipe: Annotated[Path, typer.Argument(help="A recipe file.", show_default=False)],
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to it.")] = None,
    out: Out = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the recipe and print its arms.")] = False,
    as_json: Json = False,
) -> None:
    """Run a recipe's comparison; a folder that was begun goes on."""
    from tokenscale.recipe import Recipe

    loaded = Recipe.load(recipe, arguments or ())
    if dry_run:
        _plan(loaded, as_json)
    elif out is None:
        raise typer.BadParameter("give a folder for the answers and the report", param_hint="--out")
    else:
        _compare(loaded, out, as_json)


@app.command()
@guarded("nothing was kept")
def generate(
    prompt: Annotated[str, typer.Argument(help="The prompt; - reads it from the standard input.")],
    model: Annotated[str, typer.Option("--model", help="demo, demo-noisy, a folder or a hub id.")] = "demo",
    pipeline: Annotated[str | None, typer.Option("-p", "--pipeline", help='Such as "RoE(n=4)"; else greedy.')] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of all random draws.")] = 0,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Most tokens of an answer.")] = 256,
    as_json: Json = False,
) -> None:
    """Continue one prompt with a pipeline."""
    from tokenscale.models.hf import load
    from tokenscale.pipeline import Pipeline
    from tokenscale.token_level.decoders import Greedy

    pipe = Pipeline(Greedy()) if pipeline is None else Pipeline.parse(pipeline)
    text = _stdin() if prompt == "-" else prompt
    _quiet()
    lm = load(model)
    [result] = pipe.run(lm, [text], seed=seed, max_new_tokens=max_new_tokens)
    _print_json(result.to_dict()) if as_json else typer.echo(result.text)
    if not as_json:
        for note in result.notes:
            _say(f"note: {note}")


app.command("score")(guarded("nothing was kept")(score))
app.command("inspect")(guarded("nothing was changed")(inspect))
app.command("tune")(guarded("ended trials are kept; run the same command again to go on")(tune))


@app.command("list")
@guarded("nothing was changed")
def list_parts(as_json: Json = False) -> None:
    """List strategies, models, tasks and recipes."""
    from tokenscale.models.source import PACKAGED
    from tokenscale.plugins import listing
    from tokenscale.recipe_sections import TASKS

    strategies = [{"name": e.name, "kind": e.kind.name.lower(), "summary": e.summary} for e in listing()]
    recipes = {path.stem: str(path) for path in sorted(RECIPES.glob("*.yaml"))}
    if as_json:
        _print_json({"strategies": strategies, "models": list(PACKAGED), "tasks": list(TASKS), "recipes": recipes})
        return
    console = Console(highlight=False)
    grid = RichTable("strategy", "kind", "", box=box.SIMPLE_HEAD, pad_edge=False)
    for entry in strategies:
        grid.add_row(entry["name"], entry["kind"], escape(entry["summary"]))
    console.print(grid)
    console.print(f"models: {', '.join(PACKAGED)}, and any folder or hub id")
    console.print(f"tasks: {', '.join(TASKS)}")
    for name, path in recipes.items():
        console.print(f"recipe {name}: {escape(path)}", soft_wrap=True)


def _stdin() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise PromptError(f"the standard input is no UTF-8 (byte {error.start})", "save the prompt as UTF-8") from None


def _quiet() -> None:
    """Turns off the bars that transformers draws while it loads a model."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def _plan(recipe: Recipe, as_json: bool) -> None:
    """What a recipe would run."""
    from tokenscale.experiments.report import planned
    from tokenscale.experiments.tables import counted, smallest_shown
    from tokenscale.experiments.tasks import reported

    problems = {name: len(reported(name, section)) for name, section in recipe.tasks.items()}
    arms = {name: str(arm.pipeline.resolved()) for name, arm in recipe.arms.items()}
    counts = (sum(problems.values()), len(arms), len(recipe.seeds), len(recipe.models))
    answers, smallest = math.prod(counts), planned(recipe, problems)
    if as_json:
        plan = {"arms": arms, "problems": problems, "answers": answers, "smallest_shown": smallest}
        _print_json(plan | {"recipe": recipe.resolved()})
        return
    typer.echo(recipe.question)
    for name, pipeline in arms.items():
        typer.echo(f"  {name}: {pipeline}")
    for line in smallest_shown({"smallest_shown": smallest}):
        typer.echo(line)
    product = " x ".join(map(str, counts))
    typer.echo(f"{counted(answers, 'answer')}: problems x arms x seeds x models = {product}. Nothing was run.")


def _compare(recipe: Recipe, folder: Path, as_json: bool, kept: bool = True) -> None:
    """Runs a recipe with a progress bar and prints what came out."""
    from tokenscale.experiments.execute import execute
    from tokenscale.experiments.tables import arm_tables, claims, legend, notes, smallest_shown

    _quiet()
    with _bar() as report_progress:
        report = execute(recipe, folder, progress=report_progress)
    if as_json:
        _print_json(report)
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


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=1, allow_nan=False))


def main() -> None:
    """The program `tokenscale`."""
    app()
