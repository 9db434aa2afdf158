"""Adaptive-Consistency: its posterior against scipy, its rounds against single steps, its promise exactly and drawn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from tests.choosing import ASK, candidate, choose, drive, served
from tokenscale.core.errors import ArgumentError, UnknownNameError
from tokenscale.sequence_level.adaptive_self_consistency import AdaptiveSelfConsistency, majority
from tokenscale.sequence_level.self_consistency import SelfConsistency
from tools.adaptive_votes import given_share, under_uniform_prior


@given(st.integers(0, 400), st.integers(0, 400))
def test_the_posterior_is_the_beta_distributions(first: int, second: int) -> None:
    assert majority(first, second) == pytest.approx(stats.beta.sf(0.5, first + 1, second + 1), rel=1e-9)


@pytest.mark.parametrize(("first", "second"), [(1, 0), (4, 0), (7, 2), (12, 9)])
def test_the_posterior_is_the_papers_integral(first: int, second: int) -> None:
    upper, whole = (integrate.quad(lambda p: p**first * (1 - p) ** second, low, 1)[0] for low in (0.5, 0))
    assert majority(first, second) == pytest.approx(upper / whole, rel=1e-9)


def test_four_equal_answers_are_enough_at_95_percent() -> None:
    assert majority(3, 0) < 0.95 < majority(4, 0) == 31 / 32


letters = st.lists(st.sampled_from(["1", "2", "3", "none"]), min_size=40, max_size=40)


def one_by_one(drawn: list[str], strategy: AdaptiveSelfConsistency) -> int:
    """How many of `drawn` a vote takes that looks after every one of them, with scipy's posterior."""
    for taken in range(strategy.min_k, strategy.max_k):
        counts = sorted((drawn[:taken].count(answer) for answer in "123"), reverse=True)
        if stats.beta.sf(0.5, counts[0] + 1, counts[1] + 1) >= strategy.confidence:
            return taken
    return strategy.max_k


@settings(max_examples=40)
@given(letters, st.integers(1, 40), st.sampled_from([0.6, 0.9, 0.95, 0.99]), st.integers(1, 9))
def test_rounds_draw_what_single_steps_draw(drawn: list[str], max_k: int, confidence: float, min_k: int) -> None:
    strategy = AdaptiveSelfConsistency(max_k, confidence, min(min_k, max_k))
    candidates = [candidate(text, place, -place / 7) for place, text in enumerate(drawn)]
    rounds, winner = drive(strategy, served(candidates))
    taken = one_by_one(drawn, strategy)
    assert [ask for asks in rounds for ask in asks] == [
        replace(ASK, k=ask.k, first=sum(a.k for [a] in rounds[:i])) for i, [ask] in enumerate(rounds)
    ]
    # Every candidate that is asked for is a member of the vote, and the vote is the plain one of them.
    assert len(winner.members) == sum(ask.k for [ask] in rounds) == taken
    assert winner == choose(SelfConsistency(taken), candidates)


@settings(max_examples=40)
@given(letters, st.integers(1, 40), st.integers(1, 9))
def test_batches_end_behind_the_first_round_that_settles_the_vote(drawn: list[str], max_k: int, batch: int) -> None:
    candidates = [candidate(text, place) for place, text in enumerate(drawn)]
    strategy = AdaptiveSelfConsistency(max_k, batch=batch)
    rounds, winner = drive(strategy, served(candidates))
    ends = [ask.first + ask.k for [ask] in rounds]
    settled = [one_by_one(drawn[:end], replace(strategy, min_k=end)) == end < max_k for end in ends]
    assert all(ask.k >= batch for [ask] in rounds[:-1])
    assert len(winner.members) == ends[-1]
    assert settled == [end == ends[-1] != max_k for end in ends]


LIKELIER, OTHER = (candidate(answer, answer=answer) for answer in "12")


