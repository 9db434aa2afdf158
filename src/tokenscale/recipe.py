"""Recipes: a comparison described in YAML, read into one frozen object or refused with every error at once."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, Strict, ValidationError, field_validator
from pydantic_core import ErrorDetails

from tokenscale.core.errors import nearest
from tokenscale.recipe_sections import (
    FIXED_WIDTH,
    ONE_ARM_EACH,
    TASKS,
    ArmSection,
    GenerationSection,
    ModelSection,
    Name,
    PromptSection,
    RunSection,
    Section,
    TaskName,
    TaskSection,
    Text,
    refuse,
)
from tokenscale.recipe_text import Loc, Problem, Source, override, read, refusal
from tokenscale.recipe_tune import (
    BoundsSection,
    BudgetSection,
    TextFilesSection,
    TuneSection,
    TuningDataSection,
    tune_problems,
)


class Recipe(Section):
    """A whole comparison. Made by `Recipe.load`."""

    version: Literal[1] = Field(description="version: 1")
    question: Annotated[Text, Field(min_length=1)] = Field(description="the question that this comparison answers")
    models: dict[Name, ModelSection] = Field(min_length=1, description="models: {demo: {path: demo}}")
    tasks: dict[TaskName, TaskSection] = Field(min_length=1, description="tasks: {arithmetic: {limit: 200}}")
    prompt: PromptSection = Field(default=PromptSection(), description="{chat: auto, system: null, few_shot: null}")
    generation: GenerationSection = Field(
        default=GenerationSection(), description="{max_new_tokens: 96, stop_strings: []}"
    )
    seeds: tuple[Annotated[int, Strict(), Field(ge=0)], ...] = Field(
        default=(0,), min_length=1, description="seeds: [0, 1, 2]"
    )
    arms: dict[Name, ArmSection] = Field(min_length=1, description='arms: {greedy: Greedy(), roe: "RoE(n=4)"}')
    contrasts: tuple[tuple[Text, Text], ...] = Field(
        default=(), description="pairs of arms: [[roe, greedy], [both, vote]]"
    )
    margin: Annotated[float, Strict(), Field(ge=0)] | None = Field(
        default=None, description="points of accuracy, or null"
    )
    tune: TuneSection | None = Field(
        default=None, description="{budget: {trials: 50}, objective: perplexity, parameters: {roe: {tau: ...}}}"
    )
    run: RunSection = Field(default=RunSection(), description="{batch_size: auto, max_batch_tokens: auto, workers: 1}")

    @field_validator("seeds")
    @classmethod
    def _each_seed_once(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        twice = [seed for seed in value if value.count(seed) > 1]
        if twice:
            raise refuse(f"{twice[0]} stands twice", "write each seed once")
        return value

    @classmethod
    def load(cls, path: str | Path, arguments: Sequence[str] = ()) -> Recipe:
        """Reads a recipe file, with dotted `key=value` arguments laid over it before it is checked.

        Raises RecipeError, which names every wrong value with file, line, column and the fix.
        """
        source = read(Path(path))
        for argument in arguments:
            override(source, argument)
        try:
            recipe = cls.model_validate(source.data)
        except ValidationError as error:
            raise refusal(_problems(source, error.errors())) from None
        problems = [*_contrast_problems(recipe, source), *_task_problems(recipe, source)]
        if recipe.tune is not None:
            problems += tune_problems(recipe.tune, recipe.arms, recipe.models, recipe.tasks, source)
        if problems:
            raise refusal(problems)
        return recipe

    def resolved(self) -> dict[str, Any]:
        """Every value, defaults included, as plain JSON values; arms as spec lists."""
        return self.model_dump(mode="json")


SECTIONS: dict[tuple[str, ...], type[Section]] = {
    (): Recipe,
    ("models", "*"): ModelSection,
    ("tasks", "*"): TaskSection,
    ("prompt",): PromptSection,
    ("generation",): GenerationSection,
    ("arms", "*"): ArmSection,
    ("arms", "*", "prompt"): PromptSection,
    ("run",): RunSection,
    ("tune",): TuneSection,
    ("tune", "budget"): BudgetSection,
    ("tune", "data"): TuningDataSection,
    ("tune", "test"): TuningDataSection,
    ("tune", "text_files"): TextFilesSection,
    ("tune", "parameters", "*", "*"): BoundsSection,
}
NOT_YET = {
    "path": "leave it out: the task's own problems are used",
    "template": "leave it out: the task's own prompt is used",
    "cluster": "leave it out: each problem stands for itself",
    "calibration": "leave it out: nothing is chosen by this version, so nothing is chosen on it",
    "budgets": f"leave it out: {FIXED_WIDTH}",
    "sweep": f"leave it out: {ONE_ARM_EACH}",
}
WORDS = {
    "model_type": "must be a mapping",
    "dict_type": "must be a mapping",
    "tuple_type": "must be a list",
    "too_short": "must not be empty",
    "too_long": "has too many entries",
    "string_too_short": "must not be empty",
}


def _problems(source: Source, errors: Sequence[ErrorDetails]) -> list[Problem]:
    """Pydantic's errors with places and fixes, less those that only follow from another.

    A key is missing because it is misspelt; a list is too short because its entries are wrong.
    """
    unknown = [e["loc"] for e in errors if e["type"] == "extra_forbidden"]
    follows = {("missing", (*loc[:-1], _closest(loc))) for loc in unknown}
    follows |= {("too_short", e["loc"][:end]) for e in errors for end in range(len(e["loc"]))}
    return [_problem(source, e) for e in errors if (e["type"], e["loc"]) not in follows]


def _closest(loc: Loc) -> str | None:
    """The known key nearest to an unknown one."""
    return next(iter(difflib.get_close_matches(str(loc[-1]), _section(loc[:-1]).model_fields, 1, 0.5)), None)


def _problem(source: Source, error: ErrorDetails) -> Problem:
    kind, context = error["type"], error.get("ctx", {})
    # Pydantic marks an error of a mapping's key so; a key of that name can only be an unknown one.
    of_key = error["loc"][-1:] == ("[key]",) and kind != "extra_forbidden"
    loc: Loc = error["loc"][:-1] if of_key else error["loc"]
    place = source.keys[loc] if of_key else source.place(loc)
    if kind == "extra_forbidden":
        return _unknown_key(source, loc)
    if kind == "missing" and isinstance(loc[-1], int):
        return Problem(
            place, f"{_dotted(loc[:-1])}: has too few entries, got {error['input']!r:.60}", f"write {_form(loc)}"
        )
    if kind == "missing":
        return Problem(place, f"the key {_dotted(loc)!r} is missing", f"add it: {_form(loc)}")
    if kind == "refused":
        return Problem(place, f"{_dotted(loc)}: {context['message']}", context["hint"])
    wanted = WORDS.get(kind, error["msg"].replace("Input should be", "must be"))
    return Problem(place, f"{_dotted(loc)}: {wanted}, got {error['input']!r:.60}", f"write {_form(loc)}")


def _unknown_key(source: Source, loc: Loc) -> Problem:
    *parent, key = loc
    section = _section(tuple(parent))
    place = source.keys.get(loc, source.place(loc))
    under = f" under {_dotted(tuple(parent))}" if parent else ""
    if key in NOT_YET and section in (Recipe, TaskSection, ArmSection):
        return Problem(place, f"the key {key!r}{under} is not known yet to this version", NOT_YET[str(key)])
    hint = "write it in a recipe file" if loc == ("include",) else nearest(str(key), section.model_fields)
    return Problem(place, f"unknown key {key!r:.80}{under}", hint)


def _section(loc: Loc) -> type[Section]:
    """The section at a place."""
    found = _section_or_none(loc)
    assert found is not None
    return found


def _section_or_none(loc: Loc) -> type[Section] | None:
    """The section at a place; within one that a name selects, the name does not matter."""
    fitting = [p for p in SECTIONS if len(p) == len(loc) and all(a in ("*", b) for a, b in zip(p, loc, strict=True))]
    return SECTIONS[min(fitting, key=lambda pattern: pattern.count("*"))] if fitting else None


def _form(loc: Loc) -> str:
    """What may be written at a place: the description of the nearest field around it."""
    for end in range(len(loc), 0, -1):
        section = _section_or_none(loc[: end - 1])
        field = section.model_fields.get(str(loc[end - 1])) if section is not None else None
        if field is not None and field.description:
            return field.description
    return "a mapping of keys"


def _dotted(loc: Loc) -> str:
    return ".".join(str(part) for part in loc)[:120]


def _contrast_problems(recipe: Recipe, source: Source) -> list[Problem]:
    problems = []
    for index, pair in enumerate(recipe.contrasts):
        for side, name in enumerate(pair):
            if name not in recipe.arms:
                place = source.place(("contrasts", index, side))
                problems.append(Problem(place, f"contrasts name no arm {name!r:.80}", nearest(name, recipe.arms)))
        place = source.place(("contrasts", index))
        if pair[0] == pair[1]:
            problems.append(Problem(place, f"{pair[0]!r:.80} is compared with itself", "name two arms"))
        if {*pair} in [{*other} for other in recipe.contrasts[:index]]:
            problems.append(
                Problem(place, f"{' and '.join(pair):.140} are compared twice", "keep one of the two pairs")
            )
    return problems


def _task_problems(recipe: Recipe, source: Source) -> list[Problem]:
    problems = []
    shots: dict[Loc, int | None] = {("prompt", "few_shot"): recipe.prompt.few_shot}
    for name, arm in recipe.arms.items():
        shots[("arms", name, "prompt", "few_shot")] = arm.prompt.few_shot if arm.prompt else None
    for name, task in recipe.tasks.items():
        problems += _too_many(source, ("tasks", name, "limit"), task.limit, name, task.split)
        for where, count in shots.items():
            problems += _too_many(source, where, count, name, "validation")
        if any(shots.values()) and task.split == "validation":
            message = f"tasks.{name} reports the validation split, from which the few-shot examples come"
            problems.append(Problem(source.place(("tasks", name, "split")), message, "report the test split"))
    return problems


def _too_many(source: Source, loc: Loc, count: int | None, task: str, split: str) -> list[Problem]:
    """Whether a recipe wants more problems than a split has."""
    size = TASKS[task][split]
    if count is None or count <= size:
        return []
    message = f"{_dotted(loc)} is {count}, and the {split} split of {task} has {size} problems"
    return [Problem(source.place(loc), message, f"write {loc[-1]}: {size}, or less")]
