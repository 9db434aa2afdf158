"""Query rows over the clean cache against a sequential reference: transformers' own cache, one row at a time."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import DynamicCache

from tests.models.tiny import MOE, tiny
from tokenscale.core.errors import RoutingError
from tokenscale.core.plan import Routing, RowPlan
from tokenscale.models.hf import wrap

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12, 13], [14], [20, 21, 22, 23]]
LAYERS, EXPERTS, TOP_K = 3, 8, 3
TOLERANCE = 1e-5  # float32, sums in another order


def noise(batch: int, rows: int, step: int) -> torch.Tensor:
    """Gumbel noise at tau = 1 for every row but the clean one."""
    generator = torch.Generator().manual_seed(step)
    uniform = torch.rand(LAYERS, batch, rows, EXPERTS, generator=generator).clamp(1e-6, 1 - 1e-6)
    shift = -(-uniform.log()).log()
    shift[:, :, 0] = 0
    return shift


def routers(model: Any) -> list[Any]:
    return [layer.mlp.gate for layer in model.model.layers]


def reference(model: Any, tokens: list[int], shift: torch.Tensor) -> torch.Tensor:
    """Logits of one noisy row: a clean prefill of the past, then the last token with noisy selection."""
    cache = DynamicCache(config=model.config)
    if tokens[:-1]:
        model(input_ids=torch.tensor([tokens[:-1]]), cache=cache, use_cache=True)
    renormalise = getattr(model.config, "norm_topk_prob", True)
    originals = []
    for router, g in zip(routers(model), shift, strict=True):
        originals.append(router.forward)

        def forward(hidden: torch.Tensor, router: Any = router, g: torch.Tensor = g) -> tuple[torch.Tensor, ...]:
            logits = F.linear(hidden.reshape(-1, hidden.shape[-1]), router.weight)
            chosen = (logits + g).sort(-1, descending=True).indices[:, :TOP_K]
            weights = (logits.exp() / logits.exp().sum(-1, keepdim=True)).gather(-1, chosen)
            return logits, weights / weights.sum(-1, keepdim=True) if renormalise else weights, chosen

        router.forward = forward
    try:
        return model(input_ids=torch.tensor([tokens[-1:]]), cache=cache, use_cache=True).logits[0, -1]
    finally:
        for router, original in zip(routers(model), originals, strict=True):
            router.forward = original


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", MOE)
@torch.no_grad()
def test_rows_equal_a_sequential_reference_in_a_batch_that_changes(family: str, attention: str) -> None:
    model = tiny(family, attention)
    lm = wrap(model)
    sequences = [list(p) for p in PROMPTS]
    state = lm.prefill([p[:-1] for p in PROMPTS])
    for step in range(6):
        shift = noise(len(sequences), 4, step)
        tokens = torch.tensor([s[-1] for s in sequences])
        out = lm.step(state, tokens, RowPlan(4, Routing.of(shift)))
        for b, sequence in enumerate(sequences):
            for row in range(4):
                expected = reference(model, sequence, shift[:, b, row])
                torch.testing.assert_close(out.logits[b, row], expected, rtol=0, atol=TOLERANCE)
        for sequence, row in zip(sequences, out.logits[:, 0], strict=True):
            sequence.append(int(row.argmax()))
        if step == 1:
            state, sequences = state.select([2, 0, 3]), [sequences[i] for i in (2, 0, 3)]
        if step == 2:
            newcomers = [list(range(30, 50)), [60]]
            state = state.join(lm.prefill([p[:-1] for p in newcomers]))
            sequences += newcomers
        if step == 3:
            state, sequences = state.select([3, 1, 1]), [list(sequences[i]) for i in (3, 1, 1)]
    assert state.lengths == [len(s) - 1 for s in sequences]


@pytest.mark.parametrize("family", MOE)
@torch.no_grad()
def test_experts_and_changes_are_those_of_the_routers(family: str) -> None:
    model = tiny(family)
    lm = wrap(model)
    seen: list[torch.Tensor] = []
    handles = [r.register_forward_hook(lambda m, a, out: seen.append(out[0].detach())) for r in routers(model)]
    state = lm.prefill([[5, 6, 7], [8]])
    seen.clear()
    shift = noise(2, 5, 0)
    shift[1] = 0
    out = lm.step(state, torch.tensor([3, 4]), RowPlan(5, Routing.of(shift)))
    for handle in handles:
        handle.remove()
    assert out.experts is not None
    assert out.changed is not None
    for layer, logits in enumerate(seen):
        clean = logits.view(2, 5, EXPERTS)
        used = clean + shift[layer]
        ran = [[set(r.topk(TOP_K).indices.tolist()) for r in b] for b in used]
        free = [[set(r.topk(TOP_K).indices.tolist()) for r in b] for b in clean]
        for b in range(2):
            for row in range(5):
                assert set(out.experts[b, row, layer].nonzero()[:, 0].tolist()) == ran[b][row]
                assert bool(out.changed[b, row, layer]) == (ran[b][row] != free[b][row])
    assert out.changed[:, 1:, [0, 2]].any()
    assert not out.changed[:, :, 1].any()
    assert out.noisy is not None
    assert out.noisy.sum((1, 2)).tolist() == [4 * 2] * 2


@torch.no_grad()
def test_prefill_in_groups_equals_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenscale.models.hf.PREFILL_TOKENS", 12)
    lm = wrap(tiny("olmoe"))
    prompts = [list(range(5, 5 + n)) for n in (7, 2, 0, 4, 9, 3, 3)]
    state = lm.prefill(prompts)
    assert state.lengths == [len(p) for p in prompts]
    together = lm.step(state, torch.tensor([50] * len(prompts))).logits
    for b, prompt in enumerate(prompts):
        alone_state = lm.prefill([prompt])
        alone = lm.step(alone_state, torch.tensor([50])).logits
        torch.testing.assert_close(together[b], alone[0], rtol=0, atol=TOLERANCE)
        assert (state.prefills[b].experts == alone_state.prefills[0].experts).all()


def test_the_model_is_as_it_was_after_any_exit() -> None:
    model = tiny("olmoe")
    before = copy.deepcopy(model.state_dict())
    lm = wrap(model)
    state = lm.prefill([[5, 6, 7]])
    plan = RowPlan(4, Routing.of(noise(1, 4, 0)))
    lm.step(state, torch.tensor([8]), plan)
    with pytest.raises(IndexError):
        lm.step(state, torch.tensor([10**6]), plan)  # no such token: the embedding refuses it
    assert all(not module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    reference_logits = tiny("olmoe")(torch.tensor([[5, 6, 7]])).logits
    assert torch.equal(model(torch.tensor([[5, 6, 7]])).logits, reference_logits)


def test_a_router_that_is_bypassed_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("olmoe")
    lm = wrap(model)
    state = lm.prefill([[5, 6, 7]])
    block = model.model.layers[1].mlp
    # A fused kernel computes the routes itself: the router module is never called.
    monkeypatch.setattr(block, "forward", lambda hidden: hidden)
    with pytest.raises(RoutingError, match=r"(?s)1 of 3 routers were not called.*fix: load the model without fused"):
        lm.step(state, torch.tensor([8]), RowPlan(2, Routing.of(noise(1, 2, 0))))


def test_a_router_that_is_called_twice_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of another, so that the number of calls is right, and every layer's record wrong."""
    model = tiny("olmoe")
    lm = wrap(model)
    state = lm.prefill([[5, 6, 7]])
    layers = model.model.layers
    monkeypatch.setattr(layers[0].mlp, "forward", layers[1].mlp.forward)
    with pytest.raises(RoutingError, match=r"1 of 3 routers were not called"):
        lm.step(state, torch.tensor([8]))
    monkeypatch.undo()
    first, block = layers[0].mlp.gate, layers[0].mlp.forward
    monkeypatch.setattr(layers[0].mlp, "forward", lambda hidden: (first(hidden.flatten(0, 1)), block(hidden))[1])
    with pytest.raises(
        RoutingError, match=r"(?s)not called once each.*0.mlp.gate, \S*0.mlp.gate.*fix: use a model whose"
    ):
        lm.step(lm.prefill([()]), torch.tensor([8]))
