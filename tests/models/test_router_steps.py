"""Steps of a wrapped model with noisy routing, against full forwards whose routes a numpy oracle hands to the experts.

Nothing of tokenscale makes the reference: transformers' model runs one text at a time without a cache,
and hooks give its experts what the oracle chose for the last token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from tests.models.executed import Layer, doge_block, layers
from tests.models.router_oracle import Array, sigmoid
from tests.models.test_forms_zoo import CHANGES
from tests.models.test_routers import WAYS
from tests.models.zoo import tiny_model
from tokenscale.core.plan import Routing, RowPlan
from tokenscale.models.hf import wrap
from tokenscale.models.routers import find_routers, watch

PROMPTS = [[5, 6, 7, 8, 9, 10], [12, 13, 14]]
ROWS = 3
TOLERANCE = 2e-5  # float32, sums in another order, gates made in float64


class Reference:
    """A model whose last token chooses its experts by numpy's rule and given noise."""

    def __init__(self, name: str, model: Any) -> None:
        self.name, self.model = name, model
        self.config = model.config.get_text_config(decoder=True)
        self.routers = find_routers(model)
        self.layers = layers(model, self.routers)

    @torch.no_grad()
    def logits(self, ids: Sequence[int], noise: torch.Tensor) -> torch.Tensor:
        """Logits after `ids`, `noise` being [routers, experts]."""
        past: dict[str, Any] = {}
        if self.name == "doge":  # which routes a token by itself only where it is alone in its forward
            for token in ids[:-1]:
                past = {"cache": self.model(input_ids=torch.tensor([[token]]), use_cache=True, **past).cache}
            ids = ids[-1:]
        with self._routed(noise.double().numpy()):
            return self.model(input_ids=torch.tensor([list(ids)]), use_cache=bool(past), **past).logits[0, -1]

    @contextmanager
    def _routed(self, noise: Array) -> Iterator[None]:
        handles, number = [], 0
        for layer in self.layers:
            count = sum(router.module is layer.router.module for router in self.routers)
            if layer.router.supports:
                handles.append(self._hook(layer, iter(noise[number : number + count])))
            number += count
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, layer: Layer, calls: Iterator[Array]) -> Any:
        asking = False

        def hook(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
            nonlocal asking
            if asking:  # the layer's logits are asked of the router itself
                return output
            layer.inputs, asking = [(*args, *kwargs.values())], True
            logits, shared = layer.logits()
            asking = False
            shift = next(calls)[: logits.shape[-1]]
            oracle = layer.oracle(self.name, self.config)
            moved = oracle.ranked(logits[-1:] + shift)
            chosen = np.argsort(-moved[0])[: oracle.top_k].tolist()
            gates = oracle.gates(logits[-1:], [chosen], _last(shared))
            given = self._given(layer, args, output, gates, chosen)
            return given if shared is None else _with_shared(given, logits[-1][chosen], shared[-1], oracle.scale)

        return layer.module.register_forward_hook(hook, with_kwargs=True)

    def _given(self, layer: Layer, args: Any, output: Any, gates: Array, chosen: list[int]) -> Any:
        """The router's output with the last token's experts and weights."""
        kind = type(layer.module).__name__
        if kind == "DogeCDMoE":
            out = torch.tensor(doge_block(layer.module, args[0], gates), dtype=torch.float32)
            return out.view_as(output[0]), output[1]
        if kind == "DbrxRouter":  # its block ranks the logits: ones that give these gates
            forced = output.clone()
            forced[-1] = -torch.inf
            forced[-1, chosen] = torch.tensor(np.log(gates[0, chosen]), dtype=output.dtype)
            return forced
        if kind == "Llama4Router":
            scores = output[0].clone()
            scores[-1] = torch.tensor(gates[0])
            return scores, output[1]
        if kind == "JetMoeTopKGating":
            return _grouped(output, gates[0])
        free = [0 if e >= layer.router.experts - layer.router.free and kind == "ZayaRouter" else e for e in chosen]
        weights, indices = output[1].clone(), output[2].clone()
        dead = [kind == "ZayaRouter" and e >= layer.router.experts - layer.router.free for e in chosen]
        weights[-1] = torch.tensor(np.where(dead, 0, gates[0, chosen]), dtype=weights.dtype)
        indices[-1] = torch.tensor(free)
        return (output[0], weights, indices, *output[3:])


def _with_shared(output: Any, chosen: Array, shared: Array, scale: Any) -> Any:
    """Inkling's shared experts have their part of one softmax with the chosen ones."""
    powers = sigmoid(np.concatenate([chosen, shared]))
    gammas = output[3].clone()
    gammas[-1] = torch.tensor((powers / powers.sum())[len(chosen) :] * scale)
    return (*output[:3], gammas)


def _last(shared: Array | None) -> Array | None:
    return None if shared is None else shared[-1:]


def _grouped(output: Any, gates: Array) -> Any:
    """JetMoE's output: gates in the order of experts, with each one's token and slot."""
    order, _, weights, sizes, logits = output
    top_k = len(order) // len(logits)
    experts = torch.empty_like(order)
    experts[order] = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    slots = torch.empty_like(weights)
    slots[order] = weights
    chosen = np.flatnonzero(gates)
    experts[-top_k:], slots[-top_k:] = torch.tensor(chosen), torch.tensor(gates[chosen], dtype=weights.dtype)
    order = experts.argsort(stable=True)
    sizes = torch.bincount(experts, minlength=len(sizes)).tolist()
    return order, order // top_k, slots[order], sizes, logits


@pytest.mark.parametrize("name", WAYS)
def test_noisy_rows_equal_one_forward_each_with_the_oracles_routes(name: str) -> None:
    model = tiny_model(name, **CHANGES.get(name, {}))
    lm, reference = wrap(model), Reference(name, model)
    generator = torch.Generator().manual_seed(11)
    uniform = torch.rand(lm.shape.moe_layers, len(PROMPTS), ROWS, lm.shape.experts, generator=generator)
    noise = -(-uniform.clamp(1e-6, 1 - 1e-6).log()).log()
    noise[:, :, 0] = 0
    state = lm.prefill([p[:-1] for p in PROMPTS])
    step = lm.step(state, torch.tensor([p[-1] for p in PROMPTS]), RowPlan(ROWS, Routing.of(noise)))
    for b, prompt in enumerate(PROMPTS):
        for row in range(ROWS):
            wanted = reference.logits(prompt, noise[:, b, row])
            torch.testing.assert_close(step.logits[b, row], wanted, rtol=0, atol=TOLERANCE)
    assert step.changed is not None
    assert (step.changed.any(-1) == ((step.logits - step.logits[:, :1]).abs().amax(-1) > 1e-4)).all()
    assert step.changed[:, 1:].any()


RANKS = ((1, 3), (2, 2), (1, 4))


@pytest.mark.parametrize(
    "name",
    ["olmoe", "deepseek_v3", "qwen3_next", *(pytest.param(n, marks=pytest.mark.slow) for n in ("gpt_oss", "dbrx"))],
)
@torch.no_grad()
def test_rows_of_other_ranks_equal_one_forward_each(name: str) -> None:
    """In both cache forms; the reference is a text whose last position alone runs other ranks."""
    model = tiny_model(name, **CHANGES.get(name, {}))
    lm, routers = wrap(model), find_routers(model)
    step = lm.step(
        lm.prefill([p[:-1] for p in PROMPTS]),
        torch.tensor([p[-1] for p in PROMPTS]),
        RowPlan(len(RANKS), Routing(ranks=RANKS)),
    )
    assert step.experts is not None
    assert (step.experts.sum(-1) == torch.tensor([3, 1, 4])[:, None]).all()
    for b, prompt in enumerate(PROMPTS):
        for row, ranks in enumerate(RANKS):
            with watch(routers, Routing(ranks=(*[None] * (len(prompt) - 1), ranks))):
                wanted = model(torch.tensor([prompt]), use_cache=False).logits[0, -1]
            torch.testing.assert_close(step.logits[b, row], wanted, rtol=0, atol=TOLERANCE)
