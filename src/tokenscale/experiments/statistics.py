"""Intervals and tests over problems: one arm's mean score, the paired difference of two arms.

The unit is the problem. Scores lie in [0, 1]; with several seeds a problem's score is the mean over
seeds, taken before anything here is called. Levels are two-sided.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

LEVEL = 0.95
ALPHA = 0.05
POWER = 0.8
SEARCH_STEPS = 30  # to 1e-9 of the range
EXACT_FLIPS = 12
RANDOM_FLIPS = 9999


@dataclass(frozen=True)
class Interval:
    """A confidence interval, both ends in the unit of what it is about."""

    low: float
    high: float


def wilson(successes: int, trials: int, level: float = LEVEL) -> Interval:
    """Score interval of a proportion (Wilson 1927, equation 4 solved for p)."""
    z = _normal_quantile(level)
    share, weight = successes / trials, z * z / trials
    centre = (share + weight / 2) / (1 + weight)
    half = math.sqrt(weight * (share * (1 - share) + weight / 4)) / (1 + weight)
    # The ends are exactly 0 and 1 at no and all successes; rounding would miss them.
    low = 0.0 if successes == 0 else centre - half
    return Interval(low, 1.0 if successes == trials else centre + half)


def bonett_price(first_only: int, second_only: int, pairs: int, level: float = LEVEL) -> Interval:
    """Interval of the paired difference p_first - p_second of 0/1 scores.

    Wald's interval after one pair is added to each discordant cell (Bonett and Price 2012), so that it
    has a width where no pair differs. `first_only` pairs were right under the first arm only.
    """
    z = _normal_quantile(level)
    first, second = (first_only + 1) / (pairs + 2), (second_only + 1) / (pairs + 2)
    half = z * math.sqrt((first + second - (first - second) ** 2) / (pairs + 2))
    return _clip(first - second - half, first - second + half, -1.0, 1.0)


def mcnemar(first_only: int, second_only: int) -> float:
    """Exact two-sided p of "both arms are equally often right", given the discordant pairs (McNemar 1947).

    1.0 where no pair is discordant.
    """
    discordant = first_only + second_only
    return min(1.0, 2 * float(stats.binom.cdf(min(first_only, second_only), discordant, 0.5)))


def mean_interval(scores: Sequence[float], level: float = LEVEL) -> Interval:
    """t interval of the mean of scores in [0, 1], for scores that are not only 0 and 1.

    Two problems of score 0 and two of score 1 are added first (Agresti and Coull 1998 do so for
    proportions), so that it has a width where all scores are equal.
    """
    return _t_interval([*scores, 0.0, 0.0, 1.0, 1.0], level, 0.0, 1.0)


def mean_difference(differences: Sequence[float], level: float = LEVEL) -> Interval:
    """t interval of the mean of per-problem differences in [-1, 1].

    A problem of difference 1 and one of -1 are added first: the same idea as `bonett_price`.
    """
    return _t_interval([*differences, 1.0, -1.0], level, -1.0, 1.0)


def sign_flip(differences: Sequence[float]) -> float:
    """Two-sided p of "differences are symmetric about zero" by flipping their signs; 1.0 where all are zero.

    Exact over all flips of up to 12 differences that are not zero, else from 9,999 random ones of a
    fixed generator, the observed one counted in (Phipson and Smyth 2010). With differences of 1, 0 and
    -1 it is exact McNemar.
    """
    values = np.asarray([d for d in differences if d != 0.0], dtype=np.float64)
    if not len(values):
        return 1.0
    # Sums of equal terms in another order differ by rounding, also where they are zero: such ties count as equal.
    least = abs(values.sum()) - 1e-9 * np.abs(values).sum()
    if len(values) <= EXACT_FLIPS:
        flips = np.array(list(itertools.product((1.0, -1.0), repeat=len(values))))
        return float(np.mean(np.abs(flips @ values) >= least))
    generator, extreme = np.random.Generator(np.random.Philox(0)), 1
    for _ in range(9):
        signs = generator.integers(0, 2, (RANDOM_FLIPS // 9, len(values))) * 2 - 1
        extreme += int(np.sum(np.abs(signs @ values) >= least))
    return extreme / (1 + RANDOM_FLIPS)


def power(pairs: int, discordance: float, difference: float, alpha: float = ALPHA) -> float:
    """Chance that exact McNemar gives p <= alpha.

    A pair is discordant with probability `discordance`, and in favour of the better arm with
    probability (discordance + difference) / 2. Exact: the sum over the number D of discordant pairs
    of P(D) P(p <= alpha | D), less values of D that are all but impossible (together below 2e-12).
    """
    least, most = (int(stats.binom.ppf(share, pairs, discordance)) for share in (1e-12, 1 - 1e-12))
    counts = np.arange(max(0, least), most + 1)
    favour = (1 + difference / discordance) / 2
    critical = _critical(counts, alpha)
    rejects = stats.binom.cdf(critical, counts, favour) + stats.binom.cdf(critical, counts, 1 - favour)
    return float(np.sum(stats.binom.pmf(counts, pairs, discordance) * rejects))


def detectable(pairs: int, discordance: float, alpha: float = ALPHA, wanted: float = POWER) -> float:
    """The smallest true difference that exact McNemar shows (p <= alpha) with power `wanted`.

    `discordance` is the assumed share of problems on which the two arms differ. A difference cannot
    exceed it, so where even that much is not enough, a larger share is assumed: the smallest at which
    the arm that is better is better on every discordant problem. NaN where no share is enough.
    """
    if power(pairs, 1.0, 1.0, alpha) < wanted:
        return float("nan")
    if discordance <= 0 or power(pairs, discordance, discordance, alpha) < wanted:
        return _smallest(lambda d: power(pairs, d, d, alpha) >= wanted, max(discordance, 1e-9), 1.0)
    return _smallest(lambda d: power(pairs, discordance, d, alpha) >= wanted, 0.0, discordance)


def detectable_mean(differences: Sequence[float], alpha: float = ALPHA, wanted: float = POWER) -> float:
    """The same for means over seeds, by the normal approximation: (z_alpha/2 + z_power) s / sqrt(N).

    The deviation s is that of the differences with one of 1 and one of -1 added, as in the interval.
    """
    values = np.asarray([*differences, 1.0, -1.0])
    quantiles = _normal_quantile(1 - alpha) + float(stats.norm.ppf(wanted))
    return quantiles * float(values.std(ddof=1)) / math.sqrt(len(values))


def _normal_quantile(level: float) -> float:
    return float(stats.norm.ppf((1 + level) / 2))


def _critical(counts: NDArray[np.int64], alpha: float) -> NDArray[np.int64]:
    """Per number of discordant pairs, the most in the smaller cell that still gives p <= alpha; -1 for none."""
    guess = np.asarray(stats.binom.ppf(alpha / 2, counts, 0.5)).astype(np.int64)
    too_many = stats.binom.cdf(guess, counts, 0.5) > alpha / 2
    return np.where(counts > 0, guess - too_many, -1)


def _smallest(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Bisection for the smallest value in (low, high] at which a monotone condition holds."""
    for _ in range(SEARCH_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _t_interval(values: Sequence[float], level: float, least: float, most: float) -> Interval:
    array = np.asarray(values, dtype=np.float64)
    error = float(array.std(ddof=1)) / math.sqrt(len(array))
    half = float(stats.t.ppf((1 + level) / 2, len(array) - 1)) * error
    return _clip(float(array.mean()) - half, float(array.mean()) + half, least, most)


def _clip(low: float, high: float, least: float, most: float) -> Interval:
    return Interval(max(low, least), min(high, most))
