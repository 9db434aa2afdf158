"""How often noise picks which set of experts: chi-square tests of every architecture, with the noise's law as oracle.

Where a router ranks its logits alone, k experts are drawn without replacement from softmax(R / tau); the
probability of a set is the sum over its orders. Elsewhere the numpy oracle of its rule draws a second,
larger sample. Every test has a false-alarm rate of 1e-4; seeds are fixed, so a green test stays green.
"""

from __future__ import annotations

from collections import Counter
from itertools import combinations, permutations
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from tests.models.executed import Layer, executed, layers
from tests.models.router_oracle import Array, Oracle, softmax
from tests.models.test_router_choices import ids, model_of
from tests.models.test_routers import SLOW
from tokenscale.core.plan import Routing
from tokenscale.models.routers import find_routers, watch

FALSE_ALARMS = 1e-4
DRAWS, ORACLE_DRAWS = 4000, 40_000
TAU = {"logits": 0.7, "scores": 0.3, "nothing": 1.0}


@torch.no_grad()
def one_token(name: str) -> tuple[Layer, tuple[Any, ...]]:
    """The first router that chooses, and its arguments: one token of a forward, DRAWS times."""
    model = model_of(name)
    found = layers(model, find_routers(model))
    with executed(found):
        model(ids())
    layer = next(layer for layer in found if layer.router.supports)

    def repeated(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.ndim == 1:
            return value
        token = value.flatten(0, -2)[3:4].expand(DRAWS, -1)
        return token[None] if value.ndim == 3 else token

    layer.inputs = [tuple(repeated(value) for value in layer.inputs[0])]
    return layer, layer.inputs[0]


@torch.no_grad()
def drawn(layer: Layer, args: tuple[Any, ...], on: Any, random: np.random.Generator) -> Counter[tuple[int, ...]]:
    """The sets of experts of DRAWS tokens with the same hidden state."""
    router = layer.router
    noise = random.gumbel(size=(1, 1, DRAWS, router.experts)) * TAU[on]
    routing = Routing(torch.tensor(noise, dtype=torch.float32), torch.ones(1, 1, DRAWS, dtype=torch.bool), on)
    with watch([router], routing) as record:
        if router.method == "forward":
            layer.module(*args)
        else:
            getattr(router.module, router.method)(layer.module(*args))
    return Counter(tuple(sorted(row)) for row in record.chosen[0].tolist())


def without_replacement(shares: Array, k: int) -> dict[tuple[int, ...], float]:
    """The probability of every set of k, drawn one after the other."""
    probability = {}
    for chosen in combinations(range(len(shares)), k):
        total = 0.0
        for order in permutations(chosen):
            left, product = 1.0, 1.0
            for expert in order:
                product *= shares[expert] / left
                left -= shares[expert]
            total += product
        probability[chosen] = total
    return probability


def sampled(oracle: Oracle, logits: Array, on: str, random: np.random.Generator) -> Counter[tuple[int, ...]]:
    """Sets that the rule draws in numpy."""
    noise = random.gumbel(size=(ORACLE_DRAWS, logits.shape[-1])) * TAU[on]
    ranked = oracle.ranked(logits + noise) if on == "logits" else oracle.ranked(logits) + noise
    best = np.argsort(-ranked, axis=-1)[:, : oracle.top_k]
    return Counter(tuple(sorted(row)) for row in best.tolist())


def merged(seen: Counter[tuple[int, ...]], expected: dict[tuple[int, ...], float]) -> tuple[Array, Array]:
    """Counts of sets of which at least five are expected, all others as one."""
    common = [chosen for chosen, count in expected.items() if count >= 5]
    cells = [(seen[chosen], expected[chosen]) for chosen in common]
    rest = (DRAWS - sum(s for s, _ in cells), DRAWS - sum(e for _, e in cells))
    return np.array([*cells, rest] if max(rest) > 1e-9 else cells, np.float64).T


@pytest.mark.parametrize("on", ["logits", *(pytest.param(on, marks=pytest.mark.slow) for on in ("scores", "nothing"))])
@pytest.mark.parametrize("name", SLOW)
def test_sets_are_drawn_as_often_as_the_law_says(name: str, on: str) -> None:
    random = np.random.default_rng(7)
    layer, args = one_token(name)
    seen = drawn(layer, args, on, random)
    logits, _ = layer.logits()
    k, experts = layer.router.top_k, layer.router.experts
    if on == "nothing" or (on == "logits" and layer.router.monotone):
        shares = np.full(experts, 1 / experts) if on == "nothing" else softmax(logits[0] / TAU[on])
        law = {chosen: p * DRAWS for chosen, p in without_replacement(shares, k).items()}
        counts, expected = merged(seen, law)
        assert len(counts) > 3
        assert stats.chisquare(counts, expected).pvalue > FALSE_ALARMS
        return
    oracle = layer.oracle(name, model_of(name).config.get_text_config(decoder=True))
    other = sampled(oracle, logits[:1], on, random)
    law = {chosen: count * DRAWS / ORACLE_DRAWS for chosen, count in other.items()}
    counts, expected = merged(seen, law)
    table = np.stack([counts, expected * ORACLE_DRAWS / DRAWS])
    assert table.shape[1] > 3
    assert stats.chi2_contingency(table[:, table.sum(0) > 0]).pvalue > FALSE_ALARMS
