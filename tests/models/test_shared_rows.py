"""The shared form against the mask form, which has a cache per sequence and one mask over all keys."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import tokenscale as ts
from tests.models.zoo import ZOO, tiny_model
from tokenscale.core.plan import RowPlan
from tokenscale.models.native import bindings
from tokenscale.models.shared_rows import SharedRows
from tokenscale.models.shared_state import SharedState

NAMES = ["olmoe", "mixtral", "gpt_oss", "gemma4_text"]
KERNELS = [False] if bindings.why_missing() else [False, True]
PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12, 13], [5, 6, 9], [], [5, 6, 7, 8, 1]]
CASES = [pytest.param(name, kernels, id=f"{name}-{kernels}") for name in NAMES for kernels in KERNELS]
_models: dict[str, Any] = {}


def model(name: str, kernels: bool) -> Any:
    """A tiny model in the shared form; its mask form is `lm.masked`."""
    if name not in _models:
        changes = {"sliding_window": 4} if name != "olmoe" else {}
        _models[name] = tiny_model(name, **changes).eval()
    lm = ts.wrap(_models[name])
    assert isinstance(lm.rows, SharedRows)
    if not kernels:
        lm.network = lm.rows.network = replace(lm.network, kernels=None)
    return lm


def equal(lm: Any, state: Any, other: Any, tokens: list[int], plan: RowPlan) -> None:
    ours, theirs = lm.step(state, torch.tensor(tokens), plan), lm.masked.step(other, torch.tensor(tokens), plan)
    torch.testing.assert_close(ours.logits, theirs.logits, atol=1e-5, rtol=1e-4)
    assert torch.equal(ours.experts, theirs.experts)


@pytest.mark.parametrize(("name", "kernels"), CASES)
def test_steps_forks_and_joins(name: str, kernels: bool) -> None:
    lm = model(name, kernels)
    state, other = lm.prefill(PROMPTS), lm.masked.prefill(PROMPTS, None, 1000)
    for t in range(5):
        equal(lm, state, other, [3 + t, 4, 9, 9], RowPlan(1 + 2 * (t % 2)))
    state, other = state.select([2, 0, 0, 3, 0]), other.select([2, 0, 0, 3, 0])
    assert state.lengths == other.lengths
    for t in range(3):
        equal(lm, state, other, [3 + t, 4, 5, 9, 8], RowPlan(2))
    late = [[5, 6, 7, 8, 9, 10, 11, 12, 13, 1, 2, 3], [8]]
    state, other = state.join(lm.prefill(late)), other.join(lm.masked.prefill(late, None, 1000))
    state, other = state.select([5, 1, 3, 6]), other.select([5, 1, 3, 6])
    assert state.lengths == other.lengths
    for t in range(5):
        equal(lm, state, other, [3 + t, 4, 5, 9], RowPlan(3))


@pytest.mark.parametrize(("name", "kernels"), CASES)
@pytest.mark.parametrize("key", ["own", "clean"])
def test_rows_that_store_nothing(name: str, kernels: bool, key: Any) -> None:
    lm = model(name, kernels)
    state, other = lm.prefill(PROMPTS), lm.masked.prefill(PROMPTS, None, 1000)
    for t in range(4):
        equal(lm, state, other, [3 + t, 4, 9, 9], RowPlan(2, current_kv=key))
        equal(lm, state, other, [3 + t, 4, 9, 9], RowPlan(3, current_kv=key, commit=False))


QUICK = {"olmoe", "gpt_oss", "qwen3_next", "deepseek_v3", "dbrx", "afmoe", "qwen4_exp_text"}


@pytest.mark.skipif(KERNELS == [False], reason=bindings.why_missing())
@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in ZOO])
def test_kernels_change_rounding_alone(name: str) -> None:
    """Every architecture and form: steps by kernels against steps by torch. Recurrent states amplify differences."""
    made = tiny_model(name).eval()
    with_kernels, without = ts.wrap(made), ts.wrap(made, kernels=False)
    assert with_kernels.network.kernels is not None
    prompts = [[5, 6, 7, 8], [5, 6, 9, 4]]
    state, other = with_kernels.prefill(prompts), without.prefill(prompts)
    rows = 3 if with_kernels.shape.moe_layers else 1
    for t in range(5):
        tokens = torch.tensor([3 + t, 9])
        ours, theirs = with_kernels.step(state, tokens, RowPlan(rows)), without.step(other, tokens, RowPlan(rows))
        torch.testing.assert_close(ours.logits, theirs.logits, atol=5e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_chunked_prefill(name: str) -> None:
    """A prompt longer than a forward comes in several; those that are short share one."""
    lm = model(name, False)
    prompts = [list(range(3, 33)), list(range(40, 47)), [1], [1, 2]]
    state, other = lm.rows.prefill(prompts, None, 8), lm.masked.prefill(prompts, None, 1000)
    assert max(segment.tokens for chain in state.chains for segment, _ in chain) == 8
    equal(lm, state, other, [3, 4, 5, 6], RowPlan(2))
    for ours, theirs in zip(state.prefills, other.prefills, strict=True):
        assert (ours.experts == theirs.experts).all()
        assert ours.runs == theirs.runs


def test_half_precision_by_kernels_and_by_torch() -> None:
    twin = tiny_model("olmoe").eval().bfloat16()
    lm = ts.wrap(twin)
    by_torch = SharedRows(replace(lm.network, kernels=None), [None] * 3)
    state, other = lm.rows.prefill(PROMPTS, None, 99), by_torch.prefill(PROMPTS, None, 99)
    for t in range(3):
        tokens = torch.tensor([3 + t, 4, 9, 9])
        ours, theirs = lm.rows.step(state, tokens, RowPlan(2)), by_torch.step(other, tokens, RowPlan(2))
        torch.testing.assert_close(ours.logits, theirs.logits, atol=3e-2, rtol=3e-2)


def fresh() -> tuple[Any, SharedRows]:
    lm = model("olmoe", False)
    assert isinstance(lm.rows, SharedRows)
    return lm, lm.rows


def test_a_prompt_is_stored_and_run_once() -> None:
    lm, rows = fresh()
    prompt = list(range(3, 33))
    state = lm.prefill([prompt, prompt, prompt])
    assert rows.prefilled == 30
    assert isinstance(state, SharedState)
    assert len({id(chain[0][0]) for chain in state.chains}) == 1
    lm.prefill([[*prompt, 7, 8]])
    assert rows.prefilled == 32
    lm.prefill([prompt[:20]])
    assert rows.prefilled == 32
    lm.release()
    lm.prefill([prompt])
    assert rows.prefilled == 62


def test_changed_weights_are_seen() -> None:
    lm = ts.wrap(tiny_model("olmoe", seed=5).eval())
    assert isinstance(lm.rows, SharedRows)
    prompt = list(range(3, 33))
    lm.prefill([prompt])
    with torch.no_grad():
        lm.model.model.layers[0].self_attn.v_proj.weight.mul_(2)
    state, other = lm.prefill([prompt]), lm.masked.prefill([prompt], None, 99)
    assert lm.rows.prefilled == 60
    equal(lm, state, other, [5], RowPlan(1))


def test_a_replaced_weight_another_type_and_a_hook_are_seen() -> None:
    lm = ts.wrap(tiny_model("olmoe", seed=5).eval())
    assert isinstance(lm.rows, SharedRows)
    attention, prompt = lm.model.model.layers[0].self_attn, list(range(3, 33))

    def replace_weight() -> None:
        attention.v_proj.weight = torch.nn.Parameter(attention.v_proj.weight.detach() * 2)

    def give_data() -> None:
        attention.v_proj.weight.data = attention.v_proj.weight.data * 2

    def hook() -> None:
        attention.register_forward_hook(lambda module, given, out: (out[0] * 2, *out[1:]))

    for number, change in enumerate([lambda: None, replace_weight, give_data, hook, lm.model.bfloat16], 1):
        change()
        lm.prefill([prompt])
        lm.prefill([prompt])
        assert lm.rows.prefilled == 30 * number


def test_a_model_made_for_inference_alone() -> None:
    with torch.inference_mode():
        made = tiny_model("olmoe").eval()
    lm = ts.wrap(made)
    assert lm.prefill([[5, 6, 7]]).lengths == [3]


@pytest.mark.parametrize("most_bytes", [2**20, 1000])
def test_a_common_header_is_run_once(most_bytes: int) -> None:
    """Also where it is too large to be kept."""
    lm, rows = fresh()
    rows.prefixes.most_bytes = most_bytes
    header = list(range(3, 33))
    lm.prefill([[*header, 40 + i, 50] for i in range(5)])
    assert rows.prefilled == 30 + 5 * 2


def test_rows_and_forks_store_no_more() -> None:
    """n = 64 rows hold what one row holds; a fork holds nothing more until it goes on."""
    lm, _ = fresh()
    held = {}
    for n in (1, 64):
        state = lm.prefill([list(range(3, 33))])
        for t in range(5):
            lm.step(state, torch.tensor([t]), RowPlan(n))
        held[n] = state.cache.kv_bytes
    assert held[1] == held[64]
    state = lm.prefill([list(range(3, 33))] * 8)
    assert state.cache.kv_bytes == 0


class Largest(TorchDispatchMode):
    """The most numbers that one tensor of a step has."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.most = max([self.most, *(t.numel() for t in tree_leaves(out) if isinstance(t, torch.Tensor))])
        return out


