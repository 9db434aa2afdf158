"""What proposers with many options share: checks with one error each, a short text form, missing capabilities."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from tokenscale.core.errors import ArgumentError, CapabilityError, at_least
from tokenscale.core.model import DROPOUT, LanguageModel
from tokenscale.core.stage import Stage


def one_of(owner: str, name: str, value: object, allowed: Sequence[str]) -> None:
    """Refuses a value that is none of the allowed words."""
    if value not in allowed:
        words = " or ".join([", ".join(map(repr, allowed[:-1])), repr(allowed[-1])])
        raise ArgumentError(f"{owner}({name}={value!r}): {name} must be {words}", f"write {name}={allowed[0]!r}")


def at_least_or_none(owner: str, name: str, value: int | None, least: int) -> None:
    """Refuses an integer below `least`, and what is neither an integer nor None."""
    if value is not None:
        at_least(owner, name, value, least)


def brief(stage: Stage) -> str:
    """A stage as the text form shows it: numbers always, other parameters where they differ from their defaults."""
    shown = []
    for field in dataclasses.fields(stage):  # type: ignore[arg-type]
        value = getattr(stage, field.name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if field.init and (number or value != field.default):
            shown.append(f"{field.name}={value!r}")
    return f"{type(stage).__name__}({', '.join(shown)})"


def require(lm: LanguageModel, owner: str, capability: str, does: str) -> None:
    """Refuses a model that lacks what a proposer does, and names what works there."""
    if capability in lm.capabilities:
        return
    rows = "MCDropout(n=4), " if DROPOUT in lm.capabilities else ""
    raise CapabilityError(
        f"{owner} {does}, which {lm.name} does not allow: {lm.lacks(capability)}",
        f"on this model use {rows}Greedy(), Sample(temperature=0.7) or SelfConsistency(k=5)",
    )
