"""The expanded form: what it holds, what it shares, who gets it, and that it leaves no trace."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import MixtralConfig, OlmoeConfig, OlmoeForCausalLM

from tests.models.forms_oracle import PROMPTS, Oracle, noise_like
from tests.models.tiny import FAMILIES, SIZES, tiny
from tests.models.zoo import tiny_config, tiny_model
from tokenscale.core.model import open_model
from tokenscale.core.plan import Routing, RowPlan
from tokenscale.models import hf
from tokenscale.models.expanded import Expanded, ExpandedState
from tokenscale.models.hf import wrap
from tokenscale.models.query_rows import QueryRows
from tokenscale.models.shared_rows import SharedRows
from tokenscale.models.supported import cache_form, context_length

TOLERANCE = 1e-5  # float32, sums in another order


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=TOLERANCE)


def states(value: Any) -> list[torch.Tensor]:
    """All tensors that a cache holds."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for v in value.values() for t in states(v)]
    if isinstance(value, list):
        return [t for v in value for t in states(v)]
    return [t for v in vars(value).values() for t in states(v)] if hasattr(value, "layers") else []


def held(cache: Any) -> int:
    """Bytes of a cache's storages, each counted once."""
    found = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _of(cache)}
    return sum(found.values())


def _of(cache: Any) -> list[torch.Tensor]:
    return [t for layer in cache.layers for v in vars(layer).values() for t in states(v)]


def test_sequences_share_a_forward_where_padding_is_allowed() -> None:
    lm = wrap(tiny_model("qwen3_next"))
    state = lm.prefill([p[:-1] for p in PROMPTS])
    assert isinstance(state, ExpandedState)
    assert len(state.groups) == 1
    mixed = lm.prefill([[5, 6], [], [7, 8, 9], []])
    assert isinstance(mixed, ExpandedState)
    assert [len(group.first) for group in mixed.groups] == [2, 2]  # the empty ones have no cache yet
    apart = wrap(tiny_model("minimax", sliding_window=None)).prefill([[5, 6], [7, 8, 9], [1, 2]])
    assert isinstance(apart, ExpandedState)
    assert sorted(len(group.first) for group in apart.groups) == [1, 2]


@pytest.mark.parametrize("name", ["qwen3_next", "minimax"])
def test_any_order_of_selections_and_joins(name: str) -> None:
    model = tiny_model(name, sliding_window=None) if name == "minimax" else tiny_model(name)
    lm, oracle = wrap(model, kernels=False), Oracle(model)
    random = torch.Generator().manual_seed(0)
    texts = [list(p) for p in PROMPTS]
    state = lm.prefill([t[:-1] for t in texts])
    for _ in range(8):
        logits = lm.step(state, torch.tensor([t[-1] for t in texts])).logits[:, 0]
        for row, text in zip(logits, texts, strict=True):
            close(row, oracle.alone(text))
            text.append(int(torch.randint(2, 100, (), generator=random)))
        size = int(torch.randint(1, 5, (), generator=random))
        picked = torch.randint(0, len(texts), (size,), generator=random).tolist()
        state, texts = state.select(picked), [list(texts[i]) for i in picked]
        if len(texts) < 3:
            newcomer = torch.randint(2, 100, (4,), generator=random).tolist()
            state, texts = state.join(lm.prefill([newcomer[:-1]])), [*texts, newcomer]
        assert state.lengths == [len(t) - 1 for t in texts]


def test_a_prefill_in_several_forwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf, "PREFILL_TOKENS", 12)
    model = tiny_model("lfm2_moe")
    lm, oracle = wrap(model, kernels=False), Oracle(model)
    prompts = [list(range(5, 5 + n)) for n in (7, 2, 0, 4, 9, 3, 3)]
    state = lm.prefill(prompts)
    assert isinstance(state, ExpandedState)
    assert len(state.groups) == 5
    logits = lm.step(state, torch.tensor([50] * len(prompts))).logits[:, 0]
    for b, prompt in enumerate(prompts):
        close(logits[b], oracle.alone([*prompt, 50]))
        assert (state.prefills[b].experts == lm.prefill([prompt]).prefills[0].experts).all()


