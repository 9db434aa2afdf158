"""What the tests of the benchmark share: tiny models, opened once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tokenscale.bench.bandwidth import Limits
from tokenscale.bench.random_models import numbers_tokenizer, random_model
from tokenscale.bench.subject import Subject, twin
from tokenscale.models.hf import wrap


@pytest.fixture(scope="session")
def tiny() -> Subject:
    """A random OLMoE of two layers, with weights so large that a wrong expert or gate weight shows."""
    model = random_model("random-olmoe-tiny")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
    return Subject("random-olmoe-tiny", wrap(model, numbers_tokenizer(128)), twin(model), threads=1, rounds=1)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """What a test sets does not reach the next."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def limits() -> Limits:
    """A machine of round numbers."""
    return Limits(1, "made up", bytes_per_second=1e9, flops_per_second=1e11, ways={"made up": 1e9})
