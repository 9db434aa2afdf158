"""Query rows under every option of a plan, against full forwards without a cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.models.forms_oracle import PROMPTS, Oracle, dropping, noise_like
from tests.models.tiny import tiny
from tokenscale.core.plan import Dropout, Routing, RowPlan
from tokenscale.models.hf import HFModel, wrap

FAMILIES = ["olmoe", "mixtral-sliding"]
LAYERS, EXPERTS, HIDDEN, ROWS = 3, 8, 32, 3
TOLERANCE = 1e-5  # float32, sums in another order


@pytest.fixture(params=["eager", "sdpa"])
def attention(request: pytest.FixtureRequest) -> str:
    return request.param


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=TOLERANCE)


def started(lm: HFModel, tokens: int = 2) -> tuple[Any, list[list[int]]]:
    """A state whose sequences have stepped `tokens` tokens after their prompts, and the ids it stores."""
    state, texts = lm.prefill([p[:-1] for p in PROMPTS]), [list(p) for p in PROMPTS]
    for step in range(tokens):
        lm.step(state, torch.tensor([t[-1] for t in texts]))
        for b, text in enumerate(texts):
            text.append(40 + 3 * step + b)
    return state, texts


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_see_the_clean_key(family: str, attention: str) -> None:
    model = tiny(family, attention)
    window = 4 if family == "mixtral-sliding" else None
    lm, oracle = wrap(model), Oracle(model)
    state, texts = started(lm)
    for seed in range(2):
        noise = noise_like(LAYERS, len(texts), ROWS, EXPERTS, seed)
        plan = RowPlan(ROWS, Routing.of(noise), current_kv="clean")
        logits = lm.step(state, torch.tensor([t[-1] for t in texts]), plan).logits
        own = 0.0
        for b, text in enumerate(texts):
            close(logits[b, 0], oracle.alone(text))
            for row in range(1, ROWS):
                close(logits[b, row], oracle.with_clean_key(text, noise[:, b, row], window))
                own = max(own, float((logits[b, row] - oracle.alone(text, noise[:, b, row])).abs().max()))
            text.append(60 + seed + b)
        assert own > 1e-3  # a row that sees its own key is another row


@pytest.mark.parametrize("current_kv", ["own", "clean"])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_store_nothing(family: str, current_kv: Any, attention: str) -> None:
    model = tiny(family, attention)
    window = 4 if family == "mixtral-sliding" else None
    lm, oracle = wrap(model), Oracle(model)
    state, texts = started(lm)
    tokens = torch.tensor([t[-1] for t in texts])
    lm.step(state, tokens)
    for rows, seed in [(3, 0), (1, 1), (2, 2)]:
        noise = noise_like(LAYERS, len(texts), rows + 1, EXPERTS, seed)[:, :, 1:]
        plan = RowPlan(rows, Routing.of(noise), current_kv=current_kv, commit=False)
        logits = lm.step(state, tokens, plan).logits
        assert state.lengths == [len(t) for t in texts]
        for b, text in enumerate(texts):
            for row in range(rows):
                moved = noise[:, b, row]
                wanted = oracle.alone(text, moved)
                if current_kv == "clean":
                    wanted = oracle.with_clean_key(text, moved, window)
                close(logits[b, row], wanted)
    for b, row in enumerate(lm.step(state, tokens + 1).logits[:, 0]):
        close(row, oracle.alone([*texts[b], int(tokens[b]) + 1]))


@pytest.mark.parametrize("family", [*FAMILIES, "llama"])
def test_early_layers(family: str, attention: str) -> None:
    model = tiny(family, attention)
    lm, oracle = wrap(model), Oracle(model)
    state, texts = started(lm)
    tokens = torch.tensor([t[-1] for t in texts])
    plan = RowPlan(early_layers=(1, 0))
    for stored in (plan, RowPlan(early_layers=(1, 0), commit=False)):
        out = lm.step(state, tokens, stored)
        assert out.logits.dtype == torch.float32
        assert out.logits.shape == (3, 3, 101)
        assert out.experts is None or out.experts.shape == (3, 1, LAYERS, EXPERTS)
        for b, text in enumerate(texts):
            close(out.logits[b, 0], oracle.alone(text))
            close(out.logits[b, 1:], oracle.early(text, (1, 0), model.model.norm))
    assert state.lengths == [len(t) for t in texts]


@pytest.mark.parametrize("family", ["olmoe", "qwen2-moe", "llama"])
def test_dropout_on_what_the_feed_forward_blocks_add(family: str, attention: str) -> None:
    model = tiny(family, attention)
    lm, oracle = wrap(model), Oracle(model)
    assert (lm.layers, lm.hidden_size) == (LAYERS, HIDDEN)
    state, texts = started(lm)
    rate = 0.3
    uniforms = torch.rand(LAYERS, len(texts), ROWS, HIDDEN, generator=torch.Generator().manual_seed(1))
    uniforms[:, :, 0] = 1
    plan = RowPlan(ROWS, dropout=Dropout(rate, uniforms))
    state = state.select([2, 0, 1])
    texts, order = [texts[i] for i in (2, 0, 1)], [0, 1, 2]
    logits = lm.step(state, torch.tensor([t[-1] for t in texts]), plan).logits
    for b in order:
        close(logits[b, 0], oracle.alone(texts[b]))
        for row in range(1, ROWS):
            kept = torch.where(uniforms[:, b, row] < rate, 0.0, 1 / (1 - rate))
            with dropping([layer.mlp for layer in model.model.layers], kept):
                close(logits[b, row], oracle.alone(texts[b]))
    after = lm.step(state, torch.tensor([9, 9, 9])).logits[:, 0]
    for b in order:
        close(after[b], oracle.alone([*texts[b], 9]))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_noisy_prefill(family: str, attention: str) -> None:
    """Prompts of several lengths in one forward: padding must shift nobody's noise."""
    model = tiny(family, attention)
    lm, oracle = wrap(model), Oracle(model)
    noises = [noise_like(LAYERS, 1, len(p), EXPERTS, i) for i, p in enumerate(PROMPTS)]
    routings = [Routing(n[:, :, :-1], torch.ones(LAYERS, 1, n.shape[2] - 1, dtype=torch.bool)) for n in noises]
    state = lm.prefill([p[:-1] for p in PROMPTS], routings)
    last = torch.stack([n[:, 0, -1] for n in noises], 1)[:, :, None]
    plan = RowPlan(1, Routing.of(last))
    out = lm.step(state, torch.tensor([p[-1] for p in PROMPTS]), plan)
    for b, prompt in enumerate(PROMPTS):
        close(out.logits[b, 0], oracle.routed(prompt, noises[b][:, 0]))
        alone = lm.prefill([prompt[:-1]], [routings[b]]).prefills[0]
        assert (alone.experts == state.prefills[b].experts).all()
        assert alone.runs == state.prefills[b].runs == (len(prompt) - 1) * LAYERS * 3


