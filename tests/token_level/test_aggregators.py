"""The two means keep every invariant of the suite, and equal worked examples."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, logsumexp

from tokenscale.core.errors import ModelError
from tokenscale.core.strategy import Rows, all_valid
from tokenscale.testing import INVARIANTS, check_aggregator
from tokenscale.testing.aggregator import Case
from tokenscale.token_level.aggregators import MeanLogit, MeanProbability


def mean_probability(logits: np.ndarray) -> np.ndarray:
    return logsumexp(log_softmax(logits, -1), axis=0) - np.log(len(logits))


def mean_logit(logits: np.ndarray) -> np.ndarray:
    """From raw logits: constants of rows cancel, which is the invariant the aggregator takes care of otherwise."""
    mean = logits.mean(0)
    return mean - logsumexp(mean)


def test_mean_probability_keeps_every_invariant() -> None:
    check_aggregator(MeanProbability(), mean_probability)


def test_mean_logit_keeps_every_invariant_but_the_upper_bound() -> None:
    """A product of experts is likelier where rows agree than any of them finds it."""
    check_aggregator(MeanLogit(), mean_logit, without={"upper bound"})
    agreeing = torch.tensor([[[0.5, 0.4, 0.1], [0.5, 0.1, 0.4]]]).log()
    case = Case(all_valid(agreeing), torch.zeros(1, 2, 1), torch.arange(2), mean_logit)
    with pytest.raises(AssertionError, match="likelier than in every row"):
        INVARIANTS["upper bound"](MeanLogit(), case)


ROWS = torch.tensor([[[0.8, 0.1, 0.1], [0.2, 0.7, 0.1]]]).log()


def test_mean_probability_by_hand() -> None:
    found = MeanProbability().aggregate(all_valid(ROWS)).exp()
    assert found[0].tolist() == pytest.approx([0.5, 0.4, 0.1])


def test_mean_logit_by_hand() -> None:
    found = MeanLogit().aggregate(all_valid(ROWS)).exp()
    means = [math.sqrt(0.16), math.sqrt(0.07), 0.1]
    assert found[0].tolist() == pytest.approx([m / sum(means) for m in means])


def test_small_probabilities_are_not_rounded_to_zero() -> None:
    logits = torch.tensor([[[0.0, -200.0], [0.0, -200.0]]])
    assert MeanProbability().aggregate(all_valid(logits))[0, 1].item() == pytest.approx(-200.0)


@pytest.mark.parametrize("aggregator", [MeanProbability(), MeanLogit()])
def test_a_large_constant_costs_no_precision(aggregator: MeanProbability | MeanLogit) -> None:
    """float32 holds quarters up to 2^22, so the shifted logits are exact; sums of them would not be."""
    quarters = torch.randint(-40, 40, (2, 3, 9), generator=torch.Generator().manual_seed(0)) / 4
    shift = 2.0**21 * torch.tensor([1.0, -1.0, 1.0])[:, None]
    found = aggregator.aggregate(all_valid(quarters + shift))
    torch.testing.assert_close(found, aggregator.aggregate(all_valid(quarters)), rtol=0, atol=1e-5)


def test_a_token_that_one_row_forbids() -> None:
    logits = torch.tensor([[[0.0, float("-inf")], [0.0, 0.0]]])
    assert MeanProbability().aggregate(all_valid(logits)).exp()[0].tolist() == pytest.approx([0.75, 0.25])
    assert MeanLogit().aggregate(all_valid(logits)).exp()[0].tolist() == pytest.approx([1.0, 0.0])


def test_rows_without_a_common_token_have_no_product() -> None:
    logits = torch.tensor([[[0.0, float("-inf")], [float("-inf"), 0.0]]])
    with pytest.raises(ModelError, match=r"every token is impossible in some row.*\n  fix: use MeanProbability\(\)"):
        MeanLogit().aggregate(all_valid(logits))
    assert MeanProbability().aggregate(all_valid(logits)).exp()[0].tolist() == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("aggregator", [MeanProbability(), MeanLogit()])
def test_chunks_of_padding_alone_fold_to_nothing(aggregator: MeanProbability | MeanLogit) -> None:
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    valid = torch.tensor([[True, False, True], [False, False, True]])
    accumulator = aggregator.init(2, 5)
    for row in range(3):
        part = Rows(logits[:, row : row + 1], valid[:, row : row + 1])
        accumulator = aggregator.update(accumulator, part)
    torch.testing.assert_close(aggregator.finish(accumulator), aggregator.aggregate(Rows(logits, valid)))


@pytest.mark.parametrize("aggregator", [MeanProbability(), MeanLogit()])
def test_a_sequence_does_not_depend_on_the_batch_to_the_last_bit(aggregator: MeanProbability | MeanLogit) -> None:
    logits = torch.randn(7, 5, 61, generator=torch.Generator().manual_seed(0)) * 5
    together = aggregator.aggregate(all_valid(logits))
    for b in range(7):
        assert torch.equal(aggregator.aggregate(all_valid(logits[b : b + 1]))[0], together[b])
