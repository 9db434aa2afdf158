"""The suite for language models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from tokenscale.core.model import ROUTING_NOISE, LanguageModel
from tokenscale.core.plan import Routing, RowPlan
from tokenscale.core.prompt import Prompt
from tokenscale.core.step import pack_experts
from tokenscale.testing.expect import expect, expect_close
from tokenscale.testing.row_plans import check_row_plans
from tokenscale.testing.stepping import Ids, checked_step, random_prompts, stepwise


def check_language_model(lm: LanguageModel, *, prompts: Sequence[Ids] | None = None, atol: float = 0.0) -> None:
    """What `LanguageModel` and `State` promise, on prompts of different lengths (token ids; None: random ones).

    `atol` bounds the difference of logits that should be equal; 0 means to the last bit. A model of
    routers must show its experts, and where it offers "routing_noise" keep its cache clean of it. Options
    of a `RowPlan` are checked where the model offers them. Cost: about thirty short batches. Raises
    AssertionError.
    """
    ids = list(prompts) if prompts is not None else random_prompts(lm)
    wanted = [stepwise(lm, prompt) for prompt in ids]
    _check_description(lm)
    _check_text(lm, ids)
    _check_prefill(lm, ids, wanted, atol)
    _check_batch(lm, ids, wanted, atol)
    _check_rows(lm, ids, wanted, atol)
    if ROUTING_NOISE in lm.capabilities:
        _check_noise(lm, ids, wanted, atol)
        _check_selection(lm, ids)
    check_row_plans(lm, ids, wanted, atol)


def _check_description(lm: LanguageModel) -> None:
    expect(bool(lm.fingerprint and lm.name), "it has a fingerprint and a name")
    expect(lm.vocab_size > 1 and lm.context_length > 1, "it has a vocabulary and a context")
    expect(len(lm.inspect_layers()) == lm.shape.moe_layers, "inspect_layers names every MoE layer")
    known = {"temperature", "top_k", "top_p", "min_p"}
    expect(set(lm.sampling_defaults) <= known, f"sampling_defaults are among {sorted(known)}")
    dense = lm.shape.moe_layers == 0
    expect(not (dense and ROUTING_NOISE in lm.capabilities), "a dense model offers no routing noise")


def _check_text(lm: LanguageModel, ids: list[Ids]) -> None:
    expect(all(lm.encode(Prompt(token_ids=prompt)) == prompt for prompt in ids), "token ids are taken as they are")
    if lm.tokenizer is None:
        return
    texts = [lm.decode(prompt) for prompt in ids]
    expect(all(isinstance(text, str) for text in texts), "decode gives text")
    expect(lm.decode(list(lm.eos_ids)) == "", "decode leaves special tokens out")


def _check_prefill(lm: LanguageModel, ids: list[Ids], wanted: list[Tensor], atol: float) -> None:
    for prompt, logits in zip(ids, wanted, strict=True):
        state = lm.prefill([prompt[:-1]])
        expect(state.lengths == [len(prompt) - 1], "a prefill stores its tokens")
        found = checked_step(lm, state, [prompt[-1]]).logits[0, 0]
        expect(state.lengths == [len(prompt)], "a step stores one token")
        expect_close(found, logits[-1], atol, "a prefill equals its tokens one by one")
        stepped, ran = lm.prefill([()]), pack_experts(torch.zeros(lm.shape.moe_layers, lm.shape.experts).bool())
        for token in prompt[:-1]:
            marks = checked_step(lm, stepped, [token]).experts
            ran = ran if marks is None else ran | pack_experts(marks[0, 0])
        [prefilled] = lm.prefill([prompt[:-1]]).prefills
        expect(np.array_equal(prefilled.experts, ran), "a prefill's experts are those its tokens ran, packed")
        runs = (len(prompt) - 1) * lm.shape.moe_layers * lm.shape.top_k
        expect(prefilled.runs == runs, "a prefill's runs are its tokens' experts, summed")


def _check_batch(lm: LanguageModel, ids: list[Ids], wanted: list[Tensor], atol: float) -> None:
    half = len(ids) // 2
    state = lm.prefill([p[:-1] for p in ids[:half]]).join(lm.prefill([p[:-1] for p in ids[half:]]))
    expect(state.lengths == [len(p) - 1 for p in ids], "join puts the other batch behind this one")
    found = checked_step(lm, state, [p[-1] for p in ids]).logits[:, 0]
    expect_close(found, torch.stack([w[-1] for w in wanted]), atol, "a batch equals its sequences alone")

    # Fork the last sequence, drop the others but the first, and go on with different tokens.
    picked = [len(ids) - 1, 0, len(ids) - 1]
    follow = [ids[0][0], ids[0][0], ids[-1][0]]
    state = state.select(picked)
    expect(state.lengths == [len(ids[i]) for i in picked], "select keeps lengths")
    found = checked_step(lm, state, follow).logits[:, 0]
    alone = [stepwise(lm, (*ids[i], token))[-1] for i, token in zip(picked, follow, strict=True)]
    expect_close(found, torch.stack(alone), atol, "selected and forked sequences go on as if alone")


def _check_rows(lm: LanguageModel, ids: list[Ids], wanted: list[Tensor], atol: float) -> None:
    state = lm.prefill([p[:-1] for p in ids])
    found = checked_step(lm, state, [p[-1] for p in ids], RowPlan(3)).logits
    expect(state.lengths == [len(p) for p in ids], "a step of several rows stores one token")
    last = torch.stack([w[-1] for w in wanted])[:, None].expand(-1, 3, -1)
    expect_close(found, last, atol, "rows without noise equal the model")


def _check_noise(lm: LanguageModel, ids: list[Ids], wanted: list[Tensor], atol: float) -> None:
    """Row 0 of a noisy step, and everything after it, is the model itself."""
    layers, experts = lm.shape.moe_layers, lm.shape.experts
    shift = torch.randn(layers, len(ids), 4, experts, generator=torch.Generator().manual_seed(0))
    shift[:, :, 0] = 0
    plan = RowPlan(4, Routing.of(shift))
    state = lm.prefill([p[:-1] for p in ids])
    step = checked_step(lm, state, [p[-1] for p in ids], plan)
    expect_close(step.logits[:, 0], torch.stack([w[-1] for w in wanted]), atol, "row 0 is the model itself")
    noisy = step.noisy
    expect(noisy is not None and noisy.shape == (len(ids), 4, layers), "noisy is [batch, rows, moe_layers]")
    expect(noisy is not None and bool((noisy.sum((1, 2)) == 3 * layers).all()), "noisy marks what noise took part in")
    changed, ran = step.changed, step.experts
    expect(changed is not None and changed.shape == (len(ids), 4, layers), "changed is [batch, rows, moe_layers]")
    assert changed is not None
    assert ran is not None
    expect(not bool(changed[:, 0].any()), "row 0 is never changed")
    # In the first layer every row has row 0's input, so its noise-free choice is row 0's.
    differs = (ran[:, :, 0] != ran[:, :1, 0]).any(-1)
    expect(torch.equal(changed[:, :, 0], differs), "changed marks the rows that run other experts")
    after = checked_step(lm, state, [p[0] for p in ids]).logits[:, 0]
    clean = torch.stack([stepwise(lm, (*p, p[0]))[-1] for p in ids])
    expect_close(after, clean, atol, "noise leaves nothing in the cache")


def _check_selection(lm: LanguageModel, ids: list[Ids]) -> None:
    """A shift larger than any router logit decides, whatever a router does to logits before it ranks them."""
    top_k = lm.shape.top_k
    for layer in range(lm.shape.moe_layers):
        own, _ = _shifted(lm, ids[0], layer, [], 0)
        left = (~own[layer]).nonzero().flatten().tolist()[:top_k]
        clean, raised = _shifted(lm, ids[0], layer, left, 1e4)
        expect(bool(raised[layer, left].any()), f"an expert of MoE layer {layer} that R + shift raises is run")
        same = torch.equal(raised[:layer], clean[:layer])
        expect(same, f"noise in MoE layer {layer} leaves the layers before it alone")
        one = int(own[layer].nonzero()[0])
        _, lowered = _shifted(lm, ids[0], layer, [one], -1e4)
        expect(not bool(lowered[layer, one]), f"an expert of MoE layer {layer} that R + shift lowers is not run")


def _shifted(
    lm: LanguageModel, prompt: Ids, layer: int, experts: list[int], by: float
) -> tuple[Bool[Tensor, "moe_layers experts"], Bool[Tensor, "moe_layers experts"]]:
    """The experts of a row without noise, and of one in which the logits of `experts` are shifted."""
    shift = torch.zeros(lm.shape.moe_layers, 1, 2, lm.shape.experts)
    shift[layer, 0, 1, experts] = by
    marks = checked_step(lm, lm.prefill([prompt[:-1]]), [prompt[-1]], RowPlan(2, Routing.of(shift))).experts
    assert marks is not None
    return marks[0, 0], marks[0, 1]
