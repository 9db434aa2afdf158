"""Whole pipelines on random transformers models: RoE, its bypass, and what reaches the user."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import DynamicCache

import tokenscale as ts
from tests.models.tiny import MOE, tiny
from tokenscale.core.noise import ROUTING_DOMAIN

PROMPTS = [(5, 6, 7, 8, 9), (12, 13), (20, 21, 22), (14,)]
NEW_TOKENS = 12


def run(model: Any, pipe: ts.Pipeline, prompts: list[tuple[int, ...]] = PROMPTS, **options: Any) -> list[ts.Result]:
    asked = [ts.Prompt(token_ids=ids, key=str(ids)) for ids in prompts]
    return pipe.run(ts.wrap(model), asked, seed=3, max_new_tokens=NEW_TOKENS, **options)


@torch.no_grad()
def sequential_roe(model: Any, prompt: tuple[int, ...], n: int, tau: float, clean_layers: int) -> tuple[list[int], Any]:
    """RoE as the paper writes it: one forward per row, greedy on the mean of probabilities.

    Returns the tokens and the log-probabilities of all tokens at each step. Noise is drawn here anew
    from the stream's counter; routing, cache and mean are this function's own.
    """
    routers = [layer.mlp.gate for layer in model.model.layers]
    layers, experts = len(routers), 8
    stream = ts.Stream((3, str(prompt))).child(0)
    block = min(16, max(1, 2**15 // (layers * experts)))
    cache = DynamicCache(config=model.config)
    if prompt[:-1]:
        model(input_ids=torch.tensor([prompt[:-1]]), cache=cache, use_cache=True)
    fed, position, tokens, steps = prompt[-1], len(prompt) - 1, [], []
    while len(tokens) < NEW_TOKENS and (not tokens or tokens[-1] != 1):
        generator = np.random.Generator(
            np.random.Philox(key=stream.key, counter=[0, position // block, ROUTING_DOMAIN, 0])
        )
        uniforms = generator.random((n - 1, block, layers, experts), dtype=np.float32)[:, position % block]
        noise = -np.log(-np.log1p(-np.maximum(uniforms, 2.0**-25, dtype=np.float64)))
        rows = []
        for row in range(n):
            shift = tau * noise[row - 1] if row else np.zeros((layers, experts))
            shift[:clean_layers], shift[layers - clean_layers :] = 0, 0
            own = copy.deepcopy(cache)
            rows.append(one_row(model, routers, fed, own, torch.from_numpy(shift).float()))
            if row == 0:
                stored = own
        cache = stored
        mean = torch.stack(rows).double().softmax(-1).mean(0)
        steps.append(mean.log())
        fed, position = int(mean.argmax()), position + 1
        tokens.append(fed)
    return tokens, torch.stack(steps)


def one_row(model: Any, routers: list[Any], token: int, cache: Any, shift: torch.Tensor) -> torch.Tensor:
    originals = [router.forward for router in routers]
    for router, g in zip(routers, shift, strict=True):

        def forward(hidden: torch.Tensor, router: Any = router, g: torch.Tensor = g) -> Any:
            R = F.linear(hidden.reshape(-1, hidden.shape[-1]), router.weight)
            chosen = (R + g).sort(-1, descending=True).indices[:, : router.top_k]
            gate = R.softmax(-1).gather(-1, chosen)
            return R, gate / gate.sum(-1, keepdim=True) if getattr(router, "norm_topk_prob", True) else gate, chosen

        router.forward = forward
    try:
        return model(input_ids=torch.tensor([[token]]), cache=cache, use_cache=True).logits[0, -1]
    finally:
        for router, original in zip(routers, originals, strict=True):
            router.forward = original


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["olmoe", "mixtral-sliding", "qwen2-moe", "qwen3-moe"])
def test_roe_equals_the_papers_algorithm_run_in_turn(family: str, attention: str) -> None:
    model = tiny(family, attention)
    n, tau = 4, 0.8
    results = run(model, ts.Pipeline(ts.RoE(n=n, tau=tau, clean_layers=0)))
    for prompt, result in zip(PROMPTS, results, strict=True):
        tokens, log_probs = sequential_roe(model, prompt, n, tau, 0)
        assert list(result.winner.token_ids) == tokens
        expected = [float(step[token]) for step, token in zip(log_probs, tokens, strict=True)]
        np.testing.assert_allclose(result.winner.log_probs, expected, atol=1e-5)
    assert all(result.routing.changed_share > 0.3 for result in results)


def test_clean_layers_are_clean() -> None:
    model = tiny("olmoe")
    [result] = run(model, ts.Pipeline(ts.RoE(n=3, tau=5.0, clean_layers=1)), PROMPTS[:1])
    tokens, _ = sequential_roe(model, PROMPTS[0], 3, 5.0, 1)
    assert list(result.winner.token_ids) == tokens
    assert result.routing.choices == 2 * 1 * len(tokens)  # noisy rows, noisy layers, tokens


def generated(model: Any, prompt: tuple[int, ...]) -> list[int]:
    ids = torch.tensor([prompt])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False)
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("stage", [ts.RoE(n=1), ts.RoE(n=4, tau=0.0), ts.Greedy()], ids=repr)
@pytest.mark.parametrize("family", [*MOE, "llama"])
def test_without_noise_tokens_are_those_of_generate(family: str, stage: ts.Stage) -> None:
    if family == "llama" and isinstance(stage, ts.RoE):
        pytest.skip("RoE is refused on a dense model")
    model = tiny(family)
    for prompt, result in zip(PROMPTS, run(model, ts.Pipeline(stage)), strict=True):
        assert list(result.winner.token_ids) == generated(model, prompt)
        assert result.cost.rows == len(result.winner.token_ids)


def test_every_row_at_tau_zero_is_the_model() -> None:
    """Forced through the noisy path, whose bypass is off: n clean rows have no say in each other."""
    model = tiny("olmoe")
    lm = ts.wrap(model)
    state = lm.prefill([list(p[:-1]) for p in PROMPTS])
    tokens = torch.tensor([p[-1] for p in PROMPTS])
    size = (3, len(PROMPTS), 5)
    plan = ts.RowPlan(5, ts.Routing(torch.zeros(*size, 8), torch.ones(size, dtype=torch.bool)))
    step = lm.step(state, tokens, plan)
    for b, prompt in enumerate(PROMPTS):
        expected = model(torch.tensor([prompt])).logits[0, -1]
        torch.testing.assert_close(step.logits[b], expected.expand(5, -1), rtol=0, atol=1e-5)
    assert step.changed is not None
    assert not step.changed.any()


def test_roe_on_a_dense_model_is_refused_by_name() -> None:
    with pytest.raises(ts.CapabilityError, match=r"(?s)RoE.*dense model.*fix: on this model use MCDropout.*Greedy"):
        run(tiny("llama"), ts.Pipeline(ts.RoE(n=4)))


def test_noise_that_changes_nothing_is_said() -> None:
    [result, *_] = run(tiny("olmoe"), ts.Pipeline(ts.RoE(n=3, tau=1e-9)))
    assert result.routing.changed == 0
    assert any("tau=1e-09" in note for note in result.notes)


def test_answers_do_not_depend_on_batch_or_order() -> None:
    model = tiny("qwen3-moe")
    pipe = ts.Pipeline(ts.RoE(n=3, tau=0.5), ts.Sample(temperature=1.0))
    alone = [run(model, pipe, [p], batch_size=1)[0] for p in PROMPTS]
    together = run(model, pipe, PROMPTS[::-1], batch_size=3)[::-1]
    for one, other in zip(alone, together, strict=True):
        assert one.winner.token_ids == other.winner.token_ids
        assert one.cost == other.cost