def test_noise_of_a_prefill_is_not_shifted_by_padding() -> None:
    model = tiny_model("qwen3_next")
    lm, oracle = wrap(model, kernels=False), Oracle(model)
    size = (lm.shape.moe_layers, 1)
    noises = [noise_like(*size, len(p), lm.shape.experts, b) for b, p in enumerate(PROMPTS)]
    routings = [Routing(n[:, :, :-1], torch.ones(*size, n.shape[2] - 1, dtype=torch.bool)) for n in noises]
    state = lm.prefill([p[:-1] for p in PROMPTS], routings)
    last = torch.cat([n[:, :, -1:] for n in noises], 1)
    logits = lm.step(state, torch.tensor([p[-1] for p in PROMPTS]), RowPlan(1, Routing.of(last))).logits
    for b, prompt in enumerate(PROMPTS):
        close(logits[b, 0], oracle.routed(prompt, noises[b][:, 0]))


def test_rows_leave_one_cache_and_the_one_before_the_token() -> None:
    """Keys of plain attention are held once for both, and nothing grows with the rows."""
    lm = wrap(tiny_model("qwen3_next"))
    sizes = []
    for rows in (1, 8):
        state = lm.prefill([list(range(5, 60))])
        lm.step(state, torch.tensor([7]), RowPlan(rows))
        assert isinstance(state, ExpandedState)
        [group] = state.groups
        sizes.append((held(group.cache), held(group.before)))
        attention = [layer for layer in group.before.layers if hasattr(layer, "keys")]
        assert attention
        for old, new in zip(group.before.layers, group.cache.layers, strict=True):
            if hasattr(old, "keys"):
                assert old.keys.data_ptr() == new.keys.data_ptr()
                assert old.keys.shape[-2] == new.keys.shape[-2] - 1 == 55
    assert sizes[0] == sizes[1]


def test_the_model_and_the_state_are_as_they_were_after_an_error() -> None:
    model = tiny_model("qwen3_next")
    lm, oracle = wrap(model, kernels=False), Oracle(model)
    attributes = {name: set(vars(m)) for name, m in model.named_modules()}
    state = lm.prefill([PROMPTS[0][:-1]])
    noise = noise_like(lm.shape.moe_layers, 1, 3, lm.shape.experts, 0)
    for _ in range(2):
        with pytest.raises(IndexError):
            lm.step(state, torch.tensor([10**6]), RowPlan(3, Routing.of(noise)))  # the embedding refuses it
    assert attributes == {name: set(vars(m)) for name, m in model.named_modules()}
    close(lm.step(state, torch.tensor(PROMPTS[0][-1:])).logits[0, 0], oracle.alone(PROMPTS[0]))


class Homemade(OlmoeForCausalLM):
    """A class that is derived from one of transformers'."""


def test_who_gets_which_form() -> None:
    assert isinstance(wrap(tiny("olmoe")).rows, SharedRows)
    assert isinstance(wrap(tiny_model("deepseek_v3")).rows, QueryRows)
    assert isinstance(wrap(tiny_model("jamba")).rows, Expanded)
    config = OlmoeConfig(**{**SIZES, **FAMILIES["olmoe"][2]})
    assert cache_form(config, OlmoeForCausalLM).name == cache_form(config, Homemade).name == "query rows"
    foreign = cache_form(config, type("RemoteForCausalLM", (torch.nn.Module,), {}))
    assert (foreign.name, foreign.pads) == ("expanded", False)
    assert foreign.reason == "transformers does not define RemoteForCausalLM"


def test_attention_without_a_mask_of_ours_is_expanded() -> None:
    config = OlmoeConfig(**{**SIZES, **FAMILIES["olmoe"][2]})
    config._attn_implementation = "flash_attention_2"
    form = cache_form(config)
    assert (form.name, form.pads) == ("expanded", True)
    assert form.reason == "flash_attention_2 attention takes no mask of ours; sdpa and eager attention do"


def test_windows_of_one_length_take_query_rows_and_of_several_do_not() -> None:
    assert cache_form(tiny_config("gpt_oss")).windows == (6, None, 6)
    windows = {0: {"sliding_window": 4}, 1: {"sliding_window": 8}}
    mixed = cache_form(MixtralConfig(**SIZES, per_layer_config=windows))
    assert (mixed.name, mixed.windows) == ("expanded", (4, 8, None))
    assert mixed.reason == "it has sliding windows of several lengths"


def test_long_rope_is_used_up_to_the_length_at_which_its_rotations_change() -> None:
    assert context_length(tiny_config("phimoe")) == 256
    even = [1.0] * 8
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": even, "long_factor": even, "factor": 4.0}
    rope["original_max_position_embeddings"] = 64
    assert context_length(tiny_config("mixtral", rope_parameters=rope)) == 64
    assert context_length(SimpleNamespace()) == 2**31


def test_a_reference_is_opened_once() -> None:
    assert open_model("demo") is open_model("demo")
