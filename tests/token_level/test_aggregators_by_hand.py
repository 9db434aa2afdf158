"""Aggregators on rows that can be worked out by hand, and where numbers get large, small or impossible."""

from __future__ import annotations

import math

import pytest
import torch

from tokenscale.core.starting import all_valid
from tokenscale.core.strategy import Aggregator, Rows
from tokenscale.token_level.aggregators import (
    CleanAnchored,
    ConfidenceWeighted,
    ContrastRows,
    DoLaContrast,
    EntropyWeighted,
    LogSumExpLogits,
    MaxProbability,
    MeanLogit,
    MeanProbability,
    MedianProbability,
    MinProbability,
    TokenVote,
    Weighted,
)

NEVER = float("-inf")
ANY_ROWS: list[Aggregator] = [
    MeanProbability(),
    MeanLogit(),
    LogSumExpLogits(),
    MinProbability(),
    MaxProbability(),
    MedianProbability(),
    TokenVote(),
    ConfidenceWeighted(),
    EntropyWeighted(),
    DoLaContrast(),
    CleanAnchored(0.25),
]
BLIND_TO_CONSTANTS = [a for a in ANY_ROWS if not isinstance(a, LogSumExpLogits)]


def rows(*probabilities: list[float]) -> Rows:
    return all_valid(torch.tensor([probabilities]).log())


def probabilities(aggregator: Aggregator, given: Rows) -> list[float]:
    return aggregator.aggregate(given)[0].exp().tolist()


A, B = [0.8, 0.1, 0.1], [0.2, 0.7, 0.1]


def entropy(p: list[float]) -> float:
    return -sum(x * math.log(x) for x in p)


def shared(parts: list[float]) -> list[float]:
    return [part / sum(parts) for part in parts]


@pytest.mark.parametrize(
    ("aggregator", "wanted"),
    [
        (MeanProbability(), [0.5, 0.4, 0.1]),
        (MeanLogit(), shared([0.4, math.sqrt(0.07), 0.1])),
        (LogSumExpLogits(), [0.5, 0.4, 0.1]),  # both rows' logits are normalised here
        (MinProbability(), [0.5, 0.25, 0.25]),
        (MaxProbability(), [0.5, 0.4375, 0.0625]),
        (MedianProbability(), [0.5, 0.4, 0.1]),
        (TokenVote(smoothing=0.0), [0.5, 0.5, 0.0]),
        (TokenVote(smoothing=0.1), [0.5, 0.49, 0.01]),
        (ConfidenceWeighted(), [(0.64 + 0.14) / 1.5, (0.08 + 0.49) / 1.5, 0.1]),
        (CleanAnchored(0.75), [0.65, 0.25, 0.1]),
        (Weighted((3, 1)), [0.65, 0.25, 0.1]),
        (Weighted((0, 1)), B),
        (ContrastRows(beta=1.0, alpha=0.1), shared([0.64 / 0.2, 0.01 / 0.7, 0.01 / 0.1])),
        (ContrastRows(beta=1.0, alpha=0.2), [1.0, 0.0, 0.0]),
        (ContrastRows(beta=0.0, alpha=0.1), A),
        (DoLaContrast(alpha=0.1), shared([0.8 / 0.2, 0.1 / 0.7, 1.0])),
    ],
    ids=repr,
)
def test_two_rows_by_hand(aggregator: Aggregator, wanted: list[float]) -> None:
    assert probabilities(aggregator, rows(A, B)) == pytest.approx(wanted, abs=1e-6)


def test_the_entropy_of_a_row_is_its_weight() -> None:
    weights = [math.exp(-entropy(A)), math.exp(-entropy(B))]
    wanted = [(weights[0] * a + weights[1] * b) / sum(weights) for a, b in zip(A, B, strict=True)]
    assert probabilities(EntropyWeighted(), rows(A, B)) == pytest.approx(wanted, abs=1e-6)
    assert EntropyWeighted().aggregate(rows(A, [0.34, 0.33, 0.33]))[0, 0] > math.log(0.57)


