"""The laws of the noise, and what it makes routers choose."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from tokenscale.core.noise import Stream
from tokenscale.core.plan import Routing
from tokenscale.token_level.roe_noise import KINDS, RoutingNoise, as_sequences, rows_of, standard

GUMBEL = stats.gumbel_r()
GAUSSIAN = stats.norm(scale=np.pi / np.sqrt(6))
# Each statistical test below is repeatable (fixed streams); its false-alarm rate is that of its seed.
FALSE_ALARM = 1e-4


def drawn(kind: str, rows: int, tokens: int = 400, experts: int = 5) -> np.ndarray:
    """Noise of strength 1, [tokens, rows, experts]."""
    noise = RoutingNoise((0.0, 1.0), experts, rows, kind=kind)
    reader = noise.reader(Stream(("law", kind)))
    steps = [noise.step([reader], [p]).noise for p in range(tokens)]
    return torch.stack([s for s in steps if s is not None])[:, 1, 0, 1:].double().numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_keeps_its_law(kind: Any) -> None:
    """Kolmogorov-Smirnov on 2,000 numbers a row, 4 rows: 4e-4 false alarms."""
    values = drawn(kind, 4)
    law = GAUSSIAN if kind == "gaussian" else GUMBEL
    for row in range(4):
        assert stats.kstest(values[:, row].ravel(), law.cdf).pvalue > FALSE_ALARM
    assert stats.kstest(values[0].ravel(), stats.norm(3).cdf).pvalue < FALSE_ALARM


def test_gaussian_noise_is_as_strong_as_gumbel_noise() -> None:
    assert GAUSSIAN.std() == pytest.approx(GUMBEL.std())


def test_antithetic_rows_are_pairs_of_opposites() -> None:
    """u and 1 - u within pairs, the exact law of u; nothing between pairs, and an odd last row is alone."""
    values = drawn("antithetic", 5)
    for one, other in itertools.combinations(range(5), 2):
        correlation = stats.pearsonr(values[:, one].ravel(), values[:, other].ravel()).statistic
        paired = one // 2 == other // 2
        # An independent pair's correlation over 2,000 numbers has standard deviation 0.022.
        assert (correlation < -0.5) if paired else abs(correlation) < 0.1


def test_opposites_of_all_multiples_are_all_multiples() -> None:
    """k of the 2^24 numbers has the opposite 2^24 - 1 - k, so the law is kept to the last bit, the ends included."""
    steps = np.array([0, 1, 2**23, 2**24 - 1], np.float32) * np.float32(2.0**-24)

    class Ends:
        def at(self, position: int) -> np.ndarray:
            return steps[None, None]

    noise = RoutingNoise((1.0,), experts=4, rows=2, kind="antithetic").step([Ends()], [0]).noise  # type: ignore[list-item]
    assert noise is not None
    assert torch.equal(noise[0, 0, 1], standard("gumbel", torch.from_numpy(steps)))
    mirrored = np.array([2**24 - 1, 2**24 - 2, 2**23 - 1, 0], np.float32) * np.float32(2.0**-24)
    assert torch.equal(noise[0, 0, 2], standard("gumbel", torch.from_numpy(mirrored)))


@pytest.mark.parametrize("kind", KINDS)
def test_noise_is_finite_at_the_ends(kind: Any) -> None:
    ends = torch.tensor([0.0, 2.0**-24, 0.5, 1 - 2.0**-24])
    values = standard(kind, ends)
    assert values.isfinite().all()
    assert values.dtype == torch.float32
    assert values.diff().sign().unique().numel() == 1


def test_a_row_has_the_same_noise_in_a_prompt_and_in_a_step() -> None:
    noise = RoutingNoise((0.5, 0.0, 2.0), experts=4, rows=3, kind="antithetic")
    stream = Stream(("prompt",))
    rows = noise.prompt(noise.reader(stream), 5)
    assert len(rows) == 4
    for position in range(5):
        step = noise.step([noise.reader(stream)], [position])
        assert step.noise is not None
        assert step.noisy is not None
        for row, prompt in enumerate(rows):
            assert prompt.noise is not None
            assert prompt.noisy is not None
            assert torch.equal(prompt.noise[:, 0, position], step.noise[:, 0, row])
            assert torch.equal(prompt.noisy[:, 0, position], step.noisy[:, 0, row])
            assert prompt.noisy[:, 0, position].tolist() == ([True, False, True] if row else [False] * 3)
    [empty, *_] = noise.prompt(noise.reader(stream), 0)
    assert empty.noise is not None
    assert empty.noise.shape == (3, 1, 0, 4)


def test_rows_are_taken_apart_in_order() -> None:
    routing = Routing.of(torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5))
    some, apart = rows_of(routing, 1, 3), as_sequences(routing)
    assert routing.noise is not None
    assert some.noise is not None
    assert apart.noise is not None
    assert torch.equal(some.noise, routing.noise[:, :, 1:3])
    assert apart.noise.shape == (2, 12, 1, 5)
    assert torch.equal(apart.noise[:, 4 * 2 + 3, 0], routing.noise[:, 2, 3])


def test_experts_drawn_evenly_are_drawn_evenly() -> None:
    """Chi-square over the 10 pairs of 5 experts, 2,000 draws: 1e-4 false alarms."""
    values = drawn("uniform-experts", 5)
    pairs = [tuple(sorted(np.argsort(-row)[:2])) for row in values.reshape(-1, 5)]
    counts = [pairs.count(pair) for pair in itertools.combinations(range(5), 2)]
    assert sum(counts) == 2000
    assert stats.chisquare(counts).pvalue > FALSE_ALARM


@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_gumbel_noise_draws_from_the_softmax_without_replacement(tau: float) -> None:
    """P(set) by enumeration over the orders of softmax(R / tau), chi-square on 2,000 draws: 1e-4 false alarms."""
    logits = np.array([1.0, 0.6, 0.5, -0.2, -1.0])
    values = logits + tau * drawn("gumbel", 5).reshape(-1, 5)
    share = np.exp(logits / tau) / np.exp(logits / tau).sum()
    sets = [tuple(sorted(np.argsort(-row)[:2])) for row in values]
    pairs = list(itertools.combinations(range(5), 2))
    wanted = [share[a] * share[b] / (1 - share[a]) + share[b] * share[a] / (1 - share[b]) for a, b in pairs]
    assert sum(wanted) == pytest.approx(1)
    counts = np.array([sets.count(pair) for pair in pairs])
    assert stats.chisquare(counts, np.array(wanted) * len(sets)).pvalue > FALSE_ALARM
