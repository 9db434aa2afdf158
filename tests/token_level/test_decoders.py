"""Greedy choice and sampling against plain numpy, and the margins that near-ties are counted by."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from tokenscale.core.errors import ArgumentError
from tokenscale.models.toy import ToyModel
from tokenscale.testing import check_decoder
from tokenscale.token_level.decoders import Greedy, Sample

FALSE_ALARM = 1e-4
DECODERS = [
    Greedy(),
    Sample(),
    Sample(0.5, top_k=3),
    Sample(3.0, top_p=0.5),
    Sample(1.0, min_p=0.1),
    Sample(2.0, 4, 0.9, 0.05),
]


@pytest.mark.parametrize("decoder", DECODERS, ids=repr)
def test_they_conform(decoder: Greedy | Sample) -> None:
    check_decoder(decoder, examples=50)


def choose(decoder: Greedy | Sample, probs: list[float], uniform: float = 0.5) -> tuple[int, float]:
    log_probs = torch.tensor([[probs]]).log()
    choice = decoder.choose(log_probs, torch.zeros(1, 1), torch.tensor([uniform], dtype=torch.float64))
    assert choice.parents.tolist() == [[0]]
    return int(choice.tokens), float(choice.margin)


def test_greedy_takes_the_most_likely_and_of_equals_the_first() -> None:
    assert choose(Greedy(), [0.2, 0.5, 0.3]) == (1, pytest.approx(math.log(0.5 / 0.3)))
    assert choose(Greedy(), [0.2, 0.4, 0.4]) == (1, 0.0)
    assert choose(Greedy(), [0.0, 1.0, 0.0]) == (1, math.inf)


@pytest.mark.parametrize(
    ("uniform", "token", "margin"),
    [
        (0.0, 0, 0.2),
        (0.19, 0, 0.01),
        (0.2, 1, 0.0),
        (0.4, 1, 0.2),
        (0.75, 3, 0.05),
        (0.999, 3, 0.299),
    ],
)
def test_a_uniform_number_falls_into_a_tokens_part(uniform: float, token: int, margin: float) -> None:
    found = choose(Sample(1.0), [0.2, 0.5, 0.0, 0.3], uniform)
    assert found == (token, pytest.approx(margin, abs=1e-6))


def test_the_largest_uniform_number_never_falls_out() -> None:
    probs = np.random.default_rng(0).dirichlet(np.ones(1000), size=20)
    log_probs = torch.tensor(np.concatenate([probs, np.zeros((20, 5))], 1), dtype=torch.float32).log()[:, None]
    largest = torch.full((20,), 1 - 2.0**-53, dtype=torch.float64)
    choice = Sample(1.0).choose(log_probs, torch.zeros(20, 1), largest)
    assert bool((log_probs[:, 0].gather(-1, choice.tokens) > float("-inf")).all())


def allowed(decoder: Sample, log_probs: np.ndarray) -> np.ndarray:
    """The distribution that is drawn from, by the definitions, one token at a time."""
    probs = np.exp(log_probs.astype(np.float64) / decoder.temperature)
    probs /= probs.sum()
    order = sorted(range(len(probs)), key=lambda t: -probs[t])
    if decoder.top_k is not None:
        kept = [t for t in order if probs[t] >= probs[order[min(decoder.top_k, len(order)) - 1]]]
        probs = np.array([p if t in kept else 0.0 for t, p in enumerate(probs)])
        probs /= probs.sum()
    if decoder.top_p is not None:
        total, kept = 0.0, []
        for token in order:
            if total < decoder.top_p:
                kept.append(token)
            total += probs[token]
        probs = np.array([p if t in kept else 0.0 for t, p in enumerate(probs)])
    if decoder.min_p is not None:
        probs[probs < decoder.min_p * probs.max()] = 0.0
    return probs / probs.sum()


options = st.builds(
    Sample,
    temperature=st.floats(0.1, 5),
    top_k=st.none() | st.integers(1, 8),
    top_p=st.none() | st.floats(0.01, 1),
    min_p=st.none() | st.floats(0, 0.99),
)


@given(options, arrays(np.float32, 6, elements=st.floats(-8, 8, width=32)), st.floats(0, 1, exclude_max=True))
def test_sampling_equals_the_definitions(decoder: Sample, logits: np.ndarray, uniform: float) -> None:
    log_probs = torch.log_softmax(torch.from_numpy(logits), -1)[None, None]
    choice = decoder.choose(log_probs, torch.zeros(1, 1), torch.tensor([uniform], dtype=torch.float64))
    ends = allowed(decoder, log_probs[0, 0].numpy()).cumsum()
    wanted = int(np.searchsorted(ends, uniform * ends[-1], side="right"))
    # Within rounding of a border the two may differ; the margin has to say so.
    assert int(choice.tokens) == wanted or float(choice.margin) < 1e-6


@given(
    options, arrays(np.float32, 6, elements=st.floats(-8, 8, width=32)), st.floats(0, 1, exclude_max=True), st.data()
)
def test_a_margin_bounds_what_rounding_can_change(
    decoder: Sample, logits: np.ndarray, uniform: float, data: st.DataObject
) -> None:
    """A change of log-probabilities far below the margin leaves the token as it is."""
    log_probs = torch.log_softmax(torch.from_numpy(logits), -1)[None, None]
    draws = torch.tensor([uniform], dtype=torch.float64)
    choice = decoder.choose(log_probs, torch.zeros(1, 1), draws)
    size = 1e-6
    signs = torch.from_numpy(data.draw(arrays(np.float32, 6, elements=st.sampled_from([-1.0, 0.0, 1.0]))))
    moved = decoder.choose(log_probs + size * signs, torch.zeros(1, 1), draws)
    # Borders move by at most twice the change over the temperature, and rounding in float32 adds as much.
    if float(choice.margin) > 4 * size / min(decoder.temperature, 1):
        assert torch.equal(moved.tokens, choice.tokens)


def test_cuts_near_a_token_are_near_ties() -> None:
    probs = [0.4, 0.3, 0.2, 0.1]
    assert choose(Sample(1.0, top_k=2), probs)[1] == pytest.approx(0.4 / 0.7 - 0.5)
    assert choose(Sample(1.0, top_k=3), [0.4, 0.3, 0.15, 0.15])[1] == pytest.approx(0.0, abs=1e-6)
    assert choose(Sample(1.0, top_p=0.7), probs, 0.2)[1] == pytest.approx(0.0, abs=1e-6)
    assert choose(Sample(1.0, top_p=0.6), [0.4, 0.3, 0.3], 0.2)[1] == pytest.approx(0.0, abs=1e-6)
    assert choose(Sample(1.0, min_p=0.5), probs, 0.1)[1] == pytest.approx(0.0, abs=1e-6)


def test_frequencies_follow_the_distribution() -> None:
    """Chi-square; with fresh uniform numbers it would fail once in 10,000 runs."""
    probs = torch.tensor([0.05, 0.4, 0.0, 0.25, 0.3])
    n = 20_000
    uniforms = torch.from_numpy(np.random.default_rng(0).random(n))
    choice = Sample(1.0).choose(probs.log().expand(n, 1, 5), torch.zeros(n, 1), uniforms)
    counts = np.bincount(choice.tokens.ravel(), minlength=5)
    assert counts[2] == 0
    kept = [0, 1, 3, 4]
    assert stats.chisquare(counts[kept], probs[kept].numpy() * n, sum_check=False).pvalue > FALSE_ALARM


@pytest.mark.parametrize("decoder", DECODERS, ids=repr)
def test_a_group_does_not_depend_on_the_batch_to_the_last_bit(decoder: Greedy | Sample) -> None:
    log_probs = torch.randn(9, 1, 97, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    uniforms = torch.from_numpy(np.random.default_rng(1).random(9))
    together = decoder.choose(log_probs, torch.zeros(9, 1), uniforms)
    for g in range(9):
        alone = decoder.choose(log_probs[g : g + 1], torch.zeros(1, 1), uniforms[g : g + 1])
        assert torch.equal(alone.tokens[0], together.tokens[g])
        assert torch.equal(alone.margin[0], together.margin[g])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, r"Sample\(temperature=0\): temperature must be above 0\n  fix: .*Greedy\(\)"),
        ({"temperature": -1.0}, "temperature must be above 0"),
        ({"temperature": math.nan}, "temperature must be a finite number"),
        ({"temperature": "hot"}, r"Sample\(temperature='hot'\): temperature must be a finite number"),
        ({"top_k": 0}, r"Sample\(top_k=0\): top_k must be at least 1"),
        ({"top_k": 2.5}, "top_k must be an integer"),
        ({"top_p": 0.0}, r"Sample\(top_p=0.0\): top_p must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1"),
        ({"min_p": 1.0}, r"Sample\(min_p=1.0\): min_p must be at least 0 and below 1"),
        ({"min_p": -0.1}, "min_p must be at least 0 and below 1"),
        ({"min_p": math.inf}, "min_p must be a finite number"),
    ],
)
def test_bad_parameters_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Sample(**options)


def test_equal_values_make_equal_parts() -> None:
    """Numbers of other classes become plain ones, which have a text form."""
    given = Sample(np.float32(0.5), top_p=np.float64(0.75), min_p=0)  # type: ignore[arg-type]
    assert repr(given) == repr(Sample(0.5, top_p=0.75, min_p=0.0))


def test_a_models_recommendation_is_taken_on_request() -> None:
    lm = ToyModel()
    assert Sample.from_model(lm) == Sample(temperature=1.0)
    lm.sampling_defaults = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.01}
    assert Sample.from_model(lm) == Sample(0.6, 20, 0.95, 0.01)
    lm.sampling_defaults = {"top_k": 0}
    assert Sample.from_model(lm) == Sample(temperature=1.0)
