"""Every causal mixture-of-experts architecture of transformers is in the zoo, or left out for a reason."""

from __future__ import annotations

import pytest
import torch

from tests.models.zoo import NOT_MOE, SAME, SMALL, ZOO, causal_class, scan, tiny_model


def test_a_new_architecture_turns_this_red() -> None:
    """Put it in SMALL with a small configuration, or in NOT_MOE with the reason why it has no experts."""
    assert sorted(set(scan()) - {*SMALL, *SAME, *NOT_MOE}) == []
    assert sorted({*SMALL, *SAME, *NOT_MOE} - set(scan())) == []
    assert len(SMALL) + len(SAME) + len(NOT_MOE) == len(scan())


def test_at_least_fifty_architectures() -> None:
    assert len(ZOO) >= 50


def test_models_that_share_a_class_are_tested_once() -> None:
    for name, other in SAME.items():
        assert causal_class(name) is causal_class(other)


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
@torch.no_grad()
def test_every_model_runs(name: str) -> None:
    logits = tiny_model(name)(torch.arange(5, 14)[None]).logits
    assert logits.shape == (1, 9, 101)
    assert logits.isfinite().all()
    assert logits.std() > 0.1
