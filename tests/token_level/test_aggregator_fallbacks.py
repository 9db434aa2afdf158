"""What a run makes of rows without a common token: it goes on with the first row, and counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tokenscale.core.strategy import Aggregator
from tokenscale.models.toy import ToyModel
from tokenscale.pipeline import Pipeline
from tokenscale.token_level.aggregators import MeanLogit, MeanProbability, MedianProbability, MinProbability, Weighted
from tokenscale.token_level.roe import RoE

NEVER = float("-inf")
NOISY = RoE(3, tau=0.5, clean_layers=0)


class Divided(ToyModel):
    """In every second step row 0 allows the odd tokens alone, and the other rows the even ones."""

    steps = 0

    def step(self, *args: Any, **options: Any) -> Any:
        step = super().step(*args, **options)
        if self.steps % 2 == 0:
            odd = torch.arange(step.logits.shape[-1]) % 2 == 1
            step.logits[:, 0, ~odd] = NEVER
            step.logits[:, 1:, odd] = NEVER
        self.steps += 1
        return step


@pytest.mark.parametrize("aggregator", [MinProbability(), MeanLogit()], ids=repr)
def test_fallbacks_are_counted_and_the_clean_row_decides_there(aggregator: Aggregator) -> None:
    pipe = Pipeline(NOISY, aggregator)
    [result] = pipe.run(Divided(), ["ab"], max_new_tokens=6, seed=3)
    tokens = result.winner.token_ids
    assert len(tokens) == 6
    assert result.fallbacks == 3
    assert all(token % 2 == 1 for token in tokens[::2])
    assert result.winner.log_prob > NEVER


@pytest.mark.parametrize("aggregator", [MeanProbability(), Weighted((1, 1, 1))], ids=repr)
def test_what_keeps_any_token_never_falls_back(aggregator: Aggregator) -> None:
    [result] = Pipeline(NOISY, aggregator).run(Divided(), ["ab"], max_new_tokens=6)
    assert result.fallbacks == 0


def test_two_of_three_rows_are_a_majority_for_the_median() -> None:
    [result] = Pipeline(NOISY, MedianProbability()).run(Divided(), ["ab"], max_new_tokens=6)
    assert result.fallbacks == 0
    assert all(token % 2 == 0 for token in result.winner.token_ids[::2])
