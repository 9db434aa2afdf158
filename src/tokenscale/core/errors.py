"""Every refusal of tokenscale is one of these classes: what was given, where, and the fix."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from numbers import Real


class TokenscaleError(Exception):
    """Base of every error that tokenscale raises on purpose.

    `message` says what was given and where; `hint` says the fix. Both are shown.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  fix: {self.hint}" if self.hint else self.message


class ArgumentError(TokenscaleError, ValueError):
    """A parameter of a strategy, a run or a function is out of its range."""


class PipelineError(TokenscaleError, ValueError):
    """Stages that cannot be combined, or a text or spec that does not parse."""


class UnknownNameError(PipelineError):
    """A strategy, keyword or key that does not exist; the nearest known name is offered."""


class PromptError(TokenscaleError, ValueError):
    """A prompt that cannot be run: empty, longer than the context, not text where text is needed."""


class CapabilityError(TokenscaleError):
    """The model (or tokenizer) lacks what a strategy needs."""


class ModelError(TokenscaleError):
    """A model that cannot be loaded or does not behave as its class promises."""


class RoutingError(ModelError):
    """Routing noise that did not reach every router it was meant for."""


class OutOfMemoryError(TokenscaleError):
    """Memory that ran out where nothing smaller could be tried: a single search does not fit."""


class RecipeError(TokenscaleError, ValueError):
    """A recipe with a wrong key, type, value or indentation; the place is in the message."""


class TokenscaleWarning(UserWarning):
    """Something that ran but is probably not what was meant."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint that offers the nearest known name and lists all of them."""
    names = sorted(known)
    folded = {n.lower(): n for n in names}
    close = difflib.get_close_matches(name.lower(), list(folded), n=1, cutoff=0.5)
    guess = f"did you mean {folded[close[0]]!r}? " if close else ""
    return f"{guess}known: {', '.join(names)}"


def unknown(kind: str, name: str, known: Iterable[str], where: str = "") -> UnknownNameError:
    """The error for a name that is not known; `kind` is what the name should have been."""
    place = f" in {where}" if where else ""
    return UnknownNameError(f"unknown {kind} {name!r}{place}", nearest(name, known))


def at_least(owner: str, name: str, value: object, least: int) -> None:
    """Refuses an integer parameter below `least`, and anything that is not an integer."""
    if isinstance(value, bool) or not isinstance(value, int):
        meant = f"{name}={value}" if isinstance(value, str) and value.isdecimal() else f"{name}={least}, or more"
        raise ArgumentError(f"{owner}({name}={value!r}): {name} must be an integer", f"write {meant}")
    if value < least:
        message = f"{owner}({name}={value}): {name} must be at least {least}"
        raise ArgumentError(message, f"write {name}={least}, or more")


def finite(owner: str, name: str, value: object, example: float) -> float:
    """Refuses what is not a finite number, and returns it as a float. `example` is a value that would do."""
    if isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise ArgumentError(f"{owner}({name}={value!r}): {name} must be a finite number", f"write {name}={example}")
