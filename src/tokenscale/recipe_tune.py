"""The `tune:` key of a recipe: which parameters of which arms are searched, between what, by what measure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, Strict, model_validator

from tokenscale import plugins
from tokenscale.core.errors import TokenscaleError, UnknownNameError, nearest
from tokenscale.core.stage import Stage
from tokenscale.pipeline import Pipeline
from tokenscale.recipe_sections import ArmSection, Count, Name, Section, TaskName, TaskSection, Text, refuse
from tokenscale.recipe_text import Loc, Problem, Source
from tokenscale.token_level.roe_options import NoisyRows

Value = float | int | bool | str | None
_BOUNDS = "{low: 0.0, high: 0.5}, or a list of choices such as [0.5, 0.7, 1.0]"
_SPLIT = "{split: validation, limit: 100}"


def _number(value: object) -> object:
    if type(value) in (int, float) and math.isfinite(value):  # type: ignore[arg-type]
        return value
    raise refuse(f"must be a number, got {value!r:.60}", f"write {_BOUNDS}")


def _choice(value: object) -> object:
    return value if value is None or type(value) in (bool, str) else _number(value)


Number = Annotated[Any, BeforeValidator(_number)]


class BoundsSection(Section):
    """What one parameter may be. A list is short for a mapping with `choices` alone."""

    low: Number = Field(default=None, description=_BOUNDS)
    high: Number = Field(default=None, description=_BOUNDS)
    log: Annotated[bool, Strict()] = Field(default=False, description="true or false")
    per_layer: Annotated[bool, Strict()] = Field(default=False, description="true or false")
    choices: tuple[Annotated[Any, BeforeValidator(_choice)], ...] | None = Field(
        default=None, description="[0.5, 0.7, 1.0]"
    )

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: object) -> object:
        return {"choices": value} if isinstance(value, list) else value

    @model_validator(mode="after")
    def _one_form(self) -> BoundsSection:
        if self.choices is not None:
            if self.low is not None or self.high is not None or self.log or self.per_layer:
                raise refuse("choices stand alone", f"write {_BOUNDS}")
            if len({repr(choice) for choice in self.choices}) < max(2, len(self.choices)):
                raise refuse("choices are at least two, and all different", f"write {_BOUNDS}")
            return self
        if self.low is None or self.high is None or not self.low < self.high:
            raise refuse(f"bounds need low below high, got low: {self.low}, high: {self.high}", f"write {_BOUNDS}")
        if self.log and self.low <= 0:
            raise refuse(f"on a log scale low is above 0, got {self.low}", "write low: 0.01, or leave log out")
        return self

    @property
    def extremes(self) -> tuple[Value, ...]:
        """Values that must all be legal: the ends, or every choice."""
        return self.choices if self.choices is not None else (self.low, self.high)


class BudgetSection(Section):
    """What the search of one arm may spend; the same for every arm."""

    trials: Count = Field(description="trials: 50")


class TuningDataSection(Section):
    """At most `limit` problems or documents of a split, drawn by a seed that the split fixes."""

    split: Literal["validation", "test"] = Field(description="validation or test")
    limit: Count | None = Field(default=200, description="a whole number from 1, or null for all")


class TextFilesSection(Section):
    """Two files of JSON lines, each line with a `text`."""

    validation: Text = Field(description="a file of JSON lines with a text each, such as validation.jsonl")
    test: Text = Field(description="a file of JSON lines with a text each, such as test.jsonl")


class TuneSection(Section):
    """What `tokenscale tune` does."""

    budget: BudgetSection = Field(description="budget: {trials: 50}")
    objective: Literal["perplexity", "accuracy"] = Field(description="objective: perplexity, or accuracy")
    parameters: dict[Name, Annotated[dict[Text, BoundsSection], Field(min_length=1)]] = Field(
        min_length=1, description="parameters: {roe: {tau: {low: 0.0, high: 0.5, per_layer: true}}}"
    )
    model: Name | None = Field(default=None, description="the name of one of the recipe's models")
    task: TaskName | None = Field(default=None, description="the name of one of the recipe's tasks")
    texts: Literal["stdlib_docs"] | None = Field(
        default=None, description="stdlib_docs, or null for the task's problems"
    )
    text_files: TextFilesSection | None = Field(default=None, description="{validation: a.jsonl, test: b.jsonl}")
    piece_tokens: Annotated[int, Strict(), Field(ge=2)] = Field(default=256, description="a whole number from 2")
    data: TuningDataSection = Field(default=TuningDataSection(split="validation"), description=_SPLIT)
    test: TuningDataSection = Field(default=TuningDataSection(split="test"), description=_SPLIT)

    @model_validator(mode="after")
    def _apart(self) -> TuneSection:
        if self.data.split == self.test.split:
            message = f"tunes on the split {self.data.split!r} and tests on it too"
            raise refuse(message, "write data: {split: validation} and test: {split: test}")
        if self.texts is not None and self.text_files is not None:
            raise refuse("has texts and text_files", "keep one of them")
        if self.reads_texts and self.objective == "accuracy":
            raise refuse("texts have no accuracy", "write objective: perplexity, or leave them out")
        return self

    @property
    def reads_texts(self) -> bool:
        """Whether the objective is about texts, not about the task's problems."""
        return self.texts is not None or self.text_files is not None


