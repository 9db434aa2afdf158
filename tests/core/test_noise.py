"""Noise is a function of stream and place, and has the distribution it should.

Statistical tests have one fixed seed; with a fresh one each would fail once in 10,000 runs.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tokenscale.core.noise import (
    DROPOUT_DOMAIN,
    MAX_POSITIONS_PER_BLOCK,
    ROUTING_DOMAIN,
    UNIFORMS_PER_BLOCK,
    RowNoiseReader,
    Stream,
    UniformReader,
    gumbel,
    prompt_key,
    read_uniforms,
)

FALSE_ALARM = 1e-4

paths = st.lists(st.one_of(st.integers(-(2**70), 2**70), st.text(max_size=5)), max_size=4).map(tuple)


def noise(stream: Stream, rows: int = 3, layers: int = 2, experts: int = 8, positions: int = 500) -> np.ndarray:
    """Shape [positions, rows, layers, experts]."""
    reader = RowNoiseReader(stream, ROUTING_DOMAIN, rows, layers, experts)
    return np.stack([reader.at(p) for p in range(positions)])


def test_gumbel_noise_has_the_gumbel_distribution() -> None:
    draws = gumbel(torch.from_numpy(noise(Stream((0, "ks"))))).numpy().ravel()
    assert stats.kstest(draws, stats.gumbel_r.cdf).pvalue > FALSE_ALARM


def test_token_draws_are_uniform() -> None:
    reader = UniformReader(Stream((0, "ks")))
    assert stats.kstest([reader.at(p) for p in range(20_000)], stats.uniform.cdf).pvalue > FALSE_ALARM


def test_places_are_uncorrelated() -> None:
    draws = noise(Stream((0, "correlation")), positions=2000)
    other = noise(Stream((1, "correlation")), positions=2000)
    columns = np.concatenate([draws.reshape(2000, -1), other.reshape(2000, -1), draws.reshape(2000, -1)[:, :1]], axis=1)
    columns[1:, -1] = columns[:-1, 0]  # the position before
    correlation = np.corrcoef(columns, rowvar=False)
    pairs = correlation[np.triu_indices(len(correlation), 1)]
    # 2000 draws: a correlation is normal with deviation 1 / sqrt(2000); Bonferroni over the pairs.
    bound = stats.norm.isf(FALSE_ALARM / 2 / len(pairs)) / np.sqrt(2000)
    assert np.abs(pairs).max() < bound


def test_top_1_of_noisy_logits_samples_the_softmax() -> None:
    logits, tau = np.array([0.5, -1.0, 0.0, 1.2]), 0.7
    G = gumbel(torch.from_numpy(noise(Stream((0, "top")), rows=10, layers=2, experts=4))).numpy()
    counts = np.bincount((logits + tau * G).argmax(-1).ravel(), minlength=4)
    wanted = np.exp(logits / tau) / np.exp(logits / tau).sum()
    assert stats.chisquare(counts, wanted * counts.sum()).pvalue > FALSE_ALARM


def test_gumbel_equals_the_formula_in_float64() -> None:
    uniforms = (np.arange(1, 2**24, 9973) * 2.0**-24).astype(np.float32)
    wanted = -np.log(-np.log1p(-uniforms.astype(np.float64)))
    # The logarithm's argument is right to 2^-23; near noise 0 that is an absolute error.
    np.testing.assert_allclose(gumbel(torch.from_numpy(uniforms)).numpy(), wanted, rtol=2e-6, atol=3e-7)


def test_gumbel_is_finite_at_both_ends() -> None:
    ends = gumbel(torch.tensor([0.0, 1 - 2.0**-24]))
    assert ends[0].item() == pytest.approx(25 * np.log(2), abs=1e-5)
    assert ends[1].item() == pytest.approx(-np.log(24 * np.log(2)), abs=1e-5)


@given(paths, st.integers(1, 6), st.integers(0, 6), st.integers(0, 100))
def test_rows_of_a_small_n_are_the_first_of_a_large_one(path: tuple, few: int, more: int, position: int) -> None:
    small = RowNoiseReader(Stream(path), ROUTING_DOMAIN, few, 2, 5).at(position)
    large = RowNoiseReader(Stream(path), ROUTING_DOMAIN, few + more, 2, 5).at(position)
    np.testing.assert_array_equal(large[:few], small)


@given(paths, st.lists(st.integers(0, 3 * UNIFORMS_PER_BLOCK), min_size=1, max_size=20))
def test_draws_do_not_depend_on_what_was_read_before(path: tuple, positions: list[int]) -> None:
    used_uniforms, used_noise = UniformReader(Stream(path)), RowNoiseReader(Stream(path), ROUTING_DOMAIN, 2, 3, 4)
    for p in positions:
        assert used_uniforms.at(p) == UniformReader(Stream(path)).at(p)
        np.testing.assert_array_equal(used_noise.at(p), RowNoiseReader(Stream(path), ROUTING_DOMAIN, 2, 3, 4).at(p))


def test_large_layers_get_shorter_blocks() -> None:
    small, large = (
        RowNoiseReader(Stream((0,)), ROUTING_DOMAIN, 1, 2, 4),
        RowNoiseReader(Stream((0,)), ROUTING_DOMAIN, 1, 64, 256),
    )
    assert small._positions == MAX_POSITIONS_PER_BLOCK
    assert large._positions == 2
    assert not np.array_equal(large.at(1), large.at(2))


@given(paths, paths)
def test_equal_paths_and_no_others_give_equal_draws(one: tuple, other: tuple) -> None:
    equal = UniformReader(Stream(one)).at(3) == UniformReader(Stream(other)).at(3)
    assert equal == (one == other)


def test_numbers_and_texts_of_a_path_keep_apart_whatever_their_class() -> None:
    plain = UniformReader(Stream((3, "x"))).at(0)
    assert UniformReader(Stream((np.int64(3), np.str_("x")))).at(0) == plain
    assert UniformReader(Stream(("3", "x"))).at(0) != plain
    assert Stream((3,)).child("x") == Stream((3, "x"))


def test_token_routing_and_dropout_draws_come_from_different_domains() -> None:
    stream = Stream((0,))
    token = np.float32([UniformReader(stream).at(p) for p in range(8)])
    routing = RowNoiseReader(stream, ROUTING_DOMAIN, 1, 2, 4).at(0).ravel()
    dropout = RowNoiseReader(stream, DROPOUT_DOMAIN, 1, 2, 4).at(0).ravel()
    assert not np.intersect1d(token, routing).size
    assert not np.intersect1d(dropout, [*token, *routing]).size


def test_draws_are_the_same_on_every_machine_and_version() -> None:
    """Recorded once; a change here changes the results of every seed."""
    stream = Stream((0, "pinned", 1))
    assert UniformReader(stream).at(300) == 0.41902762633638047
    routing = RowNoiseReader(stream, ROUTING_DOMAIN, 2, 2, 4).at(17)[1, 1]
    np.testing.assert_array_equal(routing, np.float32([0.41132438, 0.0064344406, 0.96016234, 0.7257903]))


def test_one_uniform_per_reader_at_its_own_position() -> None:
    readers = [UniformReader(Stream((i,))) for i in range(3)]
    found = read_uniforms(readers, [5, 0, 900])
    assert found.dtype == torch.float64
    assert found.tolist() == [UniformReader(Stream((i,))).at(p) for i, p in enumerate((5, 0, 900))]


def test_prompt_keys_tell_prompts_and_repeats_apart() -> None:
    keys = [prompt_key((1, 2), 0), prompt_key((1, 2), 1), prompt_key((1, 3), 0), prompt_key((1,), 0)]
    assert len(set(keys)) == 4
    assert prompt_key([1, 2], 0) == keys[0]