def test_a_prefill_of_other_ranks() -> None:
    """Prompts of other lengths, and ranks that change from token to token, equal their tokens one by one."""
    lm = wrap(tiny("olmoe"))
    same = [((2, 3),) * (len(p) - 1) for p in PROMPTS]
    mixed = [tuple((1, 2) if i % 2 else None for i in range(len(p) - 1)) for p in PROMPTS]
    prompts, ranks = [*PROMPTS, *PROMPTS, PROMPTS[0]], [*same, *mixed, mixed[0]]
    state = lm.prefill([p[:-1] for p in prompts], [Routing(ranks=r) for r in ranks])
    logits = lm.step(state, torch.tensor([p[-1] for p in prompts])).logits[:, 0]
    for b, (prompt, own) in enumerate(zip(prompts, ranks, strict=True)):
        alone, runs = lm.prefill([[]]), 0
        for token, rank in zip(prompt, own, strict=False):
            marks = lm.step(alone, torch.tensor([token]), RowPlan(1, Routing(ranks=(rank,)))).experts
            assert marks is not None
            runs += int(marks.sum())
        close(logits[b], lm.step(alone, torch.tensor(prompt[-1:])).logits[0, 0])
        assert state.prefills[b].runs == runs == sum(2 if rank else 3 for rank in own) * LAYERS


def test_the_model_is_as_it_was_after_any_exit() -> None:
    model = tiny("olmoe")
    lm, oracle = wrap(model), Oracle(model)
    hooks = {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()}
    attributes = {name: set(vars(m)) for name, m in model.named_modules()}
    state = lm.prefill([[5, 6, 7]])
    dropout = Dropout(0.5, torch.rand(LAYERS, 1, 1, HIDDEN))
    plan = RowPlan(1, Routing.of(noise_like(LAYERS, 1, 2, EXPERTS, 0)[:, :, 1:]), dropout, (0, 1))
    lm.step(state, torch.tensor([8]), plan)
    with pytest.raises(IndexError):
        lm.step(state, torch.tensor([10**6]), plan)  # no such token: the embedding refuses it
    with pytest.raises(RuntimeError):
        lm.step(state, torch.tensor([8]), RowPlan(3, dropout=dropout))  # numbers for another count of rows
    assert hooks == {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()}
    assert attributes == {name: set(vars(m)) for name, m in model.named_modules()}
    assert torch.equal(model(torch.tensor([[5, 6, 7]])).logits, tiny("olmoe")(torch.tensor([[5, 6, 7]])).logits)
    after = lm.step(lm.prefill([[5, 6, 7]]), torch.tensor([8])).logits[0, 0]
    close(after, oracle.alone([5, 6, 7, 8]))