def place_of(pipeline: Pipeline, name: str) -> tuple[int, str]:
    """The stage and parameter that "tau" or "RoE.tau" names in a pipeline with its defaults written out.

    Raises UnknownNameError where there is none, and where a bare name stands in several stages.
    """
    stage, _, parameter = name.rpartition(".")
    known = [(i, type(s).__name__, p) for i, s in enumerate(pipeline) for p in plugins.parameters(type(s))]
    found = [(i, p) for i, cls, p in known if p == parameter and stage in ("", cls)]
    if len(found) == 1:
        return found[0]
    if found:
        full = [f"{cls}.{p}" for _, cls, p in known if p == parameter]
        raise UnknownNameError(f"{name!r:.80} stands in several stages", f"write {' or '.join(full)}")
    names = [p if not stage else f"{cls}.{p}" for _, cls, p in known]
    hint = nearest(name, names) if names else "tune another arm: this one has no parameters"
    raise UnknownNameError(f"{pipeline} has no parameter {name!r:.80}", hint)


def with_values(pipeline: Pipeline, values: Mapping[str, Any]) -> Pipeline:
    """A pipeline, its defaults written out, with some parameters changed. Raises what its stages raise."""
    stages: list[Stage] = list(pipeline)
    for name, value in values.items():
        index, parameter = place_of(pipeline, name)
        stages[index] = replace(stages[index], **{parameter: value})  # type: ignore[type-var]
    return Pipeline(*stages)


def tune_problems(
    tune: TuneSection, arms: Mapping[str, ArmSection], models: Mapping[str, Any], tasks: Mapping[str, TaskSection],
    source: Source,
) -> list[Problem]:  # fmt: skip
    """What of `tune:` does not fit the rest of the recipe."""
    problems = list(_unnamed(tune, models, tasks, source))
    for name, parameters in tune.parameters.items():
        loc: Loc = ("tune", "parameters", name)
        if name not in arms:
            place = source.keys.get(loc, source.place(loc))
            problems.append(Problem(place, f"tune.parameters names no arm {name!r:.80}", nearest(name, arms)))
            continue
        pipeline = arms[name].pipeline.resolved()
        for parameter, bounds in parameters.items():
            if problem := _misfit(pipeline, parameter, bounds, tune.objective):
                where = (*loc, parameter)
                problems.append(Problem(source.keys.get(where, source.place(where)), *problem))
    return problems


def _unnamed(
    tune: TuneSection, models: Mapping[str, Any], tasks: Mapping[str, Any], source: Source
) -> Iterator[Problem]:
    """A model or task that does not exist, or that is not named where there are several."""
    wanted = [("model", tune.model, models)]
    wanted += [("task", tune.task, tasks)] if not tune.reads_texts else []
    for key, given, known in wanted:
        if given is not None and given not in known:
            place = source.place(("tune", key))
            yield Problem(place, f"tune.{key} names no {key} {given!r:.80}", nearest(given, known))
        elif given is None and len(known) > 1:
            hint = f"write tune.{key}: {next(iter(known))}"
            yield Problem(source.place(("tune",)), f"tune: the recipe has {len(known)} {key}s, and one is tuned", hint)


def _misfit(pipeline: Pipeline, name: str, bounds: BoundsSection, objective: str) -> tuple[str, str] | None:
    """What is wrong with a parameter and its bounds, and the fix."""
    try:
        index, parameter = place_of(pipeline, name)
        stage = pipeline[index]
        if objective == "perplexity" and stage not in (pipeline.proposer, pipeline.aggregator):
            message = f"{type(stage).__name__}.{parameter} does not change the perplexity of given tokens"
            return message, "write objective: accuracy, or tune the proposer or the aggregator"
        if bounds.per_layer and not (isinstance(stage, NoisyRows) and parameter == "tau"):
            return (
                f"{name!r:.80} has no value per layer",
                "leave per_layer out: it is for the tau of RoE and AdaptiveRoE",
            )
        for value in bounds.extremes:
            with_values(pipeline, {name: (value,) if bounds.per_layer else value})
    except TokenscaleError as error:
        return error.message, error.hint
    return None
