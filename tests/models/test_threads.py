"""Threads that run one model take turns, and leave it as it was."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import tokenscale as ts
from tests.models.zoo import tiny_model

PROMPTS = [ts.Prompt(token_ids=(i, 6, 7, 8)) for i in range(3, 6)]


@pytest.fixture
def hasty() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hasty")
def test_threads_of_one_model() -> None:
    model = tiny_model("olmoe").eval()
    attention = model.config._attn_implementation

    def answers(lm: ts.LanguageModel) -> list[tuple[int, ...]]:
        return [r.winner.token_ids for r in ts.Pipeline(ts.RoE(n=3)).run(lm, PROMPTS, max_new_tokens=8)]

    wanted = answers(ts.wrap(model))
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(answers, [ts.wrap(model) for _ in range(3)])) == [wanted] * 3
    assert model.config._attn_implementation == attention
