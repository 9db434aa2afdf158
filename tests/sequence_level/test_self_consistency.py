"""The vote against a brute-force count, its ties, and what the strategy asks for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp

from tests.choosing import choose
from tokenscale.core.data import Ask, Candidate
from tokenscale.core.errors import ArgumentError, PipelineError, UnknownNameError
from tokenscale.core.noise import Stream
from tokenscale.core.prompt import Prompt
from tokenscale.sequence_level.self_consistency import SelfConsistency
from tokenscale.sequence_level.voting import vote

ROOT = Stream((0, "p"))
ASK = Ask(Prompt(text="Q: 1 + 1\nA:"), ROOT, max_new_tokens=8)


def candidate(answer: str | None, log_prob: float, place: int = 0) -> Candidate:
    return Candidate(f"text {place}", (place,), (log_prob,), "eos", ROOT.child(place), answer=answer)


def text(content: str, log_prob: float = -1.0) -> Candidate:
    return Candidate(content, (0,), (log_prob,), "eos", ROOT)


def run(strategy: SelfConsistency, candidates: list[Candidate]) -> Candidate:
    """What the strategy returns when its ask is answered by `candidates`."""
    assert next(strategy.solve(ASK)) == [replace(ASK, k=strategy.k)]
    return choose(strategy, candidates)


def beats(one: tuple[int, float, int], other: tuple[int, float, int]) -> bool:
    """Rule by rule: more votes, then the higher log-sum-exp (equal within rounding), then seen first."""
    if one[0] != other[0]:
        return one[0] > other[0]
    if abs(one[1] - other[1]) > 1e-12:
        return one[1] > other[1]
    return one[2] < other[2]


def brute_force(candidates: list[Candidate]) -> tuple[str | None, int]:
    """The winning answer and the place of its most likely candidate, by comparing all pairs."""
    voting = [c for c in candidates if c.answer is not None] or candidates
    names = {c.answer for c in voting}
    standing = {
        name: (
            sum(c.answer == name for c in voting),
            float(logsumexp([c.log_prob for c in voting if c.answer == name])),
            min(i for i, c in enumerate(candidates) if c.answer == name),
        )
        for name in names
    }
    [winner] = [n for n in names if all(beats(standing[n], standing[m]) for m in names - {n})]
    group = [(c.log_prob, -i) for i, c in enumerate(candidates) if c.answer == winner]
    return winner, -max(group)[1]


# Few values, so that ties of all kinds are frequent.
votes = st.lists(
    st.tuples(st.sampled_from(["1", "2", "3", None]), st.sampled_from([-0.5, -1.0, -2.0, -300.0, -800.0])), min_size=1
)


@given(votes)
def test_the_vote_equals_a_brute_force_count(drawn: list[tuple[str | None, float]]) -> None:
    candidates = [candidate(answer, log_prob, i) for i, (answer, log_prob) in enumerate(drawn)]
    answer, place = brute_force(candidates)
    winner = vote(candidates)
    assert (winner.answer, winner.token_ids) == (answer, (place,))
    assert winner.members == tuple(candidates)
    named = [c.answer for c in candidates if c.answer is not None]
    assert dict(winner.votes) == ({n: named.count(n) for n in named} or {None: len(candidates)})
    weights = [weight for _, weight in winner.votes]
    assert winner.votes[0][0] == answer
    assert weights == sorted(weights, reverse=True)


@given(votes, st.randoms(use_true_random=False))
def test_without_an_exact_tie_the_order_does_not_matter(drawn: list[tuple[str | None, float]], random: object) -> None:
    candidates = [candidate(a, lp * (1 + i / 1000), i) for i, (a, lp) in enumerate(drawn)]
    shuffled = list(candidates)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = vote(candidates), vote(shuffled)
    assert (one.answer, one.token_ids, one.votes) == (other.answer, other.token_ids, other.votes)


def test_the_majority_beats_a_likelier_answer() -> None:
    assert vote([candidate("1", -9.0), candidate("2", -0.1), candidate("1", -9.0)]).answer == "1"


def test_a_tie_goes_to_the_higher_log_sum_exp_not_to_the_likeliest_candidate() -> None:
    # log(e^-1 + e^-1) = -0.31 beats log(e^-0.9 + e^-9) = -0.90.
    tied = [candidate("1", -0.9), candidate("1", -9.0), candidate("2", -1.0), candidate("2", -1.0)]
    winner = vote(tied)
    assert winner.answer == "2"
    assert winner.votes == (("2", 2.0), ("1", 2.0))


def test_an_exact_tie_goes_to_the_answer_seen_first() -> None:
    tied = [candidate("1", -1.0, 0), candidate("2", -2.0, 1), candidate("2", -1.0, 2), candidate("1", -2.0, 3)]
    assert vote(tied).answer == "1"
    assert vote(tied[1:] + tied[:1]).answer == "2"


def test_the_winner_is_the_most_likely_candidate_of_its_group() -> None:
    winner = vote([candidate("1", -3.0, 0), candidate("1", -1.0, 1), candidate("1", -2.0, 2)])
    assert (winner.text, winner.log_prob) == ("text 1", -1.0)


def test_candidates_without_an_answer_vote_only_where_none_has_one() -> None:
    assert vote([candidate(None, -0.1), candidate(None, -0.1), candidate("7", -9.0)]).answer == "7"
    winner = vote([candidate(None, -2.0, 0), candidate(None, -1.0, 1)])
    assert (winner.answer, winner.text, winner.votes) == (None, "text 1", ((None, 2.0),))


def test_impossible_candidates_still_vote() -> None:
    # Log-probability -inf: a processor may force a token that the model gives no probability.
    impossible = float("-inf")
    assert vote([candidate("1", impossible), candidate("2", impossible)]).answer == "1"
    assert vote([candidate("1", impossible), candidate("2", -5.0)]).answer == "2"


def test_answers_are_extracted_and_filled_in() -> None:
    winner = run(SelfConsistency(3), [text("it is 7"), text("#### $29.00", -2.0), text("so 29", -1.0)])
    assert (winner.answer, winner.text) == ("29", "so 29")
    assert [m.answer for m in winner.members] == ["7", "29", "29"]


def test_letters_by_option() -> None:
    winner = run(SelfConsistency(3, answers="letter"), [text("(A) 1"), text("B. 1"), text("The answer is (B), not 1")])
    assert (winner.answer, winner.votes) == ("B", (("B", 2.0), ("A", 1.0)))


def test_an_answer_found_inside_is_kept() -> None:
    inner = replace(text("it prints 5"), answer="120")
    assert run(SelfConsistency(1), [inner]).answer == "120"


def test_a_vote_without_any_answer_says_so() -> None:
    [note] = run(SelfConsistency(2), [text("hm"), text("no idea")]).notes
    assert note.startswith("no answer was found in any of 2 candidates (0 ended by length)")
    cut_off = replace(text("let me"), finish_reason="length")
    [note] = run(SelfConsistency(2), [text("hm"), cut_off]).notes
    assert note.endswith("(1 ended by length): raise max_new_tokens")
    assert run(SelfConsistency(2), [text("hm"), text("5")]).notes == ()


@pytest.mark.parametrize(
    ("k", "message"),
    [(0, r"SelfConsistency\(k=0\): k must be at least 1"), (2.0, "k must be an integer"), (True, "must be an integer")],
)
def test_a_bad_k_is_refused(k: int, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        SelfConsistency(k)


def test_an_unknown_kind_of_answer_is_refused() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown kind of answer 'letters' in SelfConsistency\n.*'letter'"):
        SelfConsistency(3, answers="letters")


def weighed(answer: str, *log_probs: float, confidence: tuple[float, ...] = ()) -> Candidate:
    return Candidate(
        f"it is {answer}", (0,) * len(log_probs), log_probs, "eos", ROOT, signals=(("confidence", confidence),)
    )


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from("123"), st.lists(st.floats(-9, 0), min_size=1, max_size=4)), min_size=1))
def test_votes_by_probability_are_normalised_by_length(drawn: list[tuple[str, list[float]]]) -> None:
    winner = run(SelfConsistency(len(drawn), weight="logprob"), [weighed(a, *lps) for a, lps in drawn])
    # The geometric mean of the tokens' probabilities, in numpy.
    totals = {a: sum(float(np.prod(np.exp(lps)) ** (1 / len(lps))) for b, lps in drawn if a == b) for a, _ in drawn}
    assert dict(winner.votes) == pytest.approx(totals, rel=1e-9)
    assert totals[winner.answer or ""] == pytest.approx(max(totals.values()), rel=1e-9)


def test_a_likely_answer_can_outvote_two_unlikely_ones() -> None:
    drawn = [weighed("1", -3.0), weighed("1", -3.0, -3.0), weighed("2", -0.1)]
    assert run(SelfConsistency(3), drawn).answer == "1"
    winner = run(SelfConsistency(3, weight="logprob"), drawn)
    assert (winner.answer, winner.text) == ("2", "it is 2")
    assert winner.votes == (("2", pytest.approx(np.exp(-0.1))), ("1", pytest.approx(2 * np.exp(-3.0))))


def test_votes_by_confidence_weigh_the_mean_of_the_tokens() -> None:
    drawn = [
        weighed("1", -1.0, confidence=(1.0, 2.0)),
        weighed("1", -1.0, confidence=(1.0,)),
        weighed("2", -2.0, confidence=(4.0, 2.0)),
    ]
    strategy = SelfConsistency(3, weight="confidence")
    assert strategy.signals == {"confidence"}
    assert SelfConsistency(3).signals == SelfConsistency(3, weight="logprob").signals == frozenset()
    assert run(strategy, drawn).votes == (("2", 3.0), ("1", 2.5))
    with pytest.raises(PipelineError, match=r"SelfConsistency reads the confidence of every token, .*\n.*`signals`"):
        run(strategy, [text("it is 7")] * 3)


def test_an_unknown_weight_is_refused() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown weight 'log_prob' in SelfConsistency\n.*'logprob'"):
        SelfConsistency(3, weight="log_prob")


def test_fewer_candidates_than_asked_for_are_said() -> None:
    [note] = run(SelfConsistency(3), [text("5"), text("5")]).notes
    assert note == "2 of 3 candidates: the decoder or a strategy inside found no more"
