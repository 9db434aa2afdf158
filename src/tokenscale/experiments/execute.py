"""Runs the arms of a recipe and keeps every answer; what a folder already has is not run again."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tokenscale import plugins
from tokenscale.core.admission import Schedule
from tokenscale.core.cost import Cost
from tokenscale.core.data import Result
from tokenscale.core.errors import TokenscaleError
from tokenscale.core.model import LanguageModel
from tokenscale.experiments.report import build
from tokenscale.experiments.store import Row, Slot, Store, write_text
from tokenscale.experiments.tables import markdown
from tokenscale.experiments.tasks import Problem, Task, digest, find_task, prompts, reported
from tokenscale.models.hf import load
from tokenscale.recipe import Recipe
from tokenscale.recipe_sections import ModelSection
from tokenscale.spec import REF

LIBRARIES = ("tokenscale", "torch", "transformers", "numpy")


@dataclass(frozen=True)
class Progress:
    """How far a run is: `done` of `total` problems over all arms and seeds; `slot` is what runs now.

    `cost` sums what the answers so far cost, those of an earlier run of the folder included.
    """

    slot: Slot
    done: int
    total: int
    cost: Cost


Opened = Callable[[ModelSection], LanguageModel]


def open_model(section: ModelSection) -> LanguageModel:
    """The model that a recipe's model section names. Raises ModelError."""
    return load(**section.model_dump())


