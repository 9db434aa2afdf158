"""A model with compiled steps beside the same with uncompiled query rows of transformers' own code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import tokenscale as ts
from tests.models.zoo import tiny_model
from tokenscale.core.plan import Routing, RowPlan
from tokenscale.core.step import Step
from tokenscale.models.compiled import CompiledRows
from tokenscale.models.query_rows import QueryRows
from tokenscale.models.supported import cache_form, shared_form

PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12, 13, 14], [12, 13], [20, 21, 22, 23, 24]]


def small(name: str) -> Any:
    """Two layers, since tracing takes most of the time of these tests."""
    if name == "gpt_oss":
        return tiny_model(name, num_hidden_layers=2, layer_types=["sliding_attention", "full_attention"])
    return tiny_model(name, "sdpa", num_hidden_layers=2)


def dense() -> Any:
    """A dense model."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 101, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, eos_token_id=1, bos_token_id=1)
    return LlamaForCausalLM._from_config(config, attn_implementation="sdpa").eval()


def both(model: Any, backend: Any = "eager") -> tuple[Any, Any]:
    """A model with compiled steps, and with the uncompiled query rows of transformers' own code."""
    lm, plain = ts.wrap(model), ts.wrap(model)
    form = cache_form(model.config, type(model))
    windows, own = form.windows, shared_form(model, form).name == "shared"
    lm.rows = CompiledRows(lm.network, windows, own_attention=own, backend=backend, required=True)
    plain.rows = QueryRows(replace(plain.network, kernels=None), windows)
    return lm, plain


def graphs_of(lm: Any) -> dict[Any, Any]:
    assert isinstance(lm.rows, CompiledRows)
    return lm.rows.graphs


def alike(step: Step, plain: Step) -> None:
    """Float32 logits to 1e-5, records exactly."""
    torch.testing.assert_close(step.logits, plain.logits, rtol=0, atol=1e-5)
    for ours, theirs in ((step.experts, plain.experts), (step.changed, plain.changed), (step.noisy, plain.noisy)):
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.equal(ours, theirs)


def noise(lm: Any, batch: int, n: int, seed: int) -> Routing | None:
    """Noise on all rows but the first, in all layers but the first; None for a dense model."""
    layers = len(lm.network.routers)
    if not layers:
        return None
    generator = torch.Generator().manual_seed(seed)
    experts = max(router.experts for router in lm.network.routers)
    drawn = torch.randn(layers, batch, n, experts, generator=generator)
    noisy = torch.ones(layers, batch, n, dtype=torch.bool)
    noisy[0], noisy[:, :, 0] = False, n == 1
    return Routing(drawn, noisy)


class Twins:
    """Two states of one model that are stepped, picked and joined alike."""

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]] = PROMPTS, backend: Any = "eager") -> None:
        self.lm, self.plain = both(model, backend)
        self.states = [self.lm.prefill(prompts), self.plain.prefill(prompts)]

    def step(self, seed: int, n: int = 1, **plan: Any) -> None:
        batch = len(self.states[0].lengths)
        tokens = torch.randint(2, 90, (batch,), generator=torch.Generator().manual_seed(seed))
        rows = RowPlan(n, **{"routing": noise(self.lm, batch, n, seed), **plan})
        mine, theirs = self.states
        alike(self.lm.step(mine, tokens, rows), self.plain.step(theirs, tokens, rows))
        assert mine.lengths == theirs.lengths

    def select(self, *index: int) -> None:
        self.states = [state.select(index) for state in self.states]

    def join(self, prompts: Sequence[Sequence[int]]) -> None:
        pairs = zip(self.states, (self.lm, self.plain), strict=True)
        self.states = [state.join(lm.prefill(prompts)) for state, lm in pairs]
