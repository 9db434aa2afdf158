"""The shipped suites on transformers models: every family keeps the promises that the toy keeps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from tests.models.test_forms_zoo import CHANGES
from tests.models.tiny import FAMILIES, MOE, tiny
from tests.models.zoo import ZOO, tiny_model
from tokenscale.models.hf import wrap
from tokenscale.testing import check_language_model, check_proposer
from tokenscale.token_level.plain import Plain
from tokenscale.token_level.roe import RoE

TOLERANCE = 2e-5  # float32, sums in another order; the suite's texts are longer than the reference tests'


ALIKE = {"olmoe-renormalised", "mixtral", "qwen3-moe"}


def quick(names: Iterable[str], left: set[str]) -> list[Any]:
    """Cases, of which those that are `left` run in `make test-all` only."""
    return [pytest.param(name, marks=[pytest.mark.slow] if name in left else []) for name in names]


@pytest.mark.parametrize("name", quick(FAMILIES, ALIKE))
def test_models_conform(name: str) -> None:
    check_language_model(wrap(tiny(name)), atol=TOLERANCE)


OUTSIDE = {
    "deepseek_v4": "layers whose table gives a token one expert twice run fewer than top-k",
    "longcat_flash": "experts that cost nothing are not marked",
}
"""Architectures that the suite's counts do not fit, and why."""
EXPANDED = ("qwen3_next", "deepseek_v32", "minimax")


@pytest.mark.parametrize("name", quick([name for name in ZOO if name not in OUTSIDE], {*ZOO} - {*EXPANDED}))
def test_every_architecture_conforms(name: str) -> None:
    check_language_model(wrap(tiny_model(name, **CHANGES.get(name, {}))), atol=TOLERANCE)


@pytest.mark.parametrize("name", quick(EXPANDED, {"deepseek_v32", "minimax"}))
def test_roe_conforms_on_the_expanded_form(name: str) -> None:
    check_proposer(RoE(4, tau=1.0, clean_layers=0), wrap(tiny_model(name, **CHANGES.get(name, {}))), atol=TOLERANCE)


@pytest.mark.parametrize("name", quick(MOE, ALIKE))
def test_roe_conforms(name: str) -> None:
    check_proposer(RoE(4, tau=1.0), wrap(tiny(name)), atol=TOLERANCE)


def test_plain_conforms_on_a_dense_model() -> None:
    check_proposer(Plain(), wrap(tiny("llama")), atol=TOLERANCE)