def execute(
    recipe: Recipe,
    folder: Path,
    *,
    open_model: Opened = open_model,
    progress: Callable[[Progress], None] = lambda _: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Runs what `folder` lacks, writes report.json and report.md there, and returns the report.

    Killed at any moment and called again it goes on, and ends with the same report, seconds aside.
    Raises RecipeError for a folder of another run, ModelError for a model that cannot be opened, and
    what pipelines raise for models that do not fit them, before anything is decoded; the message
    begins with the recipe's key. What fails before the first answer leaves no file behind.
    """
    problems = {name: reported(name, section) for name, section in recipe.tasks.items()}
    store = Store(folder, facts(recipe, problems))
    try:
        run = _Run(recipe, store, problems, progress, clock)
        lm: LanguageModel | None = _fitting(recipe, store, open_model)
        for name, section in recipe.models.items():
            run.model(name, open_model(section) if lm is None else lm)
            lm = None
        report = build(recipe, store)
        write_text(folder / "report.md", markdown(report))
        write_text(folder / "report.json", json.dumps(report, indent=1, allow_nan=False) + "\n")
    finally:
        store.close()
    return report


def facts(recipe: Recipe, problems: Mapping[str, Sequence[Problem]]) -> dict[str, Any]:
    """What a run's answers depend on, but the models, which are added when they are loaded."""
    described = recipe.resolved()
    del described["run"], described["tune"]
    data = {name: digest(drawn) for name, drawn in problems.items()}
    files = {name: plugins.digest(name) for name in sorted(set(_references(described["arms"])))}
    versions = {name: version(name) for name in LIBRARIES}
    profiles = {path: _digest(path) for path in sorted(set(_profiles(described["arms"])))}
    found = {"recipe": described, "data": data, "plugins": files, "versions": versions}
    return found | {"profiles": profiles} if profiles else found


def _digest(path: str) -> str:
    return hashlib.blake2b(Path(path).read_bytes(), digest_size=8).hexdigest()


def _profiles(value: object) -> Iterator[str]:
    """The files that specs name as tuned noise: a `tau` that is text."""
    if isinstance(value, Mapping) and isinstance(value.get("tau"), str) and Path(value["tau"]).is_file():
        yield value["tau"]
    if isinstance(value, Mapping | list):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _profiles(part)


def _references(value: object) -> Iterator[str]:
    """The names "path/to/file.py:Name" in specs: they are keys, or the value of `ref`."""
    if isinstance(value, Mapping):
        yield from (name for name in (*value, value.get(REF)) if isinstance(name, str) and plugins.is_reference(name))
    if isinstance(value, Mapping | list):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _references(part)


def _fitting(recipe: Recipe, store: Store, open_model: Opened) -> LanguageModel:
    """The first model, once all are known to open, to be those of the folder and to fit every arm.

    One at a time and the first one last: two may be more than the memory holds.
    """
    lm: LanguageModel | None = None
    for name, section in reversed(recipe.models.items()):
        lm = None
        with _about(f"models.{name}"):
            lm = open_model(section)
        store.pin(f"models.{name}", lm.fingerprint)
        for arm_name, arm in recipe.arms.items():
            with _about(f"arms.{arm_name}"):
                arm.pipeline.check(lm)
    assert lm is not None
    return lm


@contextmanager
def _about(key: str) -> Iterator[None]:
    """Puts the recipe's key before the message of what is raised within."""
    try:
        yield
    except TokenscaleError as error:
        raise type(error)(f"{key}: {error.message}", error.hint) from error


class _Run:
    """One call of `execute` while it goes on."""

    def __init__(
        self,
        recipe: Recipe,
        store: Store,
        problems: Mapping[str, Sequence[Problem]],
        progress: Callable[[Progress], None],
        clock: Callable[[], float],
    ) -> None:
        self._recipe, self._store, self._problems = recipe, store, problems
        self._report, self._clock = progress, clock
        runs = len(recipe.models) * len(recipe.arms) * len(recipe.seeds)
        self._total, self._done, self._cost = runs * sum(map(len, problems.values())), 0, Cost()
        self._halved: dict[tuple[str, str], tuple[int, int]] = {}

    def model(self, name: str, lm: LanguageModel) -> None:
        """All answers of one model."""
        for task in self._recipe.tasks:
            for seed in self._recipe.seeds:
                for arm_name in self._recipe.arms:
                    self._slot(Slot(task, name, arm_name, seed), lm)

    def _slot(self, slot: Slot, lm: LanguageModel) -> None:
        """What one file still lacks; in the end its rows are in the order of the problems."""
        problems = self._problems[slot.task]
        kept = self._store.repair(slot)
        self._count(slot, list(kept.values()))
        missing = [p for p in problems if p.id not in kept]
        if missing:
            self._answer(slot, lm, missing)
        self._store.arrange(slot, [p.id for p in problems])

    def _count(self, slot: Slot, rows: Sequence[Row]) -> None:
        self._done += len(rows)
        self._cost = sum((Cost(**row["cost"]) for row in rows), self._cost)
        self._report(Progress(slot, self._done, self._total, self._cost))

    def _answer(self, slot: Slot, lm: LanguageModel, problems: Sequence[Problem]) -> None:
        """Answers problems and keeps each answer as soon as it is there."""
        arm, task = self._recipe.arms[slot.arm], find_task(slot.task)
        generation, before = self._recipe.generation, self._clock()
        own = self._recipe.run.batch_size, self._recipe.run.max_batch_tokens
        batch_size, max_batch_tokens = self._halved.get((slot.model, slot.arm), own)

        def keep(index: int, result: Result) -> None:
            nonlocal before
            now = self._clock()
            row = _row(task, problems[index], result, now - before)
            before = now
            self._store.append(slot, [row])
            self._count(slot, [row])

        def note(schedule: Schedule) -> None:
            self._store.log({"file": slot.file, **asdict(schedule)})
            if schedule.halved_to is not None:  # the arm's other seeds would run out of memory too
                self._halved[slot.model, slot.arm] = schedule.halved_to

        arm.pipeline.run(
            lm,
            prompts(task, problems, arm.prompt or self._recipe.prompt, lm),
            seed=slot.seed,
            max_new_tokens=generation.max_new_tokens,
            stop_strings=generation.stop_strings,
            batch_size=batch_size,
            max_batch_tokens=max_batch_tokens,
            on_result=keep,
            on_schedule=note,
        )


def _row(task: Task, problem: Problem, result: Result, seconds: float) -> Row:
    """What is kept of one answer. `seconds` is the time since the answer before it: their sum is the run's."""
    return {
        **result.to_dict(),
        "id": problem.id,
        "expected": problem.answer,
        "extracted": task.extract(result.text),
        "score": task.grade(problem, result.text),
        "truncated": sum(c.finish_reason == "length" for c in result.candidates),
        "unparsable": sum(task.extract(c.text) is None for c in result.candidates),
        "routing": asdict(result.routing),
        "seconds": seconds,
    }
