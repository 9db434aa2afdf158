"""Searches the parameters that a recipe's `tune:` names, then compares the arms as written and as tuned.

Every arm has the same number of trials on the same validation data. The test data are read once, when
all searches have ended.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import optuna

from tokenscale.core.cost import Cost
from tokenscale.core.errors import RecipeError, TokenscaleError
from tokenscale.core.model import LanguageModel
from tokenscale.experiments.execute import Opened, facts, open_model
from tokenscale.experiments.store import write_text
from tokenscale.experiments.tasks import find_task
from tokenscale.experiments.tuning_data import Data, Item, items, read_data
from tokenscale.experiments.tuning_folder import PAGE, REPORT, STUDIES, TuningFolder
from tokenscale.experiments.tuning_objective import Measured, Objective, Perplexity, WrongAnswers
from tokenscale.experiments.tuning_report import Tuned, build, markdown, profile, tuned_arms
from tokenscale.experiments.tuning_search import Found, search
from tokenscale.experiments.tuning_space import Space, space_of
from tokenscale.pipeline import Pipeline
from tokenscale.recipe import Recipe
from tokenscale.recipe_tune import TuneSection

# Parts of the validation data after each of which a trial may be dropped.
CHUNKS = 5


@dataclass(frozen=True)
class TuningProgress:
    """How far a search is: trials `done` of `total` over all arms, the arm's least loss, the cost so far."""

    arm: str
    done: int
    total: int
    best: float | None
    cost: Cost


Reporter = Callable[[TuningProgress], None]


def tune(
    recipe: Recipe, folder: Path, *, open_model: Opened = open_model, progress: Reporter = lambda _: None
) -> dict[str, Any]:
    """Searches, tests, writes profiles, tuned.yaml, tuning.md and tuning.json to `folder`; returns the report.

    Killed at any moment and called again it goes on, and finds what an uninterrupted search finds. A
    folder whose search is complete is not searched again. Raises RecipeError for a recipe without
    `tune:`, samples that overlap, and a folder of another search; ModelError and what pipelines raise
    for models that do not fit them. All of that is raised before the folder is made.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    run = _prepare(recipe, open_model)
    held = TuningFolder(folder, run.facts)
    try:
        return held.report or _tune(run, held, progress)
    finally:
        held.close()


@dataclass(frozen=True)
class _Run:
    """All that a search reads."""

    recipe: Recipe
    tune: TuneSection
    task: str | None
    model: str
    lm: LanguageModel
    data: Data
    objective: Objective
    spaces: Mapping[str, Space]

    @property
    def facts(self) -> dict[str, Any]:
        """What the trials depend on."""
        known = facts(self.recipe, {})
        known["tune"] = self.tune.model_dump(mode="json")
        known["versions"] |= {"optuna": version("optuna")}
        return {**known, "data": self.data.digests, "model": self.lm.fingerprint}

    def items(self, arm: str, split: str) -> list[Item]:
        how = self.recipe.arms[arm].prompt or self.recipe.prompt
        return items(getattr(self.data, split), self.lm, how, self.task, self.tune.piece_tokens)


def required(recipe: Recipe) -> TuneSection:
    """The recipe's `tune:`. Raises RecipeError where there is none."""
    if recipe.tune is not None:
        return recipe.tune
    hint = "add tune: {budget: {trials: 50}, objective: perplexity, parameters: {ARM: {tau: {low: 0, high: 0.5}}}}"
    raise RecipeError("the recipe has no `tune:`, so there is nothing to search", hint)


