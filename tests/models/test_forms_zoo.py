"""Rows of every architecture, in the form that the model gets, against full forwards without a cache."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pytest
import torch

from tests.models.forms_oracle import PROMPTS, Oracle, noise_like
from tests.models.zoo import ZOO, tiny_model
from tokenscale.core.errors import CapabilityError
from tokenscale.core.model import CLEAN_CURRENT_KV, DROPOUT, EARLY_LAYERS
from tokenscale.core.plan import Dropout, Routing, RowPlan
from tokenscale.models.hf import HFModel, wrap

ROWS = 3
TOLERANCE = 1e-5  # float32, sums in another order
CHANGES: dict[str, dict[str, Any]] = {
    # With two heads many index scores are exactly 0, and which of them are attended to is left to chance.
    **{name: {"index_n_heads": 16} for name in ("axk2", "deepseek_v32", "dots3_note_text", "glm_moe_dsa", "hy_v4")},
    # Both ways of compression, with windows that close within a test.
    "deepseek_v4": {
        "layer_types": ["heavily_compressed_attention", "compressed_sparse_attention", "sliding_attention"],
        "compress_rates": {"heavily_compressed_attention": 5, "compressed_sparse_attention": 3},
    },
    # Small enough that the scale of queries changes between the positions of a test.
    "llama4_text": {
        "floor_scale": 4,
        "attn_scale": 0.5,
        "no_rope_layers": [1, 0, 1],
        "layer_types": ["chunked_attention", "full_attention", "chunked_attention"],
        "attention_chunk_size": 6,
    },
    # As published. With a window, transformers' own cached steps see more keys than its full forward.
    "minimax": {"sliding_window": None},
}
EXPANDED = {
    "axk2": "DynamicIndexedLayer",
    "bailing_hybrid": "LinearAttentionLayer",
    "deepseek_v32": "DynamicIndexedLayer",
    "deepseek_v4": "DeepseekV4CSACache, DeepseekV4HCACache",
    "dots3_note_text": "DynamicIndexedLayer",
    "glm_moe_dsa": "DynamicIndexedLayer",
    "granitemoehybrid": "LinearAttentionLayer",
    "hy_v4": "DynamicIndexedLayer",
    "inkling2_loop_text": "LinearAttentionAndSlidingWindowAttentionLayer",
    "inkling2_text": "LinearAttentionAndSlidingWindowAttentionLayer",
    "inkling_text": "LinearAttentionAndSlidingWindowAttentionLayer",
    "jamba": "LinearAttentionLayer",
    "kimi_linear": "LinearAttentionLayer",
    "lara_mini": "LinearAttentionLayer",
    "lfm2_moe": "LinearAttentionLayer",
    "llama4_text": "chunked_attention",
    "minimax": "LinearAttentionLayer",
    "minimax_m3_vl_text": "MiniMaxM3VLSparseCacheLayer",
    "nemotron_h": "DummyLayer, LinearAttentionLayer",
    "qwen3_5_moe_text": "LinearAttentionLayer",
    "qwen3_next": "LinearAttentionLayer",
    "qwen4_exp_text": "DynamicIndexedLayer, LinearAttentionLayer",
    "zaya": "LinearAttentionAndFullAttentionLayer",
}
"""What keeps a model from query rows."""
LATENT = {
    "axk1": "AXK1Attention",
    "deepseek_v2": "DeepseekV2Attention",
    "deepseek_v3": "DeepseekV3Attention",
    "glm4_moe_lite": "Glm4MoeLiteAttention",
    "longcat_flash": "LongcatFlashMLA",
    "mistral4": "Mistral4Attention",
    "sarvam_mla": "DeepseekV3Attention",
}
NOT_SHARED = {
    **{name: f"{kind} stores latent keys, which it expands after it has read them" for name, kind in LATENT.items()},
    "doge": "its attention makes masks of its own",
    "jetmoe": "its attention repeats keys after it has stored them",
}
"""What keeps query rows from sharing prompts."""
OTHER_STREAMS = {"deepseek_v4", "hy_v4", "inkling2_loop_text", "inkling2_text", "qwen4_exp_text"}
NO_EARLY_LAYERS = OTHER_STREAMS
NO_DROPOUT = OTHER_STREAMS | {"longcat_flash", "zaya"}
QUICK = {"gpt_oss", "deepseek_v3", "qwen3_next", "lfm2_moe", "deepseek_v32", "deepseek_v4", "llama4_text", "minimax"}
NAMES = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in ZOO]
CASES = [
    pytest.param(name, attention, marks=[] if name in QUICK and attention == "eager" else pytest.mark.slow)
    for name in ZOO
    for attention in ("eager", "sdpa")
]


@cache
def built(name: str, attention: str = "eager") -> tuple[Any, HFModel, Oracle]:
    try:
        model = tiny_model(name, attention, **CHANGES.get(name, {}))
    except ValueError as error:
        if "does not support an attention implementation" in str(error):
            pytest.skip(f"{name} has no {attention} attention")
        raise
    return model, wrap(model, kernels=False), Oracle(model)


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", NAMES)
def test_the_form_is_the_one_that_fits(name: str) -> None:
    lm = built(name)[1]
    if name in EXPANDED:
        assert lm.cache_form == "expanded"
        assert f"({EXPANDED[name]})" in lm.cache_form_reason, lm.cache_form_reason
        assert CLEAN_CURRENT_KV not in lm.capabilities
    else:
        plain, why = "all its layers store plain keys and values", NOT_SHARED.get(name)
        shared = ("shared", f"{plain}, and attend by a function of ours")
        masked = ("query rows", f"{plain}; its prompts are not shared, since {why}")
        assert (lm.cache_form, lm.cache_form_reason) == (masked if why else shared)
        assert CLEAN_CURRENT_KV in lm.capabilities


@pytest.mark.parametrize(("name", "attention"), CASES)
def test_noisy_rows_in_a_batch_that_changes(name: str, attention: str) -> None:
    _, lm, oracle = built(name, attention)
    layers, experts = lm.shape.moe_layers, lm.shape.experts
    state, texts = lm.prefill([p[:-1] for p in PROMPTS]), [list(p) for p in PROMPTS]
    for step in range(4):
        noise = noise_like(layers, len(texts), ROWS, experts, step)
        tokens = torch.tensor([t[-1] for t in texts])
        logits = lm.step(state, tokens, RowPlan(ROWS, Routing.of(noise))).logits
        again = noise_like(layers, len(texts), 2, experts, step + 10)
        plan = RowPlan(2, Routing.of(again), commit=False)
        for b, text in enumerate(texts):
            for row in range(ROWS):
                close(logits[b, row], oracle.alone(text, noise[:, b, row] if row else None))
        if step in (0, 3):
            stored = lm.step(state, tokens, plan).logits
            for b, text in enumerate(texts):
                close(stored[b, 1], oracle.alone(text, again[:, b, 1]))
        assert state.lengths == [len(t) for t in texts]
        for b, text in enumerate(texts):
            text.append(40 + 3 * step + b)
        if step == 0:
            state, texts = state.select([2, 0, 2]), [list(texts[i]) for i in (2, 0, 2)]
            again = noise_like(layers, 3, 2, experts, 20)
            tokens = torch.tensor([t[-2] for t in texts])
            stored = lm.step(state, tokens, RowPlan(2, Routing.of(again), commit=False)).logits
            for b, text in enumerate(texts):
                close(stored[b, 1], oracle.alone(text[:-1], again[:, b, 1]))
        if step == 1:
            newcomers = [[60], list(range(30, 39))]
            state = state.join(lm.prefill([p[:-1] for p in newcomers]))
            texts += newcomers


@pytest.mark.parametrize("name", NAMES)
def test_a_row_that_sees_the_clean_key(name: str) -> None:
    _, lm, oracle = built(name)
    prompt = PROMPTS[2]  # shorter than the windows of the tiny models
    noise = noise_like(lm.shape.moe_layers, 1, 2, lm.shape.experts, 0)
    plan = RowPlan(2, Routing.of(noise), current_kv="clean")
    state = lm.prefill([prompt[:-1]])
    if CLEAN_CURRENT_KV not in lm.capabilities:
        for wrong in (plan, RowPlan(1, Routing.of(noise[:, :, 1:]), current_kv="clean", commit=False)):
            with pytest.raises(CapabilityError, match=r"(?s)none sees the clean row's key.*fix: leave current_kv"):
                lm.step(state, torch.tensor([7]), wrong)
        return
    logits = lm.step(state, torch.tensor(prompt[-1:]), plan).logits[0]
    close(logits[0], oracle.alone(prompt))
    close(logits[1], oracle.with_clean_key(prompt, noise[:, 0, 1]))


@pytest.mark.parametrize("name", NAMES)
def test_early_layers_where_they_are_offered(name: str) -> None:
    _, lm, oracle = built(name)
    assert (EARLY_LAYERS in lm.capabilities) == (name not in NO_EARLY_LAYERS)
    if name in NO_EARLY_LAYERS:
        assert lm.lacks(EARLY_LAYERS) == "its last layer is not followed by one norm and lm_head"
        return
    state = lm.prefill([p[:-1] for p in PROMPTS])
    out = lm.step(state, torch.tensor([p[-1] for p in PROMPTS]), RowPlan(early_layers=(1, 0)))
    for b, prompt in enumerate(PROMPTS):
        last, *others = oracle.early(prompt, (lm.layers - 1, 1, 0), lm.network.blocks.norm)
        close(out.logits[b, 0], last)
        close(out.logits[b, 0], oracle.alone(prompt))
        close(out.logits[b, 1], others[0])
        close(out.logits[b, 2], others[1])


ATTENTION = re.compile(r"attn|attention|mamba|conv|norm|residual|per_layer|mixer\.(?!experts|gate|shared|up|down)")


@pytest.mark.parametrize("name", NAMES)
def test_dropout_of_everything_is_a_model_without_feed_forward_blocks(name: str) -> None:
    """Found by the names of parameters, which the hooks do not look at."""
    model, lm, _ = built(name)
    assert (DROPOUT in lm.capabilities) == (name not in NO_DROPOUT)
    if name in NO_DROPOUT:
        assert lm.lacks(DROPOUT) == "its layers do not add one feed-forward block to one residual stream"
        return
    uniforms = torch.ones(lm.layers, 1, 2, lm.hidden_size)
    uniforms[:, :, 1] = 0
    plan = RowPlan(2, dropout=Dropout(0.5, uniforms))
    logits = lm.step(lm.prefill([()]), torch.tensor([7]), plan).logits[0]
    close(logits[0], Oracle(model).alone([7]))
    bare = tiny_model(name, **CHANGES.get(name, {}))
    with torch.no_grad():
        for path, parameter in bare.named_parameters():
            inside = path.split("layers." if "layers." in path else "blocks.")[-1]
            if inside != path and not ATTENTION.search(inside):
                parameter.zero_()
    close(logits[1], Oracle(bare).alone([7]))
    assert (logits[1] - logits[0]).abs().max() > 0.1
