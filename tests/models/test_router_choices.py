"""The experts that noisy rows run, and their gate weights, against a numpy oracle of each router's rule."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from tests.models.executed import Layer, doge_block, executed, layers
from tests.models.router_oracle import Array, Oracle
from tests.models.test_routers import SLOW, WAYS
from tests.models.zoo import ZOO, tiny_model
from tokenscale.core.plan import Routing
from tokenscale.models.routers import RoutingRecord, find_routers, watch

BATCH, ROWS = 2, 5
TOLERANCE = 2e-5  # float32 gates against float64, of scale up to 2.5
KINDS = [
    ("logits", "original"),
    ("scores", "perturbed"),
    pytest.param("logits", "perturbed", marks=pytest.mark.slow),
    pytest.param("scores", "original", marks=pytest.mark.slow),
    pytest.param("nothing", "original", marks=pytest.mark.slow),
    pytest.param("nothing", "perturbed", marks=pytest.mark.slow),
]
NO_RANKS = ("phimoe", "jetmoe", "deepseek_v4")

model_of = cache(tiny_model)


def noise(name: str, seed: int, tau: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Gumbel noise for all but the first row and all but the last layer."""
    found = find_routers(model_of(name))
    size = (len(found), BATCH, ROWS, max(r.experts for r in found))
    uniform = torch.rand(size, generator=torch.Generator().manual_seed(seed)).clamp(1e-6, 1 - 1e-6)
    noisy = torch.ones(size[:3], dtype=torch.bool)
    noisy[:, :, 0] = False
    noisy[-1] = False
    return -(-uniform.log()).log() * tau, noisy


def ids() -> torch.Tensor:
    return torch.arange(5, 5 + BATCH * ROWS).view(BATCH, ROWS)


@torch.no_grad()
def run(name: str, routing: Routing | None) -> tuple[list[Layer], RoutingRecord]:
    model = model_of(name)
    routers = find_routers(model)
    found = layers(model, routers)
    with executed(found), watch(routers, routing) as record:
        model(ids())
    return found, record


def calls(found: list[Layer], routers: int) -> list[tuple[Layer, int]]:
    """The layer and the call of every router, in the order of routers."""
    order: list[tuple[Layer, int]] = []
    for layer in found:
        order += [(layer, call) for call in range(len(layer.inputs))]
    assert len(order) == routers
    return order


def ranking(oracle: Oracle, logits: Array, shift: Array, routing: Routing) -> Array:
    """What a noisy token ranks."""
    if routing.noise_on == "nothing":
        return shift
    if routing.noise_on == "logits":
        return oracle.ranked(logits + shift)
    return oracle.ranked(logits) + shift


def expected_choice(oracle: Oracle, logits: Array, shift: Array, noisy: Array, routing: Routing) -> list[list[int]]:
    orders = oracle.order(logits)
    moved = ranking(oracle, logits, shift, routing)
    chosen = []
    for token in range(len(logits)):
        ranks = routing.ranks[token % ROWS] if routing.ranks else None
        order = orders[token]
        if ranks is not None:
            chosen.append(order[ranks[0] - 1 : ranks[1]])
        elif not noisy[token]:
            chosen.append(order[: oracle.top_k])
        else:
            head = order[: routing.keep_head]
            pool = order[routing.keep_head : routing.candidate_pool]
            drawn = sorted(pool, key=lambda e: -max(moved[token, e], -1e30))
            chosen.append(head + drawn[: oracle.top_k - len(head)])
    return chosen


def check(name: str, routing: Routing) -> int:
    """Compares everything; returns how many choices noise changed."""
    found, record = run(name, routing)
    config = model_of(name).config.get_text_config(decoder=True)
    total = max(layer.router.experts for layer in found)
    marks, changed = record.marks(BATCH, ROWS, total), record.changed(BATCH, ROWS, total)
    for number, (layer, call) in enumerate(calls(found, len(record.layers))):
        if layer.router.supports:
            logits, shared = layer.logits(call)
            tokens, experts = logits.shape
            shift, noisy = np.zeros((tokens, experts)), np.zeros(tokens, np.bool_)
            if routing.noise is not None and routing.noisy is not None:
                noisy = routing.noisy[number].flatten().numpy()
                shift = routing.noise[number].flatten(0, 1)[:, :experts].double().numpy() * noisy[:, None]
            oracle = layer.oracle(name, config)
            chosen = expected_choice(oracle, logits, shift, noisy, routing)
            weighed = logits
            if routing.weights == "perturbed" and routing.noise is not None:
                alone = noisy[:, None] & (routing.noise_on == "nothing")
                weighed = np.where(alone, shift, logits + shift)
            gates = oracle.gates(weighed, chosen, shared)
            compare(layer, call, gates)
            ran, differs = marks[:, :, number].flatten(0, 1), changed[:, :, number].flatten()
            paid = experts - layer.router.free
            clean = [set(order[: oracle.top_k]) for order in oracle.order(logits)]
            for token, picked in enumerate(chosen):
                assert set(ran[token].nonzero()[:, 0].tolist()) == {e for e in picked if e < paid}
                assert bool(differs[token]) == (bool(noisy[token]) and set(picked) != clean[token])
    return int(changed.sum())