def drawn_votes(strategy: AdaptiveSelfConsistency, shares: np.ndarray[Any, Any]) -> list[tuple[bool, bool, int]]:
    """Per problem: whether the vote was ended by its rule, whether it named the likelier answer, its length."""
    found = []
    draws = np.random.default_rng(1).random((len(shares), strategy.max_k))
    for share, numbers in zip(shares, draws, strict=True):
        _, winner = drive(strategy, served([LIKELIER if number < share else OTHER for number in numbers]))
        votes = sorted((int(weight) for _, weight in winner.votes), reverse=True)
        ended = majority(votes[0], [*votes, 0][1]) >= strategy.confidence
        found.append((ended, (winner.answer == "1") == (share > 0.5), len(winner.members)))
    return found


def test_stopped_votes_name_the_likelier_answer_as_promised_under_the_prior() -> None:
    for confidence in (0.9, 0.95, 0.99):
        assert under_uniform_prior(AdaptiveSelfConsistency(40, confidence)).right >= confidence
    strategy = AdaptiveSelfConsistency(40)
    exact = under_uniform_prior(strategy)
    found = drawn_votes(strategy, np.random.default_rng(0).random(4000))
    right = [is_right for ended, is_right, _ in found if ended]
    # Each of the three differs from its exact value by more than its bound once in 10^5 seeds (Hoeffding
    # for the shares; 4.4 standard errors for the mean, whose standard deviation is below 14).
    bound = float(np.sqrt(np.log(2e5) / (2 * len(right))))
    assert abs(np.mean(right) - exact.right) < bound
    assert abs(len(right) / len(found) - exact.stopped) < np.sqrt(np.log(2e5) / (2 * len(found)))
    assert abs(np.mean([k for *_, k in found]) - exact.drawn) < 4.4 * 14 / np.sqrt(len(found))
    assert np.mean(right) >= 0.95  # exact.right is 0.964, 4.4 standard errors above


def test_a_known_share_agrees_with_the_exact_outcome() -> None:
    strategy = AdaptiveSelfConsistency(40)
    exact = given_share(strategy, 0.7)
    found = drawn_votes(strategy, np.full(1000, 0.7))
    bound = float(np.sqrt(np.log(2e5) / (2 * sum(ended for ended, *_ in found))))
    assert abs(np.mean([is_right for ended, is_right, _ in found if ended]) - exact.right) < bound


def test_the_exact_outcomes_by_hand() -> None:
    # Two draws at most, confidence 3/4: one vote settles it, since P(p > 1/2) = 3/4 after it.
    strategy = AdaptiveSelfConsistency(2, confidence=0.75)
    # At p = 0.9 the full vote of two is even with probability 0.18, and half of such votes agree.
    assert given_share(strategy, 0.9) == pytest.approx((1.0, 0.9, 1.0, 0.81 + 0.01 + 0.18 / 2))
    prior = under_uniform_prior(strategy)
    assert (prior.stopped, prior.right, prior.drawn) == pytest.approx((1.0, 0.75, 1.0))


def test_candidates_without_an_answer_are_drawn_and_do_not_vote() -> None:
    texts = ["hm", "7", "well", "7", "7", "7", "8"]
    rounds, winner = drive(AdaptiveSelfConsistency(7), served([candidate(t, i) for i, t in enumerate(texts)]))
    assert [ask.k for [ask] in rounds] == [4, 2]
    assert (winner.answer, winner.votes, len(winner.members)) == ("7", (("7", 4.0),), 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_k": 0}, "max_k must be at least 1"),
        ({"max_k": 4, "min_k": 5}, r"AdaptiveSelfConsistency\(min_k=5, max_k=4\): min_k is above max_k\n.*min_k=4"),
        ({"max_k": 4, "batch": 0}, "batch must be at least 1"),
        ({"max_k": 4, "confidence": 0.5}, r"confidence must be above 0.5 and below 1\n.*confidence=0.95"),
        ({"max_k": 4, "confidence": 1.0}, "above 0.5 and below 1"),
        ({"max_k": 4, "confidence": "high"}, "must be a finite number"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        AdaptiveSelfConsistency(**arguments)
    with pytest.raises(UnknownNameError, match="unknown kind of answer"):
        AdaptiveSelfConsistency(4, answers="letters")
