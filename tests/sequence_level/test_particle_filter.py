"""Particles against enumeration, resampling against its law, and what is asked for."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import chisquare

from tests.sequence_level.trees import ASK, Hashed, drive, hashed
from tokenscale.core.data import Ask, Candidate
from tokenscale.core.errors import ArgumentError, UnknownNameError
from tokenscale.core.noise import Stream, UniformReader
from tokenscale.core.scorer import Requests, Scorer
from tokenscale.models.toy import ToyModel
from tokenscale.sequence_level.particle_filter import ParticleFilter, normalised, resample

scores = st.lists(st.floats(-50, 50) | st.just(float("-inf")), min_size=1, max_size=8)


@given(scores, st.floats(0.1, 10))
def test_weights_are_a_softmax(values: list[float], temperature: float) -> None:
    weights = normalised(values, temperature)
    if np.isinf(values).all():
        assert weights == pytest.approx(np.full(len(values), 1 / len(values)))
    else:
        assert weights == pytest.approx(softmax(np.array(values) / temperature), abs=1e-12)


def test_weights_of_extreme_scores() -> None:
    infinite = float("inf")
    assert normalised([infinite, 1.0, infinite], 1.0).tolist() == [0.5, 0.0, 0.5]
    assert normalised([1e300, -1e300], 1e-300).tolist() == [1.0, 0.0]


WEIGHTS = np.array([0.05, 0.4, 0.0, 0.25, 0.3])


@pytest.mark.parametrize("resampling", ["multinomial", "systematic"])
def test_resampling_follows_the_weights(resampling: str) -> None:
    """800 drawings of five. False alarms: 1 in 10,000 of each chi-square."""
    filtered = ParticleFilter(5, Hashed(), resampling=resampling)
    particles = [Candidate(str(i), (i,), (0.0,), "pause", ASK.stream, score=float(s)) for i, s in enumerate(range(5))]
    weights = normalised([0, 1, 2, 3, 4], 1.0)
    drawn = np.array(
        [[c.token_ids[0] for c in filtered._drawn(ASK, particles, number)] for number in range(800)], dtype=int
    )
    if resampling == "multinomial":
        # Every slot is a draw by itself, of the same law, and independent of its neighbour.
        assert chisquare(np.bincount(drawn.ravel(), minlength=5), weights * drawn.size).pvalue > 1e-4
        assert chisquare(np.bincount(drawn[:, 3], minlength=5), weights * 800).pvalue > 1e-4
        pairs = np.bincount(5 * drawn[:, 0] + drawn[:, 1], minlength=25)
        common = (np.outer(weights, weights) * 800).ravel() > 5
        expected = (np.outer(weights, weights) * 800).ravel()[common]
        observed = pairs[common]
        assert chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-4
        return
    counts = np.stack([(drawn == i).sum(1) for i in range(5)], 1)
    assert (np.abs(counts - 5 * weights) < 1).all()
    # A count is a whole number or the next: its variance is at most 1/4, so 4.5 standard errors are 0.080.
    assert counts.mean(0) == pytest.approx(5 * weights, abs=4.5 * 0.5 / np.sqrt(800))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6).filter(lambda w: sum(w) > 0), st.data())
def test_nothing_without_weight_is_drawn(weights: list[float], data: st.DataObject) -> None:
    law = np.array(weights) / sum(weights)
    uniform = st.floats(0, 1, exclude_max=True)
    uniforms = np.array(data.draw(st.lists(uniform, min_size=len(law), max_size=len(law))))
    for resampling in ("multinomial", "systematic"):
        drawn = resample(law, uniforms, resampling)
        assert len(drawn) == len(law)
        assert all(law[i] > 0 for i in drawn)
        if resampling == "multinomial":
            ends = np.cumsum(law)
            assert all(ends[i] - law[i] - 1e-12 <= u <= ends[i] + 1e-12 for i, u in zip(drawn, uniforms, strict=True))


# The state space: three tokens of the toy model, none of which is the end, scored one by one.
LM = ToyModel(("a", "b", "1"), spelling="", moe_layers=2, experts=4, sharpness=2.0, seed=3)
START, LENGTH, TEMPERATURE = (2, 1), 3, 0.7


@cache
def law(prefix: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Exact probabilities of the next token, the end left out."""
    log_probs = LM.exact_log_probs((*START, *prefix))[:4].copy()
    log_probs[0] = -np.inf
    return np.asarray(softmax(log_probs))


def reward(ids: Sequence[int]) -> float:
    """Favours what the model does not: repeats, and the last token of the vocabulary in the second place."""
    repeats = len(ids) > 1 and ids[-1] == ids[-2]
    return 1.0 * repeats + 0.8 * (len(ids) == 2 and ids[-1] == 3) - 0.5 * (ids[-1] == 1)


@dataclass(frozen=True)
class Exact(Scorer):
    """The log-likelihood of one step; `seen` gets those of every step."""

    seen: list[list[float]] = field(default_factory=list, compare=False)

    def grade(self, ask: Ask, candidates: Sequence[Candidate]) -> Requests:
        yield from ()
        self.seen.append([reward(c.token_ids) for c in candidates])
        return self.seen[-1]


