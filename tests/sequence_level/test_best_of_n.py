"""Best-of-n and its weighted form, against a brute-force search over the candidates."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.choosing import ASK, candidate, choose, drive, served
from tokenscale.core.data import Candidate
from tokenscale.core.errors import ArgumentError, PipelineError, UnknownNameError
from tokenscale.core.prompt import Prompt
from tokenscale.sequence_level.best_of_n import BestOfN, WeightedBestOfN
from tokenscale.sequence_level.scorers.function import FunctionScorer
from tokenscale.sequence_level.scorers.judge import LLMJudge
from tokenscale.sequence_level.scorers.log_prob import LogProb
from tokenscale.sequence_level.scorers.reward import RewardModelScorer
from tokenscale.sequence_level.scorers.self_certainty import SelfCertainty


def stored(prompt: Prompt, answer: Candidate) -> float:
    """The score that the test has put into the signals."""
    return answer.signal("given")[0]


GIVEN = FunctionScorer(stored)


def given_score(text: str, score: float, place: int = 0, log_prob: float = -1.0) -> Candidate:
    return candidate(text, place, log_prob, signals=(("given", (score,)),))


INF = float("inf")
drawn_scores = st.lists(st.tuples(st.sampled_from(["1", "2", "no"]), st.sampled_from([-INF, -1.0, 0.0, 2.5, INF])))


@given(drawn_scores.filter(bool))
def test_the_best_score_wins_among_those_with_an_answer_first_seen_first(drawn: list[tuple[str, float]]) -> None:
    candidates = [given_score(text, score, i) for i, (text, score) in enumerate(drawn)]
    for answers in ("number", None):
        winner = choose(BestOfN(len(drawn), GIVEN, answers), candidates)
        named = [i for i, (text, _) in enumerate(drawn) if answers is None or text != "no"] or list(range(len(drawn)))
        best = max(drawn[i][1] for i in named)
        assert winner.token_ids == (next(i for i in named if drawn[i][1] == best),)
        assert [m.score for m in winner.members] == [score for _, score in drawn]
        assert winner.votes == ()


def test_it_asks_once_for_n_candidates() -> None:
    rounds, winner = drive(BestOfN(3), served([candidate("1", 0, -2.0), candidate("2", 1, -0.5), candidate("3", 2)]))
    assert rounds == [[replace(ASK, k=3)]]
    assert (winner.text, winner.score, winner.answer) == ("2", -0.5, "2")


def test_without_any_answer_the_best_score_wins_and_a_note_says_so() -> None:
    winner = choose(BestOfN(2, GIVEN), [given_score("hm", 1.0), given_score("well", 2.0)])
    assert (winner.text, winner.answer) == ("well", None)
    assert winner.notes[0].startswith("no answer was found in any of 2 candidates")
    assert choose(BestOfN(2, GIVEN, answers=None), [given_score("hm", 1.0), given_score("well", 2.0)]).notes == ()


def test_notes_of_the_scorer_and_of_a_shortfall_are_passed_on() -> None:
    winner = choose(BestOfN(3, LLMJudge()), [candidate("7", 0), candidate("8", 1)], reply="good")
    assert winner.text == "7"
    judged, short = winner.notes
    assert judged.startswith("the judge gave no number from 1 to 10 for 2 of 2 candidates")
    assert short.startswith("2 of 3 candidates")
    winner = choose(WeightedBestOfN(2, LLMJudge()), [candidate("7", 0), candidate("8", 1)], reply="good")
    assert winner.notes == (judged,)


def test_the_signals_are_the_scorers() -> None:
    assert BestOfN(2).signals == frozenset()
    assert BestOfN(2, SelfCertainty()).signals == WeightedBestOfN(2, SelfCertainty()).signals == {"self_certainty"}


weights = st.lists(st.tuples(st.sampled_from(["1", "2", "3", "no"]), st.sampled_from([0.0, 0.125, 0.5, 1.0])))


@given(weights.filter(bool))
def test_weighted_best_of_n_adds_the_scores_of_an_answer(drawn: list[tuple[str, float]]) -> None:
    winner = choose(
        WeightedBestOfN(len(drawn), GIVEN), [given_score(text, score, i) for i, (text, score) in enumerate(drawn)]
    )
    named = [(t, s) for t, s in drawn if t != "no"] or [(None, s) for _, s in drawn]
    totals = {text: sum(s for t, s in named if t == text) for text, _ in named}
    assert dict(winner.votes) == totals
    assert totals[winner.answer] == max(totals.values())
    assert [m.score for m in winner.members] == [score for _, score in drawn]


def test_two_good_candidates_beat_one_that_is_better() -> None:
    drawn = [given_score("1", 0.9, 0), given_score("2", 0.5, 1, -3.0), given_score("2", 0.6, 2, -1.0)]
    assert choose(BestOfN(3, GIVEN), drawn).answer == "1"
    winner = choose(WeightedBestOfN(3, GIVEN), drawn)
    # The likeliest candidate of the winning group, as in every vote.
    assert (winner.answer, winner.token_ids) == ("2", (2,))


@pytest.mark.parametrize("score", [-0.1, INF, -INF])
def test_scores_that_cannot_be_added_up_are_refused(score: float) -> None:
    message = rf"FunctionScorer\(.*stored.*\) scored candidate 2 of 2 as {score}\n.*finite ones of 0 or more"
    with pytest.raises(PipelineError, match=message):
        choose(WeightedBestOfN(2, GIVEN), [given_score("1", 0.5), given_score("2", score)])


@pytest.mark.parametrize("strategy", [BestOfN, WeightedBestOfN])
def test_a_nan_names_the_scorer(strategy: Any) -> None:
    with pytest.raises(PipelineError, match=r"FunctionScorer\(.*stored.*\) scored candidate 1 of 1 as NaN"):
        choose(strategy(1, GIVEN), [given_score("1", float("nan"))])


@pytest.mark.parametrize("strategy", [BestOfN, WeightedBestOfN])
def test_bad_arguments_are_refused(strategy: Any) -> None:
    with pytest.raises(ArgumentError, match="n must be at least 1"):
        strategy(0, GIVEN)
    with pytest.raises(ArgumentError, match=r"scorer must be a scorer\n.*SelfCertainty\(\)"):
        strategy(2, stored)
    with pytest.raises(UnknownNameError, match="unknown kind of answer"):
        strategy(2, GIVEN, "letters")


@pytest.mark.parametrize("scorer", [LogProb(), RewardModelScorer()])
def test_scorers_below_zero_are_no_weights(scorer: Any) -> None:
    with pytest.raises(ArgumentError, match=r"WeightedBestOfN adds scores up.*may be below 0\n.*ProcessRewardScorer"):
        WeightedBestOfN(4, scorer)