def compare(layer: Layer, call: int, gates: Array) -> None:
    kind = type(layer.module).__name__
    if kind == "DogeCDMoE":
        gates = doge_block(layer.module, layer.inputs[call][0], gates)
        np.testing.assert_allclose(layer.gates[call].reshape(gates.shape), gates, rtol=0, atol=TOLERANCE)
        return
    if kind == "ZayaRouter":
        gates[:, -1] = 0  # the skip expert
    np.testing.assert_allclose(layer.gates[call], gates, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("on", "weights"), KINDS)
@pytest.mark.parametrize("name", SLOW)
def test_noisy_rows_run_the_experts_and_weights_of_the_rule(name: str, on: Any, weights: Any) -> None:
    shift, noisy = noise(name, seed=3)
    assert check(name, Routing(shift, noisy, on, weights)) > 0


@pytest.mark.parametrize("on", ["logits", *(pytest.param(on, marks=pytest.mark.slow) for on in ("scores", "nothing"))])
@pytest.mark.parametrize("name", WAYS)
def test_a_head_is_kept_and_a_pool_not_left(name: str, on: Any) -> None:
    shift, noisy = noise(name, seed=4, tau=3.0)
    top_k = find_routers(model_of(name))[-1].top_k
    check(name, Routing(shift, noisy, on, keep_head=top_k - 1, candidate_pool=top_k + 2))
    check(name, Routing(shift, noisy, on, "perturbed", keep_head=min(1, top_k - 1), candidate_pool=top_k + 1))
    check(name, Routing(shift, noisy, on, candidate_pool=top_k))


@pytest.mark.parametrize("name", [p for p in WAYS if p.values[0] not in NO_RANKS])
def test_ranks_run_the_experts_of_the_routers_own_order(name: str) -> None:
    top_k = find_routers(model_of(name))[-1].top_k
    check(name, Routing(ranks=((1, top_k + 1),) * ROWS))
    check(name, Routing(ranks=(None, (2, 2), (1, 2), (1, top_k + 2), (3, 5))))
    shift, noisy = noise(name, seed=5)
    noisy[:, :, 1] = False
    check(name, Routing(shift, noisy, ranks=(None, (2, 2), None, None, None)))


def zero(name: str, **rule: Any) -> Routing:
    shift, noisy = noise(name, seed=0)
    return replace(Routing(torch.zeros_like(shift), torch.ones_like(noisy)), **rule)


@pytest.mark.parametrize("name", WAYS)
@torch.no_grad()
def test_zero_noise_through_the_noisy_path_is_the_model(name: str) -> None:
    model, routers = model_of(name), find_routers(model_of(name))
    together = name != "doge"  # of several tokens, doge's own forward mixes the routing
    tokens = ids() if together else ids()[:1, :1]
    plain = model(tokens).logits
    rules: list[dict[str, Any]] = [{}, {"noise_on": "scores"}, {"weights": "perturbed"}, {"keep_head": 1}]
    for rule in [*rules, {"keep_head": 1, "candidate_pool": routers[-1].top_k + 1, "weights": "perturbed"}]:
        routing = zero(name, **rule)
        if not together:
            assert routing.noise is not None
            assert routing.noisy is not None
            routing = replace(routing, noise=routing.noise[:, :1, :1], noisy=routing.noisy[:, :1, :1])
        with watch(routers, routing) as record:
            noisy = model(tokens).logits
        torch.testing.assert_close(noisy, plain, rtol=0, atol=1e-5)
        assert not record.changed(*tokens.shape, max(r.experts for r in routers)).any()


@torch.no_grad()
def test_tokens_of_doge_route_themselves_whatever_else_is_in_the_forward() -> None:
    model, routers = model_of("doge"), find_routers(model_of("doge"))
    block = model.model.layers[0].mlp
    hidden = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))
    with watch(routers[:1], None):
        together = block(hidden)[0]
    alone = torch.stack([torch.cat([block(token[None, None])[0][0] for token in row]) for row in hidden])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
    assert not torch.allclose(block(hidden)[0], alone, atol=1e-3)


def test_a_table_of_tokens_is_left_as_it_is() -> None:
    shift, noisy = noise("deepseek_v4", seed=1)
    found, record = run("deepseek_v4", Routing(shift, noisy))
    clean, _ = run("deepseek_v4", None)
    np.testing.assert_array_equal(found[0].gates[0], clean[0].gates[0])
    assert not record.noisy(BATCH, ROWS)[..., 0].any()
    assert record.noisy(BATCH, ROWS)[..., 1].sum() == BATCH * (ROWS - 1)


def test_every_architecture_has_an_oracle() -> None:
    from tests.models.router_oracle import RULES

    assert sorted({*RULES, "phimoe", "inkling_text"}) == ZOO
