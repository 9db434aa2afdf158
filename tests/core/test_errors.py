"""Errors show what was given and the fix."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tokenscale.core import errors


def test_an_error_shows_message_and_fix() -> None:
    assert str(errors.ArgumentError("n is 0", "write n=1")) == "n is 0\n  fix: write n=1"
    assert str(errors.ModelError("no weights")) == "no weights"


@pytest.mark.parametrize("name", [n for n in dir(errors) if n.endswith("Error") and n != "TokenscaleError"])
def test_every_error_is_one_of_ours(name: str) -> None:
    assert issubclass(getattr(errors, name), errors.TokenscaleError)


def test_the_nearest_name_is_offered_whatever_its_case() -> None:
    assert errors.nearest("roe", ["RoE", "Greedy"]) == "did you mean 'RoE'? known: Greedy, RoE"
    assert errors.nearest("zzz", ["RoE", "Greedy"]) == "known: Greedy, RoE"


def test_an_unknown_name_says_where() -> None:
    error = errors.unknown("keyword", "tua", ["tau", "n"], "RoE")
    assert isinstance(error, errors.PipelineError)
    assert str(error) == "unknown keyword 'tua' in RoE\n  fix: did you mean 'tau'? known: n, tau"
    assert errors.unknown("key", "x", ["y"]).message == "unknown key 'x'"


def test_at_least_refuses_small_numbers_and_other_things() -> None:
    errors.at_least("RoE", "n", 1, 1)
    with pytest.raises(errors.ArgumentError, match=r"RoE\(n=0\): n must be at least 1\n  fix: write n=1, or more"):
        errors.at_least("RoE", "n", 0, 1)
    for wrong in (1.0, "1", True, None):
        with pytest.raises(errors.ArgumentError, match="n must be an integer"):
            errors.at_least("RoE", "n", wrong, 1)  # type: ignore[arg-type]


def test_finite_takes_numbers_and_nothing_else() -> None:
    assert errors.finite("RoE", "tau", 1, 0.3) == 1.0
    assert errors.finite("RoE", "tau", np.float32(0.5), 0.3) == 0.5
    for wrong in (math.nan, math.inf, -math.inf, "0.3", True, None, 1j):
        with pytest.raises(errors.ArgumentError, match=r"tau must be a finite number\n  fix: write tau=0.3"):
            errors.finite("RoE", "tau", wrong, 0.3)


def test_a_number_in_quotes_is_told_to_lose_them() -> None:
    with pytest.raises(errors.ArgumentError, match=r"k must be an integer\n  fix: write k=5$"):
        errors.at_least("Vote", "k", "5", 1)  # type: ignore[arg-type]
