"""What can stand in a pipeline: kinds, and the base of all stages."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable
from enum import Enum
from typing import Any, ClassVar, NoReturn

from tokenscale.core.errors import PipelineError


class Kind(Enum):
    """Places of a stage, from the innermost to the outermost; a scorer is a parameter of other stages."""

    PROPOSER = 0
    AGGREGATOR = 1
    CONSTRAINT = 2
    DECODER = 3
    PROMPTING = 4
    SEARCH = 5
    CHOOSING = 6
    SCORER = 7


ONE_PLACE = frozenset({Kind.PROPOSER, Kind.AGGREGATOR, Kind.CONSTRAINT, Kind.DECODER})

_compose: Callable[[Any, Any], Any] | None = None


def set_composer(compose: Callable[[Any, Any], Any]) -> None:
    """`pipeline.py` says here what `|` makes, so that core need not know it."""
    global _compose
    _compose = compose


class Composable:
    """Anything that can stand in a pipeline: `a | b` puts b around a."""

    def __or__(self, other: object) -> Any:
        if not isinstance(other, Composable) or _compose is None:
            return NotImplemented
        return _compose(self, other)


class Stage(Composable, ABC):
    """One part of a pipeline: a frozen dataclass with its `kind`.

    `reads_text`: it needs candidates' text or text prompts, and so a tokenizer. `signals`: per-token
    records that it reads (names of `core.signals.SIGNALS`).
    """

    kind: ClassVar[Kind]
    reads_text: ClassVar[bool] = False

    @property
    def signals(self) -> frozenset[str]:
        return frozenset()

    def run(self, *arguments: Any, **options: Any) -> NoReturn:
        """Raises PipelineError: pipelines run, and one stage is soon made one."""
        name = type(self).__name__
        raise PipelineError(f"{name} is one stage, and only pipelines run", f"write Pipeline({name}(...)).run(...)")


def require_stage(value: object) -> Stage:
    """Refuses what cannot stand in a pipeline: a class instead of an instance is the common slip."""
    if isinstance(value, Stage):
        return value
    if isinstance(value, type) and issubclass(value, Stage):
        raise PipelineError(f"{value.__name__} is a class, not a stage", f"write {value.__name__}(...) with brackets")
    raise PipelineError(f"{value!r:.80} is not a stage", "pass strategies such as RoE(n=4) or SelfConsistency(k=5)")
