"""Segments, the prefix cache and attention in parts, against brute force."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenscale.core.cost import popcount
from tokenscale.core.shape import ModelShape
from tokenscale.models.partial import Partial, attend, merged, nothing, with_sinks
from tokenscale.models.prefix_cache import LEAST_SHARED, PrefixCache, headers, shared
from tokenscale.models.segments import Chain, Segment, cut, length, prefill_of

IDS = st.lists(st.integers(0, 2), min_size=0, max_size=12).map(tuple)


def segment(ids: tuple[int, ...], before: Chain = ()) -> Segment:
    tokens = len(ids) - length(before)
    ran = np.array([[[1 << (token % 8)]] for token in ids[length(before) :]], np.uint8).reshape(tokens, 1, 1)
    return Segment(ids, length(before), before, [torch.zeros(1, tokens, 2)], [torch.zeros(1, tokens, 2)], ran)


def shape() -> ModelShape:
    values = {"moe_layers": 1, "experts": 8}
    made = object.__new__(ModelShape)
    for name, value in values.items():
        object.__setattr__(made, name, value)
    return made


@given(IDS, IDS)
def test_the_shared_beginning(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    brute = max(n for n in range(min(len(one), len(other)) + 1) if one[:n] == other[:n])
    assert shared(one, other) == brute


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.data())
def test_a_chain_cut_anywhere(sizes: list[int], data: st.DataObject) -> None:
    ids = tuple(range(sum(sizes)))
    chain: Chain = ()
    for end in np.cumsum(sizes).tolist():
        last = segment(ids[:end], chain)
        chain = (*chain, (last, last.tokens))
    tokens = data.draw(st.integers(1, len(ids)))
    part = cut(chain[-1][0], tokens)
    assert length(part) == tokens
    assert all(a.start + end == b.start for (a, end), (b, _) in pairwise(part))
    prefill = prefill_of(part, shape())
    assert prefill.runs == tokens
    assert popcount(prefill.experts) == len({i % 8 for i in range(tokens)})


@settings(max_examples=60)
@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=8), min_size=1, max_size=8), st.data())
def test_the_longest_beginning_is_found(texts: list[list[int]], data: st.DataObject) -> None:
    """Every token stands for LEAST_SHARED of them, so that all that is shared is worth a segment."""

    def long(text: list[int]) -> tuple[int, ...]:
        return tuple(t for token in text for t in [token] * LEAST_SHARED)

    cache = PrefixCache()
    for text in texts:
        cache.keep(segment(long(text)))
    asked = long(data.draw(st.lists(st.integers(0, 1), max_size=8)))
    assert length(cache.longest(asked)) == max(shared(long(text), asked) for text in texts)


def test_short_beginnings_are_not_worth_a_segment() -> None:
    cache = PrefixCache()
    cache.keep(segment(tuple(range(40))))
    assert cache.longest([*range(LEAST_SHARED - 1), 99]) == ()
    assert length(cache.longest([*range(LEAST_SHARED), 99])) == LEAST_SHARED
    assert length(cache.longest(range(3))) == 3  # all of it is there


def test_the_least_recently_used_goes_first() -> None:
    one, two, three = (segment(tuple(range(start, start + 20))) for start in (0, 100, 200))
    cache = PrefixCache(most_bytes=2 * one.kv_bytes)
    cache.keep(one)
    cache.keep(two)
    cache.longest(one.ids)
    cache.keep(three)
    assert cache.longest(two.ids) == ()
    assert cache.longest(one.ids)
    assert cache.bytes == 2 * one.kv_bytes
    cache.clear()
    assert cache.bytes == 0
    assert cache.longest(one.ids) == ()


def test_no_segment_goes_before_those_behind_it() -> None:
    """So the bound holds for what is alive, however segments are used."""
    header, other = segment(tuple(range(40))), segment(tuple(range(100, 140)))
    child = segment((*header.ids, 1, 2), ((header, 40),))
    cache = PrefixCache(most_bytes=header.kv_bytes + other.kv_bytes)
    for one in (header, child):
        cache.keep(one)
    cache.longest(child.ids)
    cache.keep(other)
    assert cache.bytes == header.kv_bytes + other.kv_bytes
    assert length(cache.longest(child.ids)) == 40
    assert header.ids in cache._segments
    assert child.ids not in cache._segments
    lost = segment(tuple(range(500, 540)))
    cache.keep(segment((*lost.ids, 1), ((lost, 40),)))
    assert cache.longest(lost.ids) == ()


def test_headers_of_prompts() -> None:
    header, other = tuple(range(30)), tuple(range(500, 540))
    prompts = [(*header, 7, 8), (*header, 9), (*other, 1), (*other, 2), (*other, 3), (1, 2, 3)]
    assert sorted(headers(prompts)) == [header, other]
    assert headers([(*header, 7)]) == []
    assert headers([(*header[:LEAST_SHARED], 7), (*header[:LEAST_SHARED], 8)]) == [header[:LEAST_SHARED]]
    assert headers([(1, 2), (1, 3)]) == []


def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, softcap: float, sinks: torch.Tensor | None) -> np.ndarray:
    """Attention head by head and query by query, in float64."""
    out = np.zeros((*q.shape[:3], v.shape[3]))
    group = q.shape[1] // k.shape[1]
    for b, h, i in np.ndindex(*q.shape[:3]):
        scores = k[b, h // group].double().numpy() @ q[b, h, i].double().numpy() * 0.3
        if softcap:
            scores = softcap * np.tanh(scores / softcap)
        weights = np.exp(scores)
        total = weights.sum() + (np.exp(float(sinks[h])) if sinks is not None else 0)
        out[b, h, i] = weights @ v[b, h // group].double().numpy() / total
    return out


@pytest.mark.parametrize("softcap", [0.0, 2.0])
@pytest.mark.parametrize("sunk", [False, True])
@given(st.integers(0, 99), st.integers(1, 4))
@settings(deadline=None, max_examples=15)
def test_parts_are_the_whole(softcap: float, sunk: bool, seed: int, parts: int) -> None:
    torch.manual_seed(seed)
    q, k, v = torch.randn(2, 4, 3, 8), torch.randn(2, 2, 11, 8), torch.randn(2, 2, 11, 6)
    sinks = torch.randn(4) if sunk else None
    part = nothing(q, 6)
    for keys, values in zip(k.chunk(parts, 2), v.chunk(parts, 2), strict=True):
        part = merged(part, attend(q, keys, values, 0.3, softcap=softcap))
    if sinks is not None:
        part = with_sinks(part, sinks)
    np.testing.assert_allclose(part.out.double().numpy(), plain(q, k, v, softcap, sinks), atol=2e-6)


def test_nothing_stays_nothing() -> None:
    q = torch.randn(1, 1, 2, 4)
    empty = attend(q, torch.randn(1, 1, 3, 4), torch.randn(1, 1, 3, 4), 1.0, torch.zeros(1, 2, 3, dtype=torch.bool))
    both = merged(empty, nothing(q, 4))
    assert torch.equal(both.out, torch.zeros(1, 1, 2, 4))
    assert both.lse.isneginf().all()
    assert isinstance(both, Partial)
