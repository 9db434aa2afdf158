"""Stages as plain JSON and YAML values: `[{"RoE": {"n": 4, "tau": 0.3}}, {"SelfConsistency": {"k": 5}}]`.

A stage is a mapping from its name to its arguments, at the top and as an argument alike. What a file
defines, such as a function, is `{"ref": "path/to/file.py:name"}` as an argument. Lists are tuples.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tokenscale import plugins
from tokenscale.core.errors import PipelineError, TokenscaleError, UnknownNameError
from tokenscale.core.stage import Stage

REF = "ref"
MAX_DEPTH = 20
_FORM = 'write {"RoE": {"n": 4}}'


def write(stages: Iterable[Stage]) -> list[dict[str, object]]:
    """Stages as plain values, with all their parameters. Raises PipelineError for values without a text form."""
    return [_write_stage(stage) for stage in stages]


def _write_stage(stage: Stage) -> dict[str, object]:
    cls = type(stage)
    arguments = {name: _write_value(getattr(stage, name), f"{cls.__name__}.{name}") for name in plugins.parameters(cls)}
    return {plugins.name_of(cls): arguments}


def _write_value(value: object, where: str) -> object:
    if isinstance(value, Stage):
        return _write_stage(value)
    if isinstance(value, tuple | list):
        return [_write_value(v, where) for v in value]
    if isinstance(value, float):
        return float(value)
    if value is None or isinstance(value, str | bool | int):
        return value
    try:
        return {REF: plugins.name_of(value)}
    except PipelineError as error:
        raise PipelineError(f"{where}: {error.message}", error.hint) from None


def read(data: object) -> list[Stage]:
    """The stages that `write` wrote, or that a person did. Raises PipelineError, which names the stage's number."""
    if not isinstance(data, list | tuple):
        raise PipelineError(f"a spec is a list of stages, got {data!r:.80}", f"{_FORM} in a list")
    return [_located(item, number) for number, item in enumerate(data, 1)]


def _located(item: object, number: int) -> Stage:
    try:
        return _read_stage(item, 0)
    except TokenscaleError as error:
        kind = UnknownNameError if isinstance(error, UnknownNameError) else PipelineError
        raise kind(f"{error.message}, in stage {number} of the spec", error.hint) from error


def _read_stage(item: object, depth: int) -> Stage:
    if not isinstance(item, Mapping) or len(item) != 1:
        raise PipelineError(f"a stage is a mapping from one name to its arguments, got {item!r:.80}", _FORM)
    [(name, arguments)] = item.items()
    cls = plugins.lookup(str(name))
    if arguments is not None and not isinstance(arguments, Mapping):
        message = f"the arguments of {cls.__name__} are a mapping, got {arguments!r:.80}"
        raise PipelineError(message, f"write {{{cls.__name__}: {{name: value}}}}")
    return plugins.build(cls, {str(key): _read_value(v, depth + 1) for key, v in (arguments or {}).items()})


def _read_value(value: object, depth: int) -> object:
    if depth > MAX_DEPTH:
        raise PipelineError(f"more than {MAX_DEPTH} values in values", "write it flatter")
    if isinstance(value, Mapping):
        return plugins.load(str(value[REF])) if set(value) == {REF} else _read_stage(value, depth)
    if isinstance(value, list | tuple):
        return tuple(_read_value(v, depth + 1) for v in value)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise PipelineError(f"{value!r:.80} has no place in a spec", "use numbers, strings, lists and stages")
