"""DeepConf's scores and threshold against numpy and the formulas written out, its votes by hand, its stop rule."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.choosing import ASK, candidate, choose, drive, served
from tokenscale.core.data import Candidate
from tokenscale.core.errors import ArgumentError, PipelineError, UnknownNameError
from tokenscale.sequence_level.deepconf import SCORES, DeepConf, LowConfidence, group_means, quantile

confidences = st.lists(st.floats(0, 30), min_size=1, max_size=60)


def groups(values: list[float], window: int) -> list[float]:
    """Equation by equation: the mean of each run of `window` tokens, of all where there are fewer."""
    starts = range(len(values) - window + 1) if len(values) >= window else [0]
    return [float(np.mean(values[start : start + window])) for start in starts]


@given(confidences, st.integers(1, 70))
def test_scores_are_the_formulas(values: list[float], window: int) -> None:
    means = groups(values, window)
    lowest = sorted(means)[: max(1, len(means) // 10)]
    expected = {
        "lowest_group": min(means),
        "bottom_10": np.mean(lowest),
        "mean": np.mean(values),
        "tail": np.mean(values[-window:]),
    }
    assert group_means(values, window) == pytest.approx(means, abs=1e-9)
    assert {name: score(values, window) for name, score in SCORES.items()} == pytest.approx(expected, abs=1e-9)


def test_a_candidate_without_tokens_scores_0() -> None:
    assert {name: score((), 5) for name, score in SCORES.items()} == dict.fromkeys(SCORES, 0.0)


@given(st.lists(st.floats(-30, 30), min_size=1, max_size=40), st.floats(0, 1))
def test_the_quantile_is_numpys(values: list[float], share: float) -> None:
    assert quantile(values, share) == pytest.approx(float(np.quantile(values, share)), abs=1e-6)


@given(st.integers(1, 60), st.sampled_from([0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0]))
def test_a_share_that_is_met_exactly_is_kept(count: int, keep: float) -> None:
    # Of n different scores those at the places from (1 - keep) (n - 1) on are kept, in whole numbers.
    tenths = round(keep * 10)
    kept = [v for v in range(count) if v >= quantile(list(range(count)), 1 - keep)]
    assert kept == [v for v in range(count) if 10 * v >= (10 - tenths) * (count - 1)]


@given(confidences, st.integers(1, 70), st.floats(0, 30))
def test_the_rule_stops_at_the_first_full_window_below_the_threshold(
    values: list[float], window: int, threshold: float
) -> None:
    rule = LowConfidence(threshold, window)
    stops = [rule.stops(values[:end]) for end in range(1, len(values) + 1)]
    means = [np.mean(values[max(0, end - window) : end]) for end in range(1, len(values) + 1)]
    for end, (found, mean) in enumerate(zip(stops, means, strict=True), 1):
        if end < window or abs(mean - threshold) > 1e-6:  # what rounding decides is not tested
            assert found == (end >= window and mean < threshold)


def trace(text: str, *values: float, place: int = 0, log_prob: float = -1.0, reason: str = "eos") -> Candidate:
    return candidate(text, place, log_prob, finish_reason=reason, signals=(("confidence", values),))


def test_offline_the_most_confident_vote_by_their_confidence() -> None:
    drawn = [trace("1", 9.0, 9.0), trace("2", 8.0, 1.0), trace("2", 8.0, 2.0), trace("2", 7.0, 7.5), trace("no", 99.0)]
    rounds, winner = drive(DeepConf(5, keep=0.5, window=1), served(drawn))
    assert rounds == [[replace(ASK, k=5)]]
    assert [m.score for m in winner.members] == [9.0, 1.0, 2.0, 7.0, 99.0]
    # The median of the scores 9, 1, 2 and 7 of those with an answer is 4.5.
    assert (winner.answer, winner.votes, winner.notes) == ("1", (("1", 9.0), ("2", 7.0)), ())
    assert choose(DeepConf(5, keep=1.0, window=1), drawn).votes == (("2", 10.0), ("1", 9.0))
    assert choose(DeepConf(5, keep=1.0, window=1, score="mean"), drawn).votes == (("2", 4.5 + 5 + 7.25), ("1", 9.0))


def test_online_the_warm_up_sets_the_bar_for_the_others() -> None:
    drawn = [
        trace("1", 5.0, 6.0, place=0),
        trace("2", 3.0, 9.0, place=1),
        trace("2", 9.0, 1.0, place=2),
        trace("1", 4.0, 4.0, place=3),
        trace("2", 4.0, place=4, reason="stop_rule"),  # ended, and its answer does not count
        trace("2", 3.9, place=5),  # shorter than a window of 2 that is below the bar: whole, and no vote
        trace("3", 4.5, 5.5, place=6),
    ]
    strategy = DeepConf(7, keep=0.5, window=2, online=True, warmup=4)
    rounds, winner = drive(strategy, served(drawn))
    # Scores 5.5, 6, 5, 4: half of them lie below 5.25.
    rule = LowConfidence(5.25, 2)
    assert rounds == [[replace(ASK, k=4)], [replace(ASK, k=3, first=4, stop_rule=rule)]]
    assert (winner.answer, winner.votes) == ("2", (("2", 6.0), ("1", 5.5)))
    assert len(winner.members) == 7


def test_where_the_most_confident_have_no_answer_the_others_vote() -> None:
    drawn = [trace("no", 9.0, place=0), trace("1", 1.0, place=1), trace("2", 2.0, place=2, reason="stop_rule")]
    winner = choose(DeepConf(3, keep=0.1, window=1, online=True, warmup=2), drawn)
    assert (winner.answer, winner.votes) == ("1", (("1", 1.0),))
    assert winner.notes == ("no candidate of the most confident 10% has an answer, so the others voted too",)
    nothing = choose(DeepConf(2, window=1), [trace("no", 9.0), trace("none", 8.0)])
    assert nothing.answer is None
    assert nothing.notes[0].startswith("no answer was found in any of 2 candidates")


def test_candidates_without_signals_are_refused() -> None:
    assert DeepConf(2).signals == {"confidence"}
    with pytest.raises(PipelineError, match="DeepConf reads the confidence of every token"):
        choose(DeepConf(2), [candidate("1"), candidate("2")])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k must be at least 1"),
        ({"k": 2, "window": 0}, "window must be at least 1"),
        ({"k": 2, "keep": 0}, r"keep must be above 0 and at most 1\n.*keep=0.1"),
        ({"k": 2, "keep": 1.5}, "at most 1"),
        ({"k": 8, "online": True}, r"\(k=8, online=True, warmup=16\): no candidate is left to end early\n.*warmup=2"),
        ({"k": 32, "online": True, "score": "mean"}, r"ended by their lowest group\n.*score=\"lowest_group\""),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        DeepConf(**arguments)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown score 'bottom_1' in DeepConf\n.*'bottom_10'"):
        DeepConf(2, score="bottom_1")
    with pytest.raises(UnknownNameError, match="unknown kind of answer"):
        DeepConf(2, answers="letters")
