"""The command `generate`: the text as it is decided on stdout; candidates, votes and cost as tables on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from tokenscale.cli_compare import print_json, quiet
from tokenscale.core.errors import PromptError

if TYPE_CHECKING:
    from tokenscale.core.data import Candidate, Result
    from tokenscale.core.streaming import Event

SHOWN = 60
AXES = ("flops", "bytes", "expert_loads", "prompt_tokens", "new_tokens", "rows", "sequential_steps")


def generate(
    prompt: Annotated[str, typer.Argument(help="The prompt; - reads it from the standard input.")],
    model: Annotated[str, typer.Option("--model", help="demo, demo-noisy, a folder or a hub id.")] = "demo",
    pipeline: Annotated[str | None, typer.Option("-p", "--pipeline", help='Such as "RoE(n=4)"; else greedy.')] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of all random draws.")] = 0,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Most tokens of an answer.")] = 256,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="A text that ends answers; may be repeated.")] = None,
    batch_size: Annotated[str, typer.Option("--batch-size", help="Most candidates at once, or auto.")] = "16",
    max_batch_tokens: Annotated[
        str, typer.Option("--max-batch-tokens", help="Most tokens that caches may come to hold, or auto.")
    ] = "auto",
    chat: Annotated[bool, typer.Option("--chat", help="Send the prompt as a user's message.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Continue one prompt with a pipeline."""
    from tokenscale.core.admission import check_bounds
    from tokenscale.core.prompt import Prompt
    from tokenscale.models.hf import load
    from tokenscale.pipeline import Pipeline
    from tokenscale.token_level.decoders import Greedy

    pipe = Pipeline(Greedy()) if pipeline is None else Pipeline.parse(pipeline)
    text = _stdin() if prompt == "-" else prompt
    bounds = {"batch_size": _bound(batch_size), "max_batch_tokens": _bound(max_batch_tokens)}
    check_bounds("generate", **bounds)
    asked = Prompt.of([{"role": "user", "content": text}]) if chat else Prompt(text=text)
    quiet()
    lm = load(model)
    options = {"seed": seed, "max_new_tokens": max_new_tokens, "stop_strings": stop or [], **bounds}
    result = _shown(pipe.stream(lm, asked, **options), as_json)
    if as_json:
        print_json(result.to_dict())
        return
    console = Console(stderr=True, highlight=False)
    if len(result.candidates) > 1:
        console.print(candidate_table(result))
    if result.votes:
        console.print(vote_table(result))
    console.print(escape(bill(result)), soft_wrap=True)
    for note in result.notes:
        console.print(escape(f"note: {note}"), soft_wrap=True)


def _bound(text: str) -> Any:
    """The number of an option that may be another word, such as auto."""
    return int(text) if text.isdecimal() else text


def _shown(events: Iterable[Event], as_json: bool) -> Result:
    """The result, its text written while it is decided."""
    from tokenscale.core.data import Result
    from tokenscale.core.streaming import Progress

    written = False
    try:
        with Console(stderr=True).status("decoding") as status:
            for event in events:
                if isinstance(event, Progress):
                    status.update(f"{event.ended} candidates have ended, {event.tokens} tokens")
                elif isinstance(event, Result):
                    result = event
                elif not as_json:
                    status.stop()
                    typer.echo(event.text, nl=False)
                    written = True
    except KeyboardInterrupt:
        if written:
            typer.echo()  # what is said of the interruption begins a line
        raise
    if not as_json:
        typer.echo()
    return result


def candidate_table(result: Result) -> RichTable:
    """One line a candidate: answer, score, log-probability, tokens, end, the beginning of its text; * is the winner."""
    scored = any(c.score is not None for c in result.candidates)
    heads = ["", "answer", *(["score"] if scored else []), "log p", "tokens", "ended by", "text"]
    table = RichTable(*heads, box=box.SIMPLE_HEAD, pad_edge=False)
    for number, candidate in enumerate(result.candidates, 1):
        mark = "*" if _is_winner(candidate, result) else ""
        answer = "-" if candidate.answer is None else _line(candidate.answer)
        score = [] if not scored else ["-" if candidate.score is None else f"{candidate.score:.3f}"]
        log_p, tokens = f"{candidate.log_prob:.2f}", str(len(candidate.token_ids))
        row = [f"{mark}{number}", answer, *score, log_p, tokens, candidate.finish_reason, _line(candidate.text)]
        table.add_row(*map(escape, row))
    return table


def _is_winner(candidate: Candidate, result: Result) -> bool:
    return candidate.stream == result.winner.stream and candidate.token_ids == result.winner.token_ids


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else line[: SHOWN - 1] + "\u2026"


def vote_table(result: Result) -> RichTable:
    """Answers and the weight of their votes, heaviest first."""
    table = RichTable("answer", "votes", box=box.SIMPLE_HEAD, pad_edge=False)
    for answer, weight in result.votes:
        table.add_row(escape("-" if answer is None else _line(answer)), f"{weight:g}")
    return table


def bill(result: Result) -> str:
    """How a single answer ended, and the cost in one line, every axis with its name."""
    from tokenscale.experiments.tables import amount

    cost = result.cost.to_dict()
    ended = f"ended by {result.winner.finish_reason}; " if len(result.candidates) == 1 else ""
    return f"{ended}cost: " + ", ".join(f"{name} {amount(cost[name])}" for name in AXES)


def _stdin() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise PromptError(f"the standard input is no UTF-8 (byte {error.start})", "save the prompt as UTF-8") from None
