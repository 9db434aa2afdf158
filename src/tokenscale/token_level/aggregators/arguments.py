"""Checks of aggregators' arguments, and a logarithm that takes zero."""

from __future__ import annotations

import math

from tokenscale.core.errors import ArgumentError, finite


def share(owner: str, name: str, value: object, example: float) -> float:
    """Refuses what is not a number in [0, 1], and returns it as a float."""
    number = finite(owner, name, value, example)
    if not 0 <= number <= 1:
        message = f"{owner}({name}={value!r}): {name} must be at least 0 and at most 1"
        raise ArgumentError(message, f"write {name}={example}")
    return number


def positive_share(owner: str, name: str, value: object, example: float) -> float:
    """Refuses what is not a number in (0, 1], and returns it as a float."""
    number = finite(owner, name, value, example)
    if not 0 < number <= 1:
        message = f"{owner}({name}={value!r}): {name} must be above 0 and at most 1"
        raise ArgumentError(message, f"write {name}={example}")
    return number


def log(value: float) -> float:
    """The natural logarithm, of zero minus infinity."""
    return math.log(value) if value > 0 else float("-inf")