def _prepare(recipe: Recipe, open_model: Opened) -> _Run:
    tune = required(recipe)
    task = None if tune.reads_texts else tune.task or next(iter(recipe.tasks))
    name = tune.model or next(iter(recipe.models))
    data = read_data(recipe, tune, task)
    objective: Objective = Perplexity()
    if tune.objective == "accuracy":
        assert task is not None
        objective = WrongAnswers(find_task(task), recipe.generation, recipe.run)
    with _about(f"models.{name}"):
        lm = open_model(recipe.models[name])
    spaces = {}
    for arm, parameters in tune.parameters.items():
        with _about(f"arms.{arm}"):
            spaces[arm] = space_of(recipe.arms[arm].pipeline, parameters, lm)
    run = _Run(recipe, tune, task, name, lm, data, objective, spaces)
    for split in ("validation", "test"):  # so that no text is found too long when hours have been spent
        for arm in spaces:
            run.items(arm, split)
    return run


@contextmanager
def _about(key: str) -> Iterator[None]:
    """Puts the recipe's key before the message of what is raised within."""
    try:
        yield
    except TokenscaleError as error:
        raise type(error)(f"{key}: {error.message}", error.hint) from error


def _tune(run: _Run, held: TuningFolder, progress: Reporter) -> dict[str, Any]:
    found: dict[str, Found] = {}
    for number, arm in enumerate(run.spaces):
        found[arm] = _search(run, held, arm, progress, number, Cost.total(f.cost for f in found.values()))
    tuned = [_test(run, arm, found[arm]) for arm in run.spaces]
    report = build(run.recipe, run.tune, run.lm, run.objective, run.data, tuned)
    for one in tuned:
        if one.profile is not None:
            write_text(held.path / one.profile, profile(report, one, run.lm, STUDIES))
    write_text(held.path / "tuned.yaml", tuned_arms(tuned, held.path))
    write_text(held.path / PAGE, markdown(report))
    # Last, since it says that all the others are there.
    write_text(held.path / REPORT, json.dumps(report, indent=1, allow_nan=False) + "\n")
    return report


def _search(run: _Run, held: TuningFolder, arm: str, progress: Reporter, number: int, spent: Cost) -> Found:
    space, trials = run.spaces[arm], run.tune.budget.trials
    chunks = _chunks(run.items(arm, "validation"))
    seed = run.recipe.seeds[0]

    def evaluate(values: Mapping[str, Any], chunk: int) -> tuple[float, float, Cost]:
        measured = run.objective.measure(space.build(values), run.lm, chunks[chunk], seed)
        return math.fsum(p.total for p in measured.parts), sum(p.weight for p in measured.parts), measured.cost

    def report(ended: int, best: float | None, cost: Cost) -> None:
        total = trials * len(run.spaces)
        progress(TuningProgress(arm, number * trials + ended, total, best, spent + cost))

    return search(
        held.study(arm),
        space.dimensions,
        evaluate,
        chunks=len(chunks),
        trials=trials,
        seed=seed,
        own=space.own,
        progress=report,
    )


def _chunks(found: Sequence[Item]) -> list[Sequence[Item]]:
    """At most CHUNKS parts of nearly equal size."""
    parts = min(CHUNKS, len(found))
    ends = [len(found) * i // parts for i in range(parts + 1)]
    return [found[start:end] for start, end in pairwise(ends)]


def _test(run: _Run, arm: str, found: Found) -> Tuned:
    """The arm as written and as tuned on the test data; noise is averaged over the recipe's seeds."""
    space = run.spaces[arm]
    held_out = run.items(arm, "test")
    pipeline = space.build(found.values)
    before = _over_seeds(run, space.pipeline, held_out)
    after = before if pipeline == space.pipeline else _over_seeds(run, pipeline, held_out)
    cost = before.cost if after is before else before.cost + after.cost
    name = f"{arm}.profile.yaml" if space.noise is not None else None
    return Tuned(arm, space, found, pipeline, before, after, cost, name)


def _over_seeds(run: _Run, pipeline: Pipeline, held_out: Sequence[Item]) -> Measured:
    measured = [run.objective.measure(pipeline, run.lm, held_out, seed) for seed in run.recipe.seeds]
    parts = [
        replace(same[0], total=math.fsum(p.total for p in same) / len(same))
        for same in zip(*(m.parts for m in measured), strict=True)
    ]
    return Measured(tuple(parts), Cost.total(m.cost for m in measured))
