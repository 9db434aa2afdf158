"""What AdaptiveSelfConsistency promises and what it does not, exactly: `python tools/adaptive_votes.py`.

For problems with two answers, of which the first has probability p. All figures are sums over every
path that the two counts can take, so nothing is drawn: P(count of the first = a | n, p) is binomial, and
under the prior p ~ Uniform(0, 1) the next draw is the first answer with probability (a + 1) / (n + 2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from scipy import stats

from tokenscale.sequence_level.adaptive_self_consistency import AdaptiveSelfConsistency, majority

Chance = Callable[[int, int], float]


class Outcome(NamedTuple):
    """`stopped`: share of votes that the rule ends (and not max_k); `right`: of those, the share that names
    the likelier answer; `drawn`: mean candidates; `agreement`: share of all votes that agree with the vote of
    max_k candidates, an even vote counting half."""

    stopped: float
    right: float
    drawn: float
    agreement: float


def given_share(strategy: AdaptiveSelfConsistency, share: float) -> Outcome:
    """The outcome where the first answer, the likelier one, has probability `share`."""
    return _outcome(
        strategy,
        chance=lambda first, drawn: share,
        leads=lambda first, second: 1.0 if first > second else 0.0,
        final=lambda first, drawn, left: stats.binom(left, share),
    )


def under_uniform_prior(strategy: AdaptiveSelfConsistency) -> Outcome:
    """The outcome over problems with p uniform: with counts (a, b) the first is the likelier with P(p > 1/2)."""
    return _outcome(
        strategy,
        chance=lambda first, drawn: (first + 1) / (drawn + 2),
        leads=lambda first, second: majority(max(first, second), min(first, second)),
        final=lambda first, drawn, left: stats.betabinom(left, first + 1, drawn - first + 1),
    )


def _outcome(
    strategy: AdaptiveSelfConsistency,
    chance: Chance,
    leads: Chance,
    final: Callable[[int, int, int], stats.rv_discrete],
) -> Outcome:
    """`leads` is how probable it is that a vote with these counts names the likelier answer."""
    stopped = right = mean = agreement = 0.0
    states = {0: 1.0}  # the probability of each count of the first answer
    for drawn in range(strategy.max_k + 1):
        going: dict[int, float] = {}
        for first, weight in states.items():
            counts = (first, drawn - first)
            if drawn == 0 or (strategy.next_round(drawn, counts) and drawn < strategy.max_k):
                p = chance(first, drawn)
                going[first + 1] = going.get(first + 1, 0.0) + weight * p
                going[first] = going.get(first, 0.0) + weight * (1 - p)
                continue
            mean += weight * drawn
            agreement += weight * _agrees(counts, strategy.max_k, final(first, drawn, strategy.max_k - drawn))
            if majority(max(counts), min(counts)) >= strategy.confidence and drawn >= strategy.min_k:
                stopped += weight
                right += weight * leads(*counts)
        states = going
    return Outcome(stopped, right / stopped, mean, agreement)


def _agrees(counts: tuple[int, int], max_k: int, more: stats.rv_discrete) -> float:
    """How probable it is that the vote of all max_k names the same answer; `more` are further votes for the first."""
    first, second = counts
    if first == second:
        return 1.0 if sum(counts) == max_k else 0.5
    half = max_k / 2
    ahead, even = float(more.sf(half - first)), float(more.pmf(half - first))
    return (ahead if first > second else 1 - ahead - even) + even / 2


def main() -> None:
    print("two answers, p uniform; max_k 40, min_k 1")
    print(f"{'confidence':>10} {'stopped':>8} {'right of these':>15} {'mean drawn':>11} {'agree with 40':>14}")
    for confidence in (0.8, 0.9, 0.95, 0.99):
        print(f"{confidence:10.2f}" + _row(under_uniform_prior(AdaptiveSelfConsistency(40, confidence))))
    print("\np known; confidence 0.95, max_k 40")
    print(f"{'p':>10} {'stopped':>8} {'right of these':>15} {'mean drawn':>11} {'agree with 40':>14}")
    for share in (0.5, 0.51, 0.52, 0.53, 0.54, 0.55, 0.56, 0.58, 0.6, 0.7, 0.8, 0.9):
        print(f"{share:10.2f}" + _row(given_share(AdaptiveSelfConsistency(40), share)))


def _row(outcome: Outcome) -> str:
    return f" {outcome.stopped:8.1%} {outcome.right:15.1%} {outcome.drawn:11.1f} {outcome.agreement:14.1%}"


if __name__ == "__main__":
    main()