def sampled(ask: Ask) -> list[Candidate]:
    """One token from the exact distribution: a step."""
    [copy] = ask.copies()
    ends = law(ask.prefix_ids).cumsum()
    token = int(np.searchsorted(ends, UniformReader(copy.stream).at(len(ask.prefix_ids)) * ends[-1], side="right"))
    reason = "pause" if ask.pauses else "length"
    return [Candidate("", (token,), (0.0,), reason, copy.stream, stopped_by=ask.pauses[-1] if ask.pauses else "")]


STATISTICS = (lambda ids: 1, lambda ids: ids.count(3), lambda ids: float(ids[0] == ids[2]), lambda ids: ids[0] == 2)


def masses(temperature: float) -> np.ndarray[Any, Any]:
    """Sums of p(text) * prod_t exp(s_t / temperature) * statistic over all texts, one a statistic."""
    sums = np.zeros(len(STATISTICS))
    for ids in itertools.product((1, 2, 3), repeat=LENGTH):
        prior = np.prod([law(ids[:t])[ids[t]] for t in range(LENGTH)])
        likelihood = np.exp(sum(reward(ids[: t + 1]) for t in range(LENGTH)) / temperature)
        sums += [prior * likelihood * f(ids) for f in STATISTICS]
    return sums


def estimates(runs: int, particles: int, resampling: str) -> np.ndarray[Any, Any]:
    """A filter's estimates of `masses`: the weighted mean of the last step, times the mean weights before it."""
    found = []
    for run in range(runs):
        scorer = Exact()
        search = ParticleFilter(particles, scorer, "|", TEMPERATURE, resampling, max_steps=LENGTH)
        _, winner = drive(search, replace(ASK, stream=Stream((run, "particles"))), sampled)
        weights = np.exp(np.array(scorer.seen) / TEMPERATURE)
        values = [[f(m.token_ids) for m in winner.members] for f in STATISTICS]
        found.append(weights[:-1].mean(1).prod() * (weights[-1] * values).mean(1))
    return np.array(found)


@pytest.mark.parametrize("resampling", ["multinomial", "systematic"])
def test_particles_estimate_sums_over_all_texts(resampling: str) -> None:
    """Estimates of sums are unbiased for any number of particles, so few of them and 100 runs are a sharp test.

    A mean may be off by 4.5 standard errors: a false alarm in 150,000 for each of the four. The draws are fixed,
    so this passes or fails for good.
    """
    found, exact = estimates(100, 6, resampling), masses(TEMPERATURE)
    error = np.std(found, 0, ddof=1) / np.sqrt(len(found))
    assert (np.abs(found.mean(0) - exact) < 4.5 * error).all()
    assert (error[:3] < 0.15 * exact[:3]).all()


def test_members_weighted_are_the_posterior() -> None:
    """One run of 500 particles, whose self-normalised means are within 0.1 of enumeration."""
    search = ParticleFilter(500, Exact(), "|", TEMPERATURE, max_steps=LENGTH)
    _, winner = drive(search, respond=sampled)
    weights = normalised([m.score or 0.0 for m in winner.members], TEMPERATURE)
    found = [weights @ [f(m.token_ids) for m in winner.members] for f in STATISTICS]
    exact, prior = masses(TEMPERATURE), masses(float("inf"))
    assert found == pytest.approx(exact / exact[0], abs=0.1)
    assert max(abs(exact / exact[0] - prior)) > 0.2  # the scores do move it


def test_equal_beginnings_go_on_differently() -> None:
    rounds, winner = drive(ParticleFilter(16, Hashed(), step="3", temperature=0.05))
    copied = [p for asks in rounds[1:] for p, n in Counter(a.prefix_ids for a in asks).items() if n > 1]
    assert copied
    streams = [ask.stream for asks in rounds for ask in asks]
    assert len(set(streams)) == len(streams)
    assert all(ask.k == 1 for asks in rounds for ask in asks)
    assert len(winner.members) == 16
    assert winner.score == max(hashed(m.token_ids) for m in winner.members)


def test_what_has_ended_stays_and_is_not_asked_again() -> None:
    rounds, winner = drive(ParticleFilter(12, Hashed(), step="3", temperature=2.0))
    assert len(rounds) > 2
    assert [len(asks) for asks in rounds] == sorted((len(asks) for asks in rounds), reverse=True)
    assert len(rounds[-1]) < 12
    assert all(m.finish_reason == "eos" for m in winner.members)


def test_the_last_step_runs_to_the_end() -> None:
    rounds, winner = drive(ParticleFilter(8, Hashed(), step="3", max_steps=2))
    assert [asks[0].pauses for asks in rounds] == [("3",), ()]
    assert {m.finish_reason for m in winner.members} == {"eos"}


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ParticleFilter(0), ArgumentError, r"ParticleFilter\(particles=0\): particles must be at least 1"),
        (lambda: ParticleFilter(2, temperature=0), ArgumentError, "temperature must be above 0"),
        (lambda: ParticleFilter(2, temperature=float("nan")), ArgumentError, "must be a finite number"),
        (lambda: ParticleFilter(2, resampling="stratified"), UnknownNameError, "unknown resampling 'stratified'"),
        (lambda: ParticleFilter(2, scorer="LogProb"), ArgumentError, "scorer must be a scorer"),
        (lambda: ParticleFilter(2, step=()), ArgumentError, "step must be a text"),
        (lambda: ParticleFilter(2, max_steps=0), ArgumentError, "max_steps must be at least 1"),
    ],
)
def test_bad_arguments_are_refused(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
