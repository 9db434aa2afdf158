"""Intervals, tests and planning: against scipy, brute force, published examples and exact coverage."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from tokenscale.experiments.statistics import (
    bonett_price,
    detectable,
    detectable_mean,
    mcnemar,
    mean_difference,
    mean_interval,
    power,
    sign_flip,
    wilson,
)

COUNTS = st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
CELLS = st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60)).filter(lambda c: sum(c) > 0)


@given(COUNTS, st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_equals_scipy(counts, level):
    successes, trials = counts
    theirs = stats.binomtest(successes, trials).proportion_ci(level, method="wilson")
    ours = wilson(successes, trials, level)
    # scipy's continuity-free form; 1e-9 is rounding of square roots.
    assert ours.low == pytest.approx(theirs.low, abs=1e-9)
    assert ours.high == pytest.approx(theirs.high, abs=1e-9)


def test_wilson_worked_example():
    """Newcombe 1998 (Statist. Med. 17, 857-872), table I: 81 of 263 gives 0.2553 to 0.3662."""
    interval = wilson(81, 263)
    assert (round(interval.low, 4), round(interval.high, 4)) == (0.2553, 0.3662)


@pytest.mark.parametrize(
    ("first_only", "second_only", "pairs", "low", "high"),
    [(6, 16, 161, -0.1195, -0.0032), (1, 7, 21, -0.508, -0.013)],
)
def test_bonett_price_worked_examples(first_only, second_only, pairs, low, high):
    """Fagerland, Lydersen and Laake 2014 (Statist. Med. 33, 2850-2875): consolidation therapy, stem cells."""
    interval = bonett_price(first_only, second_only, pairs)
    assert interval.low == pytest.approx(low, abs=5.1e-4)
    assert interval.high == pytest.approx(high, abs=5.1e-4)


@given(CELLS)
def test_bonett_price_is_antisymmetric_and_holds_its_estimate(cells):
    first, second, same = cells
    pairs = first + second + same
    one, other = bonett_price(first, second, pairs), bonett_price(second, first, pairs)
    assert one.low == pytest.approx(-other.high)
    assert -1 <= one.low < one.high <= 1
    assert one.low <= (first - second) / (pairs + 2) <= one.high


def exact_coverage(pairs, first, second):
    """Chance, over all tables of `pairs` pairs with these discordant probabilities, that the interval holds."""
    covered = 0.0
    for b in range(pairs + 1):
        c = np.arange(pairs - b + 1)
        chance = stats.multinomial.pmf(
            np.stack([np.full_like(c, b), c, pairs - b - c], -1), pairs, [first, second, 1 - first - second]
        )
        for likely, count in zip(chance, c, strict=True):
            if likely > 1e-9:
                interval = bonett_price(b, int(count), pairs)
                covered += likely * (interval.low <= first - second <= interval.high)
    return covered


@pytest.mark.parametrize("discordance", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("lean", [0.5, 0.8])
def test_bonett_price_covers(discordance, lean):
    """Exact coverage at N = 100, no simulation error; at least 93%."""
    assert exact_coverage(100, discordance * lean, discordance * (1 - lean)) >= 0.93


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_equals_scipy(first, second):
    if first + second == 0:
        assert mcnemar(0, 0) == 1.0
        return
    assert mcnemar(first, second) == pytest.approx(stats.binomtest(first, first + second).pvalue, rel=1e-9)


def test_mcnemar_worked_example():
    """The stem-cell table above: p = 0.070 (Fagerland and others 2014)."""
    assert round(mcnemar(1, 7), 3) == 0.070


@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 5))
def test_sign_flip_of_signs_is_mcnemar(first, second, same):
    differences = [1.0] * first + [-1.0] * second + [0.0] * same
    error = 0.0 if first + second <= 12 else 6 * math.sqrt(0.25 / 9999)  # six standard errors: 2e-9 a case
    assert sign_flip(differences) == pytest.approx(mcnemar(first, second), abs=error + 1e-12)


@settings(max_examples=25)
@given(st.lists(st.integers(-100, 100).filter(bool), min_size=2, max_size=8))
def test_sign_flip_equals_scipy(differences):
    values = np.array(differences) / 100
    theirs = stats.permutation_test((values,), np.sum, permutation_type="samples", n_resamples=np.inf).pvalue
    assert sign_flip([*values.tolist(), 0.0]) == pytest.approx(min(1.0, theirs), abs=1e-12)


@given(st.sampled_from([3, 5, 7]).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.integers(-n, n), max_size=8))))
@example((3, [3, 1, 3, -3, -3, 1, -2]))
def test_sign_flip_of_means_over_seeds_equals_exact_arithmetic(drawn):
    """Differences as reports make them, in thirds, fifths or sevenths, whose sums are zero up to rounding only."""
    seeds, counts = drawn
    means = [(np.arange(seeds) < max(c, 0)).mean() - (np.arange(seeds) < max(-c, 0)).mean() for c in counts]
    least, flips = abs(sum(counts)), list(itertools.product((1, -1), repeat=len(counts)))
    extreme = sum(abs(sum(f * c for f, c in zip(flip, counts, strict=True))) >= least for flip in flips)
    assert sign_flip([float(m) for m in means]) == pytest.approx(extreme / len(flips), abs=1e-12)


def test_sign_flip_repeats_and_is_uniform_enough():
    generator = np.random.default_rng(5)
    samples = generator.normal(size=(300, 40))
    ps = np.array([sign_flip(row.tolist()) for row in samples])
    assert ps[0] == sign_flip(samples[0].tolist())
    # 300 p values of a true null: a share of 5% has standard error 1.26%; 5 of them: 6e-7 false alarms.
    assert abs(np.mean(ps <= 0.05) - 0.05) < 5 * 0.0126


@given(st.lists(st.sampled_from([0.0, 0.2, 0.5, 1.0]), min_size=1, max_size=50))
def test_mean_intervals_have_a_width_inside_the_range(scores):
    one = mean_interval(scores)
    assert 0 <= one.low < one.high <= 1
    other = mean_difference([s - scores[0] for s in scores])
    assert -1 <= other.low < other.high <= 1


def test_mean_interval_equals_scipy_on_the_lengthened_sample():
    scores = [0.2, 0.4, 0.4, 1.0, 0.6]
    sample = [*scores, 0, 0, 1, 1]
    theirs = stats.t.interval(0.95, len(sample) - 1, np.mean(sample), stats.sem(sample))
    ours = mean_interval(scores)
    assert (ours.low, ours.high) == pytest.approx(theirs)


@pytest.mark.parametrize("discordance", [0.01, 0.05, 0.2])
def test_mean_difference_covers_with_five_seeds(discordance):
    """2,000 runs at N = 100: the standard error at 95% is 0.49 points, so 93% false-alarms once in 40,000."""
    generator = np.random.default_rng(11)
    flips = generator.random((2000, 100, 5))
    draws = (flips < discordance * 0.8).astype(float) - (flips > 1 - discordance * 0.2)
    truth = discordance * 0.6
    intervals = [mean_difference(run) for run in draws.mean(-1)]
    assert np.mean([i.low <= truth <= i.high for i in intervals]) >= 0.93


def brute_power(pairs, discordance, difference, alpha):
    better, worse = (discordance + difference) / 2, (discordance - difference) / 2
    total = 0.0
    for b, c in itertools.product(range(pairs + 1), repeat=2):
        if b + c <= pairs and mcnemar(b, c) <= alpha:
            total += stats.multinomial.pmf([b, c, pairs - b - c], pairs, [better, worse, 1 - better - worse])
    return total


@pytest.mark.parametrize(
    ("pairs", "discordance", "difference"), [(5, 0.9, 0.9), (20, 0.5, 0.3), (30, 0.4, 0.4), (25, 0.6, 0.0)]
)
def test_power_equals_brute_force(pairs, discordance, difference):
    assert power(pairs, discordance, difference) == pytest.approx(brute_power(pairs, discordance, difference, 0.05))


@settings(max_examples=20)
@given(st.integers(10, 300), st.floats(0.02, 0.9))
def test_detectable_is_the_smallest(pairs, discordance):
    found = detectable(pairs, discordance)
    assumed = max(found, discordance)
    assert power(pairs, assumed, found) >= 0.8
    smaller = found - 1e-6
    assert power(pairs, max(smaller, discordance), smaller) < 0.8


def test_detectable_falls_with_problems_and_says_when_none_is_enough():
    assert math.isnan(detectable(5, 0.5))
    found = [detectable(n, 0.2) for n in (100, 400, 1600)]
    assert found == sorted(found, reverse=True)
    # The normal approximation (1.96 + 0.84) sqrt(discordance / N) is near for many pairs.
    assert found[2] == pytest.approx(2.8 * math.sqrt(0.2 / 1600), rel=0.05)


def test_detectable_mean_agrees_with_the_exact_one():
    differences = [1.0] * 160 + [-1.0] * 160 + [0.0] * 1280
    assert detectable_mean(differences) == pytest.approx(detectable(1600, 0.2), rel=0.05)
