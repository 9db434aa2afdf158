"""Watching leaves no trace, and says by name what a router cannot do."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.overrides import _get_current_function_mode_stack

from tests.models.test_router_choices import BATCH, ROWS, ids, model_of, noise, zero
from tests.models.test_routers import WAYS
from tests.models.zoo import tiny_model
from tokenscale.core.errors import RoutingError
from tokenscale.core.plan import Routing
from tokenscale.models.routers import find_routers, no_noise, no_ranks, watch


def snapshot(model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """All weights, and whatever else the modules hold."""
    held = {}
    for name, module in model.named_modules():
        held[name] = {k: v for k, v in vars(module).items() if not k.startswith("_") or "hooks" in k}
        held[name] = {k: copy.copy(v) if isinstance(v, dict) else v for k, v in held[name].items()}
    return copy.deepcopy(model.state_dict()), held


def assert_unchanged(model: Any, before: tuple[dict[str, Any], dict[str, Any]]) -> None:
    weights, held = snapshot(model)
    assert all(torch.equal(value, weights[name]) for name, value in before[0].items())
    assert held == before[1]
    assert not _get_current_function_mode_stack()


class Broken(Exception):
    """Raised inside a forward."""


@pytest.mark.parametrize("name", WAYS)
@torch.no_grad()
def test_the_model_is_as_it_was_after_any_exit(name: str) -> None:
    model = model_of(name)
    routers, tokens = find_routers(model), ids()
    before, plain = snapshot(model), model(tokens).logits
    shift, noisy = noise(name, seed=1)
    routing = Routing(shift, noisy, weights="perturbed", keep_head=1)
    with watch(routers, routing):
        model(tokens)
    assert_unchanged(model, before)

    def broken(module: Any, args: Any, output: Any) -> None:
        raise Broken

    # Where the last router has modules inside, within the passes over its operations.
    handles = [module.register_forward_hook(broken) for module in routers[-1].module.modules()]
    with pytest.raises(Broken), watch(routers, routing):
        model(tokens)
    for handle in handles:
        handle.remove()
    assert_unchanged(model, before)
    few = Routing(shift[:, :, :4], torch.ones_like(noisy[:, :, :4]))
    with pytest.raises(RoutingError, match=r"(?s)chose for 10 .* noise is of 8.*fix: give noise"), watch(routers, few):
        model(tokens)
    assert_unchanged(model, before)
    assert torch.equal(model(tokens).logits, plain)


def test_a_forward_of_an_instance_is_put_back() -> None:
    """As accelerate sets it, to move weights before a module runs."""
    model = tiny_model("olmoe")
    gate = model.model.layers[0].mlp.gate
    original = gate.forward
    called = []

    def moved(hidden: torch.Tensor) -> Any:
        called.append(hidden)
        return original(hidden)

    gate.forward = moved
    with torch.no_grad(), watch(find_routers(model), zero("olmoe")):
        model(ids())
    assert gate.forward is moved
    assert len(called) == 2  # on trial, and in the forward


def test_a_router_whose_weights_come_when_it_runs() -> None:
    """As accelerate offloads them: on the meta device until a hook fetches them."""
    model, whole = tiny_model("olmoe"), tiny_model("olmoe")
    for layer in model.model.layers:
        gate, weight, original = layer.mlp.gate, layer.mlp.gate.weight, layer.mlp.gate.forward

        def fetched(hidden: torch.Tensor, gate: Any = gate, weight: Any = weight, original: Any = original) -> Any:
            gate.weight = weight
            try:
                return original(hidden)
            finally:
                gate.weight = torch.nn.Parameter(weight.to("meta"))

        gate.weight = torch.nn.Parameter(weight.to("meta"))
        gate.forward, gate._hf_hook = fetched, SimpleNamespace(execution_device="cpu")
    shift, noisy = noise("olmoe", seed=1)
    outputs = []
    for each in (model, whole):
        with torch.no_grad(), watch(find_routers(each), Routing(shift, noisy)):
            outputs.append(each(ids()).logits)
    assert torch.equal(*outputs)


def run(name: str, routing: Routing) -> None:
    model = model_of(name)
    with torch.no_grad(), watch(find_routers(model), routing):
        model(ids())


@pytest.mark.parametrize(
    ("name", "router"), [("jetmoe", "JetMoeTopKGating"), ("phimoe", "Phimoe"), ("deepseek_v4", "DeepseekV4HashRouter")]
)
def test_ranks_are_refused_by_the_name_of_the_router(name: str, router: str) -> None:
    with pytest.raises(RoutingError, match=rf"(?s)cannot do this: {router}\w* takes no ranks: .*fix: leave it out"):
        run(name, Routing(ranks=((1, 4),) * ROWS))
    assert no_ranks(find_routers(model_of(name))).startswith(router)
    assert no_noise(find_routers(model_of(name))) == ""


def test_what_a_model_lacks() -> None:
    assert no_noise([]) == no_ranks([]) == "it is a dense model, without routers"
    tables = [r for r in find_routers(model_of("deepseek_v4")) if not r.supports]
    assert no_noise(tables) == "it looks its experts up by token id"


@pytest.mark.parametrize("rule", [{"keep_head": 4}, {"candidate_pool": 2}])
def test_a_head_or_pool_that_cannot_be_is_refused(rule: dict[str, int]) -> None:
    with pytest.raises(RoutingError, match=r"(?s)do not leave the router \S*gate its 3 experts.*fix: give a keep_head"):
        run("olmoe", zero("olmoe", **rule))


@pytest.mark.parametrize("ranks", [(1, 9), (0, 2), (3, 2)])
def test_ranks_that_cannot_be_are_refused(ranks: tuple[int, int]) -> None:
    with pytest.raises(RoutingError, match=r"(?s)has 8 experts, and no ranks.*fix: give"):
        run("olmoe", Routing(ranks=(ranks,) * ROWS))


def test_ranks_of_another_number_of_rows_are_refused() -> None:
    with pytest.raises(RoutingError, match=r"(?s)10 tokens, which are not rows of 3.*fix: give one entry"):
        run("olmoe", Routing(ranks=((1, 2),) * 3))


def test_noise_of_too_few_experts_is_refused() -> None:
    routing = zero("olmoe")
    assert routing.noise is not None
    with pytest.raises(RoutingError, match=r"(?s)noise is of 7 experts, and the router .* has 8.*fix: give noise"):
        run("olmoe", Routing(routing.noise[..., :7], routing.noisy))


def test_a_router_that_does_other_operations_than_on_trial_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("deepseek_v3")
    routers = find_routers(model)
    gate = model.model.layers[1].mlp.gate

    def fused(hidden: torch.Tensor) -> Any:
        logits = hidden.reshape(-1, 32) @ gate.weight.T
        return logits, logits.sigmoid().topk(3).values, logits.topk(3).indices

    monkeypatch.setattr(gate, "forward", fused)
    shift, noisy = noise("deepseek_v3", seed=1)
    found = pytest.raises(RoutingError, match=r"(?s)did not rank its 8 experts .*\(\w+ instead of \w+\).*fix: load")
    with found, torch.no_grad(), watch(routers, Routing(shift, noisy)):
        model(ids())


def test_the_padding_of_narrow_rows_is_an_expert_with_weight_zero() -> None:
    """So that experts need no rule for rows that run fewer."""
    model = model_of("mixtral")
    routers, given = find_routers(model), []
    handle = model.model.layers[1].mlp.experts.register_forward_pre_hook(lambda m, args: given.append(args))
    with torch.no_grad(), watch(routers, Routing(ranks=(None, (2, 2), None, (1, 4), (1, 1)))) as record:
        model(ids())
    handle.remove()
    [(_, indices, weights)] = given
    assert indices.shape == weights.shape == (BATCH * ROWS, 4)
    counts = torch.tensor([3, 1, 3, 4, 1]).repeat(BATCH)
    assert ((weights > 0).sum(-1) == counts).all()
    assert (weights.sum(-1) - 1).abs().max() < 1e-6
    marks = record.marks(BATCH, ROWS, 8)
    assert (marks[:, :, 1].flatten(0, 1).sum(-1) == counts).all()
    narrow = weights == 0
    assert (indices[narrow] == indices[:, :1].expand_as(indices)[narrow]).all()


@pytest.mark.parametrize("name", ["olmoe", "gpt_oss", "deepseek_v3", "llama4_text"])
@torch.no_grad()
def test_half_precision_keeps_the_types_and_takes_noise_in_float32(name: str) -> None:
    """Noise far below the spacing of bfloat16 still decides between experts whose logits are equal."""
    model = tiny_model(name).to(torch.bfloat16)
    routers = find_routers(model)
    with torch.no_grad():
        for router in routers:
            for parameter in router.module.parameters():
                parameter.zero_()
    plain = model(ids()).logits
    shift, noisy = noise(name, seed=2)
    with watch(routers, Routing(shift * 1e-4, noisy)) as record:
        out = model(ids()).logits
    assert out.dtype == plain.dtype == torch.bfloat16
    best = shift[0].topk(routers[0].top_k, dim=-1).indices
    expected = torch.zeros(BATCH, ROWS, 8, dtype=torch.bool).scatter_(-1, best, True)
    if name != "deepseek_v3":  # whose bias decides
        assert torch.equal(record.marks(BATCH, ROWS, 8)[:, 1:, 0], expected[:, 1:])
    with watch(routers, zero(name)):
        assert torch.equal(model(ids()).logits, plain)