def test_a_median_of_three_rows_leaves_the_stray_one_out() -> None:
    assert probabilities(MedianProbability(), rows(A, A, [0.01, 0.01, 0.98])) == pytest.approx(A)


def test_raw_logits_weigh_rows_by_their_size() -> None:
    """A constant of log 3 more makes a row count three times, which the mean of probabilities does not see."""
    shifted = Rows(rows(A, B).logits + torch.tensor([math.log(3), 0.0])[:, None], rows(A, B).valid)
    assert probabilities(LogSumExpLogits(), shifted) == pytest.approx([0.65, 0.25, 0.1])
    assert probabilities(MeanProbability(), shifted) == pytest.approx([0.5, 0.4, 0.1])


def test_the_clean_row_has_its_weight_whatever_the_number_of_rows() -> None:
    given = rows(A, B, [0.1, 0.1, 0.8], B)
    assert probabilities(CleanAnchored(0.4), given) == pytest.approx([0.42, 0.34, 0.24])
    assert probabilities(CleanAnchored(0.25), given) == pytest.approx(probabilities(MeanProbability(), given))


# Votes


def test_a_plurality_wins_and_its_share_is_the_probability() -> None:
    given = rows(B, A, [0.6, 0.3, 0.1], [0.1, 0.1, 0.8])
    assert probabilities(TokenVote(smoothing=0.0), given) == pytest.approx([0.5, 0.25, 0.25])


def test_of_equal_votes_the_larger_mean_wins() -> None:
    given = rows([0.4, 0.3, 0.3], [0.0, 0.1, 0.9])
    found = TokenVote().aggregate(given)[0]
    assert found.argmax().item() == 2
    assert found.exp().tolist() == pytest.approx([0.4995 + 0.0002, 0.0002, 0.4995 + 0.0006])


