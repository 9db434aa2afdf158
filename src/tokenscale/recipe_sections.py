"""The mappings that a recipe is made of: their keys, types and defaults, and what is refused by name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

import torch
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    Strict,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from tokenscale.core.errors import TokenscaleError, nearest
from tokenscale.pipeline import Pipeline

# How many problems the splits of each task have.
TASKS: Mapping[str, Mapping[str, int]] = {"arithmetic": {"validation": 2000, "test": 2000}}
FIXED_WIDTH = "write a number, such as SelfConsistency(k=5); the report shows what each arm costs"
ONE_ARM_EACH = "write one arm per value, such as roe4: RoE(n=4) and roe8: RoE(n=8)"
_QUOTED = re.compile(r"""\"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'""", re.DOTALL)


def refuse(message: str, hint: str) -> PydanticCustomError:
    """An error that a validator raises, with its fix."""
    return PydanticCustomError("refused", "{message}", {"message": message, "hint": hint})


def _name(name: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", name):
        return name
    hint = "use at most 64 letters, digits, - and _; in {...}, put a pipeline that holds a comma in quotes"
    raise refuse(f"{name!r:.80} is not a name", hint)


def _task_name(name: str) -> str:
    if name in TASKS:
        return name
    raise refuse(f"unknown task {name!r:.80}", nearest(name, TASKS))


def _pipeline(value: object) -> Pipeline:
    """An arm's pipeline from its text or spec; what later versions bring is refused by name."""
    auto, swept = _later(value)
    if auto:
        raise refuse("`auto` widths are not known yet to this version", FIXED_WIDTH)
    if swept:
        raise refuse("a `$` stands for a value of a sweep, which this version does not know yet", ONE_ARM_EACH)
    try:
        if isinstance(value, str):
            return Pipeline.parse(value)
        if isinstance(value, list):
            return Pipeline.from_spec(value)
    except TokenscaleError as error:
        raise refuse(error.message, error.hint) from None
    raise refuse(
        f"a pipeline is text or a spec list, got {value!r:.60}", 'write it as text: "RoE(n=4) | SelfConsistency(k=5)"'
    )


def _later(value: object) -> tuple[bool, bool]:
    """Whether a pipeline has a width `auto`, and a value `$name`; what stands in quotes is text."""
    if isinstance(value, str):
        bare = _QUOTED.sub("''", value)
        return re.search(r"[=(,\[]\s*auto\s*[,)\]]", bare) is not None, "$" in bare
    values = list(_values(value))
    return "auto" in values, any(re.fullmatch(r"\$\w+", word) for word in values)


def _values(spec: object) -> Iterator[str]:
    """The strings that are values in a spec."""
    if isinstance(spec, str):
        yield spec
    for part in spec.values() if isinstance(spec, Mapping) else spec if isinstance(spec, list) else ():
        yield from _values(part)


def _dtype(name: str) -> str:
    found = getattr(torch, name, None)
    if name == "auto" or (isinstance(found, torch.dtype) and found.is_floating_point):
        return name
    raise refuse(f"torch has no floating-point dtype {name!r:.60}", "write bfloat16, float16 or float32, or null")


def _plain_pipeline(pipeline: Pipeline) -> object:
    return pipeline.to_spec()


def _bound(value: object) -> object:
    if value == "auto" or (type(value) is int and value >= 1):
        return value
    raise refuse(f"must be auto or a whole number from 1, got {value!r:.60}", "write auto")


Text = Annotated[str, Strict()]
Count = Annotated[int, Strict(), Field(ge=1)]
Name = Annotated[Text, AfterValidator(_name)]
Bound = Annotated[Literal["auto"] | int, BeforeValidator(_bound)]
TaskName = Annotated[Text, AfterValidator(_task_name)]
ArmPipeline = Annotated[Pipeline, BeforeValidator(_pipeline), PlainSerializer(_plain_pipeline)]


class Section(BaseModel):
    """A mapping of a recipe. A field's description is the fix that its errors offer."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)


class ModelSection(Section):
    """Where a model comes from: the parameters of `load`."""

    path: Text = Field(description="a folder, a hub id, or demo or demo-noisy")
    revision: Text | None = Field(default=None, description="a hub revision, or null")
    dtype: Annotated[Text, AfterValidator(_dtype)] | None = Field(default=None, description="bfloat16, or null")
    device_map: Text | None = Field(default=None, description="a device such as cuda:0, auto, or null")
    attn_implementation: Text | None = Field(default=None, description="eager, sdpa, or null")


class TaskSection(Section):
    """Which problems of a task are reported. `limit` draws a random sample, the same for every arm and seed."""

    split: Literal["validation", "test"] = Field(default="test", description="validation or test")
    limit: Count | None = Field(default=None, description="a whole number of problems from 1, or null for all")


class PromptSection(Section):
    """How a problem becomes a prompt. `few_shot` solved problems of the validation split come first."""

    chat: Literal["auto", True, False] = Field(default="auto", description="auto, true or false")
    system: Text | None = Field(default=None, description="text, or null")
    few_shot: Annotated[int, Strict(), Field(ge=0)] | None = Field(default=None, description="a whole number, or null")
    chat_template_kwargs: dict[str, bool | int | float | str | None] = Field(
        default={}, description="what the chat template is given, such as {enable_thinking: false}"
    )


class GenerationSection(Section):
    """Bounds of every answer."""

    max_new_tokens: Count = Field(default=256, description="a whole number from 1")
    stop_strings: tuple[Annotated[Text, Field(min_length=1)], ...] = Field(
        default=(), description='a list such as ["\\nQ:"]'
    )


class ArmSection(Section):
    """One competitor. Text and spec lists are short for a mapping with `pipeline` alone."""

    pipeline: ArmPipeline = Field(description='text such as "RoE(n=4) | SelfConsistency(k=5)"')
    prompt: PromptSection | None = Field(default=None, description="a mapping like the recipe's own prompt, or null")

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: object) -> object:
        return value if isinstance(value, Mapping) else {"pipeline": value}


class RunSection(Section):
    """How a run uses the machine; changes results by near-ties of tokens and of router choices at most."""

    batch_size: Bound = Field(default="auto", description="auto")
    max_batch_tokens: Bound = Field(default="auto", description="auto")
    workers: Count = Field(default=1, description="1")

    @field_validator("workers")
    @classmethod
    def _one_worker(cls, value: int) -> int:
        if value > 1:
            raise refuse("several workers are not known yet to this version", "write workers: 1")
        return value
