"""The command line. Exit codes: 0 done, 1 the run failed, 2 bad input, 130 interrupted."""

from __future__ import annotations

import functools
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from tokenscale.cli_bench import bench
from tokenscale.cli_compare import compare, plan, print_json
from tokenscale.cli_generate import generate
from tokenscale.cli_inspect import inspect
from tokenscale.cli_score import score
from tokenscale.cli_tune import tune
from tokenscale.core.errors import OutOfMemoryError, RoutingError, TokenscaleError, TokenscaleWarning

RECIPES = Path(__file__).parent / "recipes"

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
                raise typer.Exit(1 if isinstance(error, OutOfMemoryError | RoutingError) else 2) from None
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


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"tokenscale {version('tokenscale')}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of the program itself."""


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
        compare(recipe, out, as_json)
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(recipe, Path(folder), as_json, kept=False)


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
        plan(loaded, as_json)
    elif out is None:
        raise typer.BadParameter("give a folder for the answers and the report", param_hint="--out")
    else:
        compare(loaded, out, as_json)


app.command("generate")(guarded("nothing was kept")(generate))
app.command("score")(guarded("nothing was kept")(score))
app.command("bench")(guarded("nothing was kept")(bench))
app.command("inspect")(guarded("nothing was changed")(inspect))
app.command("tune")(guarded("ended trials are kept; run the same command again to go on")(tune))


@app.command("list")
@guarded("nothing was changed")
def list_parts(as_json: Json = False) -> None:
    """List strategies, models, tasks and recipes."""
    from tokenscale.models.source import PACKAGED, REWARD_MODELS
    from tokenscale.plugins import listing
    from tokenscale.recipe_sections import TASKS

    strategies = [{"name": e.name, "kind": e.kind.name.lower(), "summary": e.summary} for e in listing()]
    recipes = {path.stem: str(path) for path in sorted(RECIPES.glob("*.yaml"))}
    if as_json:
        models = {"models": list(PACKAGED), "reward_models": list(REWARD_MODELS)}
        print_json({"strategies": strategies, **models, "tasks": list(TASKS), "recipes": recipes})
        return
    console = Console(highlight=False)
    grid = RichTable("strategy", "kind", "", box=box.SIMPLE_HEAD, pad_edge=False)
    for entry in strategies:
        grid.add_row(entry["name"], entry["kind"], escape(entry["summary"]))
    console.print(grid)
    console.print(f"models: {', '.join(PACKAGED)}, and any folder or hub id")
    console.print(f"reward models: {', '.join(REWARD_MODELS)}, and any folder or hub id of a sequence classifier")
    console.print(f"tasks: {', '.join(TASKS)}")
    for name, path in recipes.items():
        console.print(f"recipe {name}: {escape(path)}", soft_wrap=True)


def main() -> None:
    """The program `tokenscale`."""
    app()
