"""The shipped suites on transformers models: every family keeps the promises that the toy keeps."""

from __future__ import annotations

import pytest

from tests.models.tiny import FAMILIES, MOE, tiny
from tokenscale.models.hf import wrap
from tokenscale.testing import check_language_model, check_proposer
from tokenscale.token_level.plain import Plain
from tokenscale.token_level.roe import RoE

TOLERANCE = 2e-5  # float32, sums in another order; the suite's texts are longer than the reference tests'


@pytest.mark.parametrize("name", FAMILIES)
def test_models_conform(name: str) -> None:
    check_language_model(wrap(tiny(name)), atol=TOLERANCE)


@pytest.mark.parametrize("name", MOE)
def test_roe_conforms(name: str) -> None:
    check_proposer(RoE(4, tau=1.0), wrap(tiny(name)), atol=TOLERANCE)


def test_plain_conforms_on_a_dense_model() -> None:
    check_proposer(Plain(), wrap(tiny("llama")), atol=TOLERANCE)