@pytest.mark.parametrize("n", [3, 501])
def test_one_vote_more_outweighs_any_mean(n: int) -> None:
    """Up to 998 rows at the default smoothing."""
    for_first, for_last = [0.34, 0.33, 0.33], [0.0, 0.0, 1.0]
    given = rows(*[for_first] * (n // 2 + 1), *[for_last] * (n // 2))
    assert TokenVote().aggregate(given)[0].argmax().item() == 0


def test_a_row_shares_its_vote_among_its_first_choices() -> None:
    given = rows([0.4, 0.4, 0.2], [0.1, 0.1, 0.8])
    assert probabilities(TokenVote(smoothing=0.0), given) == pytest.approx([0.25, 0.25, 0.5])


def test_a_lead_that_log_probabilities_round_away_is_no_tie() -> None:
    """1e-7 is exact beside 0, and lost beside log-probabilities of -0.69."""
    logits = torch.tensor([[[0.0, 1e-8], [0.0, 1e-8]]])
    assert logits.log_softmax(-1)[0, 0].unique().numel() == 1
    assert probabilities(TokenVote(smoothing=0.0), all_valid(logits)) == pytest.approx([0.0, 1.0])


# Contrasts


def test_dola_contrasts_with_the_row_furthest_away() -> None:
    """Wherever it stands."""
    near, far = [0.7, 0.2, 0.1], [0.1, 0.1, 0.8]
    wanted = shared([0.8 / 0.1, 0.1 / 0.1, 0.1 / 0.8])
    for others in ([near, far, near], [far, near], [near, far]):
        assert probabilities(DoLaContrast(alpha=0.1), rows(A, *others)) == pytest.approx(wanted)


def test_of_layers_equally_far_the_first_is_taken() -> None:
    strong, up, down = [0.5, 0.5], [0.8, 0.2], [0.2, 0.8]
    assert probabilities(DoLaContrast(), rows(strong, up, down)) == pytest.approx([0.2, 0.8])
    assert probabilities(DoLaContrast(), rows(strong, down, up)) == pytest.approx([0.8, 0.2])


def test_plausible_tokens_that_the_weak_row_rules_out_come_first() -> None:
    """What p_weak -> 0 tends to, with p_strong^(1 + beta) among them."""
    strong, weak = [0.5, 0.25, 0.24, 0.01], [0.0, 0.0, 0.5, 0.5]
    assert probabilities(ContrastRows(beta=1.0), rows(strong, weak)) == pytest.approx([0.8, 0.2, 0.0, 0.0])
    nearly = [1e-12, 1e-12, 0.5, 0.5]
    assert probabilities(ContrastRows(beta=1.0), rows(strong, nearly)) == pytest.approx([0.8, 0.2, 0.0, 0.0], abs=1e-6)
    assert probabilities(DoLaContrast(), rows(strong, weak)) == pytest.approx([2 / 3, 1 / 3, 0.0, 0.0])
    # Implausible ones do not.
    assert probabilities(ContrastRows(), rows([0.5, 0.49, 0.01], [0.6, 0.4, 0.0]))[2] == 0.0


def test_equally_plausible_tokens_stay_at_alpha_one() -> None:
    assert probabilities(ContrastRows(beta=1.0, alpha=1.0), rows([0.4, 0.4, 0.2], [0.2, 0.6, 0.2])) == pytest.approx(
        [0.75, 0.25, 0.0]
    )


# What is impossible, and falling back

DISJOINT = all_valid(torch.tensor([[[0.0, 0.0, NEVER], [NEVER, NEVER, 3.0]]]))


@pytest.mark.parametrize(
    "aggregator", [MeanLogit(), MinProbability(), ContrastRows(), ContrastRows(beta=0.0), DoLaContrast()], ids=repr
)
def test_rows_without_a_common_token_fall_back_to_the_first(aggregator: Aggregator) -> None:
    assert aggregator.fell_back(DISJOINT).tolist() == [True]
    assert probabilities(aggregator, DISJOINT) == pytest.approx([0.5, 0.5, 0.0])
    other_order = Rows(DISJOINT.logits.flip(1), DISJOINT.valid)
    assert probabilities(aggregator, other_order) == pytest.approx([0.0, 0.0, 1.0])


def test_a_median_falls_back_where_no_token_has_half_of_the_rows() -> None:
    eye = torch.eye(3).log()[None]
    assert MedianProbability().fell_back(all_valid(eye)).tolist() == [True]
    assert probabilities(MedianProbability(), all_valid(eye)) == [1.0, 0.0, 0.0]
    assert MedianProbability().fell_back(all_valid(eye[:, :2])).tolist() == [False]
    assert probabilities(MedianProbability(), all_valid(eye[:, :2])) == [0.5, 0.5, 0.0]


@pytest.mark.parametrize("aggregator", ANY_ROWS, ids=repr)
def test_each_sequence_falls_back_by_itself_and_padding_counts_for_nothing(aggregator: Aggregator) -> None:
    fine = torch.tensor([[0.0, 1.0, 2.0], [2.0, 1.0, NEVER]])
    logits = torch.stack([fine, DISJOINT.logits[0], DISJOINT.logits[0], fine])
    valid = torch.tensor([[True, True], [True, False], [False, True], [True, True]])
    given = Rows(logits, valid)
    assert not aggregator.fell_back(given).any()
    assert aggregator.aggregate(given)[1].exp()[2] == 0.0
    mixed = Rows(logits, torch.ones_like(valid))
    alone = [aggregator.fell_back(Rows(logits[b : b + 1], mixed.valid[b : b + 1])).item() for b in range(4)]
    assert aggregator.fell_back(mixed).tolist() == alone
    torch.testing.assert_close(aggregator.aggregate(mixed)[[0, 3]], aggregator.aggregate(given)[[0, 3]], rtol=0, atol=0)


def test_rows_that_all_weigh_nothing_fall_back_to_the_first_valid_one() -> None:
    given = Rows(rows(A, B, A).logits, torch.tensor([[False, True, True]]))
    assert probabilities(Weighted((1, 0, 0)), given) == pytest.approx(B)
    assert Weighted((1, 0, 0)).fell_back(given).tolist() == [True]
    assert Weighted((1, 0, 1)).fell_back(given).tolist() == [False]
    assert Weighted((1, 0)).fell_back(rows(A)).tolist() == [False]


def test_a_token_that_one_row_forbids() -> None:
    forbidden = all_valid(torch.tensor([[[0.0, NEVER], [0.0, 0.0]]]))
    assert probabilities(MeanProbability(), forbidden) == pytest.approx([0.75, 0.25])
    assert probabilities(MaxProbability(), forbidden) == pytest.approx([2 / 3, 1 / 3])
    assert probabilities(MeanLogit(), forbidden) == pytest.approx([1.0, 0.0])
    assert probabilities(MinProbability(), forbidden) == pytest.approx([1.0, 0.0])


def test_small_probabilities_are_not_rounded_to_zero() -> None:
    logits = torch.tensor([[[0.0, -200.0], [0.0, -200.0]]])
    for aggregator in (
        MeanProbability(),
        MinProbability(),
        MedianProbability(),
        ConfidenceWeighted(),
        CleanAnchored(0.5),
    ):
        assert aggregator.aggregate(all_valid(logits))[0, 1].item() == pytest.approx(-200.0)


def test_finite_masks_as_low_as_float32_goes_leave_a_distribution() -> None:
    """Some models mask with the least float instead of minus infinity."""
    least = torch.finfo(torch.float32).min
    logits = torch.tensor([[[0.0, least, least], [least, 0.0, least]]])
    for aggregator in ANY_ROWS:
        found = aggregator.aggregate(all_valid(logits))
        assert found.logsumexp(-1).item() == pytest.approx(0.0, abs=1e-6), aggregator
        if aggregator.fell_back(all_valid(logits)).item():
            assert torch.equal(found[0], logits[0, 0].log_softmax(-1)), aggregator


@pytest.mark.parametrize("aggregator", BLIND_TO_CONSTANTS, ids=repr)
def test_a_large_constant_costs_no_precision(aggregator: Aggregator) -> None:
    """float32 holds quarters up to 2^22, so the shifted logits are exact; sums of them would not be."""
    quarters = torch.randint(-40, 40, (2, 3, 9), generator=torch.Generator().manual_seed(0)) / 4
    shift = 2.0**21 * torch.tensor([1.0, -1.0, 1.0])[:, None]
    found = aggregator.aggregate(all_valid(quarters + shift))
    torch.testing.assert_close(found, aggregator.aggregate(all_valid(quarters)), rtol=0, atol=1e-5)


# Shapes and batches


@pytest.mark.parametrize("aggregator", ANY_ROWS, ids=repr)
def test_chunks_of_padding_alone_fold_to_nothing(aggregator: Aggregator) -> None:
    if not aggregator.folds:
        pytest.skip("no fold form")
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    valid = torch.tensor([[True, False, True], [False, False, True]])
    accumulator = aggregator.init(2, 5)
    for row in range(3):
        part = Rows(logits[:, row : row + 1], valid[:, row : row + 1])
        accumulator = aggregator.update(accumulator, part)
    torch.testing.assert_close(aggregator.finish(accumulator), aggregator.aggregate(Rows(logits, valid)))


@pytest.mark.parametrize("aggregator", ANY_ROWS, ids=repr)
def test_a_sequence_does_not_depend_on_the_batch_to_the_last_bit(aggregator: Aggregator) -> None:
    logits = torch.randn(7, 5, 61, generator=torch.Generator().manual_seed(0)) * 5
    together = aggregator.aggregate(all_valid(logits))
    for b in range(7):
        assert torch.equal(aggregator.aggregate(all_valid(logits[b : b + 1]))[0], together[b])


def test_an_accumulator_may_be_folded_on_from_twice() -> None:
    """Nothing in an accumulator is changed in place."""
    logits = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(1))
    for aggregator in [a for a in ANY_ROWS if a.folds]:
        start = aggregator.update(aggregator.init(2, 6), all_valid(logits[:, :2]))
        ends = [aggregator.finish(aggregator.update(start, all_valid(logits[:, 2:]))) for _ in range(2)]
        assert torch.equal(*ends)