@pytest.mark.skipif(KERNELS == [False], reason=bindings.why_missing())
def test_a_step_needs_no_more_memory_for_a_longer_context() -> None:
    """64 rows at 8,000 tokens: nothing has the size of rows times keys."""
    model = tiny_model("olmoe", max_position_embeddings=9000).eval()
    lm, most = ts.wrap(model), {}
    for length in (100, 8000):
        state = lm.prefill([[token % 90 for token in range(length)]])
        with Largest() as seen:
            lm.step(state, torch.tensor([5]), RowPlan(64))
        most[length] = seen.most
    assert most[100] == most[8000] < 64 * 101 + 1


def test_sampling_from_one_prompt_prefills_it_once() -> None:
    lm = ts.load("demo")
    assert isinstance(lm.rows, SharedRows)
    pipe = ts.Pipeline(ts.RoE(n=2), ts.SelfConsistency(k=8))
    [result] = pipe.run(lm, ["Q: Tom has 17 apples and buys 5. How many apples?\nA:"], max_new_tokens=4)
    assert len(result.candidates) == 8
    assert lm.rows.prefilled == result.cost.prompt_tokens - 1


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(0, 9))
def test_any_history_of_forks(picks: list[int], seed: int) -> None:
    """Whatever is forked and dropped, a sequence's logits are those of its tokens alone."""
    lm, _ = fresh()
    state, texts = lm.prefill(PROMPTS), [list(p) for p in PROMPTS]
    draw = torch.Generator().manual_seed(seed)
    for pick in picks:
        tokens = torch.randint(0, 60, (len(texts),), generator=draw)
        lm.step(state, tokens, RowPlan(2))
        texts = [[*text, int(token)] for text, token in zip(texts, tokens, strict=True)]
        index = [(pick + i * (pick + 1)) % len(texts) for i in range(1 + pick)]
        state, texts = state.select(index), [texts[i] for i in index]
    last = torch.tensor([7] * len(texts))
    found = lm.step(state, last, RowPlan(1)).logits[:, 0]
    with torch.no_grad():
        wanted = [lm.model(input_ids=torch.tensor([[*text, 7]])).logits[0, -1] for text in texts]
    torch.testing.assert_close(found, torch.stack(wanted), atol=1e-5, rtol=1e-4)
