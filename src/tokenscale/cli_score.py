"""The command `score`: how likely given texts are under a proposer and an aggregator."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenscale.core.errors import ArgumentError, PipelineError

if TYPE_CHECKING:
    from tokenscale.core.score import Score
    from tokenscale.pipeline import Pipeline


def score(
    texts: Annotated[list[str] | None, typer.Argument(metavar="[TEXT]...", help="Texts; - is the input.")] = None,
    file: Annotated[Path | None, typer.Option("--file", help="A file with a text on every line.")] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", help="What all texts follow; it is not scored.")] = None,
    model: Annotated[str, typer.Option("--model", help="demo, demo-noisy, a folder or a hub id.")] = "demo",
    pipeline: Annotated[str | None, typer.Option("-p", "--pipeline", help='Such as "RoE(n=4)"; else plain.')] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of all random draws.")] = 0,
    max_memory_mb: Annotated[int, typer.Option("--max-memory-mb", min=1, help="Memory of one forward.")] = 1024,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Score texts: perplexity, log-probability per token, and the gain over the clean row."""
    from transformers.utils.logging import disable_progress_bar

    from tokenscale.models.hf import load

    pipe = _pipeline(pipeline)
    given = _texts(texts or [], file)
    disable_progress_bar()
    lm = load(model)
    pipe.check(lm)
    prompts = None if prompt is None else [prompt] * len(given)
    scores = lm.score(given, pipe.proposer, pipe.aggregator, prompts=prompts, seed=seed, max_memory_mb=max_memory_mb)
    report = {"model": model, "pipeline": f"{pipe.proposer!r} | {pipe.aggregator!r}", "seed": seed, **summary(scores)}
    if as_json:
        typer.echo(json.dumps(report, indent=1, allow_nan=False))
    else:
        typer.echo("\n".join(lines(report)))


def _pipeline(text: str | None) -> Pipeline:
    """The token level of a pipeline. Raises PipelineError for one that has more."""
    from tokenscale.core.stage import Kind
    from tokenscale.pipeline import Pipeline
    from tokenscale.token_level.plain import Plain

    pipe = Pipeline(Plain()) if text is None else Pipeline.parse(text)
    for stage in pipe.stages:
        if stage.kind not in (Kind.PROPOSER, Kind.AGGREGATOR):
            message = f"{stage!r:.80} chooses tokens or answers, and a text that is scored is given"
            raise PipelineError(message, 'leave it out: -p "RoE(n=4)", or with an aggregator behind a |')
    return pipe


def _texts(texts: Sequence[str], file: Path | None) -> list[str]:
    """The texts of the command line and of the file, in that order."""
    found = [sys.stdin.read() if text == "-" else text for text in texts]
    if file is not None:
        try:
            found += [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        except UnicodeDecodeError as error:
            raise ArgumentError(f"{file} is no text in UTF-8: {error}", "name a text file") from error
    if not found:
        where = "the command" if file is None else str(file)
        raise ArgumentError(f"{where} has no text to score", "name texts, or --file FILE with one on every line")
    return found


def summary(scores: Sequence[Score]) -> dict[str, Any]:
    """All texts together as plain JSON values; what is not finite is None."""
    from tokenscale.core.cost import Cost
    from tokenscale.core.score import gain_interval

    tokens = sum(len(s.log_probs) for s in scores)
    mean = math.fsum(s.total for s in scores) / tokens
    gain, interval = gain_interval(scores)
    figures = {"mean": mean, "perplexity": math.exp(-mean) if mean > -700 else math.inf, "gain": gain}
    return {
        "tokens": tokens,
        **{name: value if value is not None and math.isfinite(value) else None for name, value in figures.items()},
        "gain_interval": interval,
        "fallbacks": sum(s.fallbacks for s in scores),
        "cost": Cost.total(s.cost for s in scores).to_dict(),
        "texts": [s.to_dict() for s in scores],
    }


def lines(report: dict[str, Any]) -> list[str]:
    """The report for people."""
    from tokenscale.experiments.tables import amount, counted

    cost, texts, tokens = report["cost"], len(report["texts"]), report["tokens"]
    rows, steps = counted(cost["rows"], "row"), counted(cost["sequential_steps"], "sequential step")
    found = [
        f"{counted(texts, 'text')}, {counted(tokens, 'token')}, {report['model']}: {report['pipeline']}",
        f"perplexity       {_shown(report['perplexity'], '.4f')}",
        f"log-probability  {_shown(report['mean'], '.4f')} nats per token",
    ]
    if report["gain"] is not None and not report["pipeline"].startswith("Plain()"):
        between = report["gain_interval"]
        beside = f", 95% interval over texts {between[0]:+.4f} to {between[1]:+.4f}" if between else ""
        found.append(f"gain             {report['gain']:+.4f} nats per token over the clean row{beside}")
    found.append(f"cost             {amount(cost['flops'])}FLOP, {amount(cost['bytes'])}B, {rows}, {steps}")
    if report["fallbacks"]:
        found.append(f"note: the rows of {report['fallbacks']} tokens allowed no common token; the first row was used")
    return found


def _shown(value: float | None, form: str) -> str:
    return "infinite: a token is impossible" if value is None else format(value, form)
