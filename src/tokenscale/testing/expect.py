"""What the suites share: one way to fail, and the promises of every stage."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import torch
from torch import Tensor

from tokenscale.core.stage import Kind, Stage


def expect(condition: bool, promise: str) -> None:
    """Fails with the promise that was broken. Not `assert`, which `python -O` drops."""
    if not condition:
        raise AssertionError(promise)


def expect_close(found: Tensor, wanted: Tensor, atol: float, promise: str) -> None:
    """Equal within `atol`, infinities at the same places; `atol` 0 means to the last bit."""
    expect(found.shape == wanted.shape, f"{promise}: shape {tuple(found.shape)}, not {tuple(wanted.shape)}")
    infinite = wanted.isinf()
    same = torch.equal(found[infinite], wanted[infinite])
    worst = (found - wanted)[~infinite].abs()
    # A NaN is in no order, so `not ... > atol` would let it pass.
    within = bool((worst <= atol).all())
    expect(same and within, f"{promise}: off by {worst.max().item() if worst.numel() else 'an infinity'}, atol={atol}")


def check_stage(stage: Stage) -> None:
    """A stage is a frozen dataclass that compares by value and can be hashed."""
    name = type(stage).__name__
    expect(isinstance(stage, Stage), f"{name} is a Stage")
    expect(isinstance(getattr(stage, "kind", None), Kind), f"{name} has a kind, such as `kind = Kind.CHOOSING`")
    parameters = getattr(stage, "__dataclass_params__", None)
    expect(parameters is not None and parameters.frozen, f"{name} is a frozen dataclass")
    copy = dataclasses.replace(cast(Any, stage))
    expect(copy == stage and hash(copy) == hash(stage), f"{name} equals a copy of itself, and so does its hash")
