"""The compiled kernels against numpy in float64 and against transformers' own modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.models.olmoe import modeling_olmoe

import tokenscale as ts
from tests.models.zoo import tiny_model
from tokenscale.models.layout import lay_out_experts
from tokenscale.models.native import bindings, build
from tokenscale.models.native.experts import experts_forward, why_not
from tokenscale.models.native.kernels import Kernels, find_kernels
from tokenscale.models.native.small import norm_forward

pytestmark = pytest.mark.skipif(bool(bindings.why_missing()), reason=bindings.why_missing())
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}
DTYPE = st.sampled_from(sorted(TOLERANCE, key=str))


def random(shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def exact(tensor: torch.Tensor) -> Any:
    return tensor.double().numpy()


def close(found: torch.Tensor, wanted: Any) -> bool:
    scale = max(1.0, float(np.abs(wanted).max()))
    return bool(np.abs(exact(found) - wanted).max() <= TOLERANCE[found.dtype] * scale)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 9), st.integers(1, 70), st.integers(1, 70), st.booleans(), DTYPE, st.integers(0, 99))
def test_linear(rows: int, inputs: int, outputs: int, biased: bool, dtype: torch.dtype, seed: int) -> None:
    x, w = random((rows, inputs), seed, dtype), random((outputs, inputs), seed + 1, dtype)
    bias = random((outputs,), seed + 2, dtype) if biased else None
    wanted = exact(x) @ exact(w).T + (exact(bias) if bias is not None else 0)
    assert close(bindings.linear(x, w, bias), wanted)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 7), st.integers(1, 5), st.integers(1, 40), st.integers(1, 40), DTYPE, st.integers(0, 99))
def test_experts(tokens: int, top_k: int, hidden: int, inner: int, dtype: torch.dtype, seed: int) -> None:
    count = 6
    x = random((tokens, hidden), seed, dtype)
    gate_up, down = random((count, 2 * inner, hidden), seed + 1, dtype), random((count, hidden, inner), seed + 2, dtype)
    weights = random((tokens, top_k), seed + 3, dtype)
    chosen = torch.randint(0, count + 1, (tokens, top_k), generator=torch.Generator().manual_seed(seed))
    wanted = np.zeros((tokens, hidden))
    for t in range(tokens):
        for k in range(top_k):
            if (e := int(chosen[t, k])) < count:  # beyond the experts: one that another process holds
                gate, up = np.split(exact(gate_up)[e] @ exact(x)[t], 2)
                with np.errstate(over="ignore"):
                    wanted[t] += exact(weights)[t, k] * (exact(down)[e] @ (gate / (1 + np.exp(-gate)) * up))
    assert close(bindings.experts(x, chosen, weights, gate_up, down), wanted)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 6), st.integers(1, 3), st.booleans(), st.booleans(), DTYPE, st.integers(0, 99))
def test_grouped(rows: int, per_row: int, transposed: bool, biased: bool, dtype: torch.dtype, seed: int) -> None:
    count, inputs, outputs = 5, 37, 21
    shape = (count, inputs, outputs) if transposed else (count, outputs, inputs)
    x, w = random((rows, inputs), seed, dtype), random(shape, seed + 1, dtype)
    bias = random((count, outputs), seed + 2, dtype) if biased else None
    chosen = torch.randint(0, count, (rows * per_row,), generator=torch.Generator().manual_seed(seed))
    matrices = exact(w) if not transposed else exact(w).transpose(0, 2, 1)
    wanted = np.stack([matrices[e] @ exact(x)[s // per_row] for s, e in enumerate(chosen.tolist())])
    if bias is not None:
        wanted = wanted + exact(bias)[chosen.numpy()]
    assert close(bindings.grouped(x, chosen, w, bias, transposed), wanted)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 5), st.integers(1, 50), DTYPE, st.integers(0, 99))
def test_rms_norm(rows: int, dim: int, dtype: torch.dtype, seed: int) -> None:
    x, w = random((rows, dim), seed, dtype), random((dim,), seed + 1, dtype)
    wanted = exact(x) / np.sqrt((exact(x) ** 2).mean(-1, keepdims=True) + 1e-5) * exact(w)
    assert close(bindings.rms_norm(x, w, 1e-5), wanted)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 20), DTYPE, st.integers(0, 99))
def test_rotate(batch: int, heads: int, rows: int, half: int, dtype: torch.dtype, seed: int) -> None:
    """Also of queries that lie [batch, rows, heads, dim] in memory, as models make them."""
    x = random((batch, rows, heads, 2 * half), seed, dtype).transpose(1, 2)
    cos, sin = (random((batch, rows, 2 * half), seed + i, dtype) for i in (1, 2))
    one, two = np.split(exact(x), 2, -1)
    wanted = exact(x) * exact(cos)[:, None] + np.concatenate([-two, one], -1) * exact(sin)[:, None]
    assert close(bindings.rotate(x, cos, sin), wanted)


@pytest.mark.parametrize("name", ["olmoe", "gemma4_text", "qwen3_moe"])
def test_norms_and_rotations_of_transformers(name: str) -> None:
    """Those that are ours are the model's; a norm of another kind is left to it."""
    model = tiny_model(name).eval()
    norms = [m for m in model.modules() if type(m).__name__.endswith("RMSNorm")]
    ours = [(m, forward) for m in norms if (forward := norm_forward(m))]
    assert ours
    for module, forward in ours:
        x = random((3, module.weight.numel()), 1, torch.float32)
        torch.testing.assert_close(forward(x), module(x))
    other = nn.RMSNorm(8, eps=1e-5)
    other.forward = lambda x: x * 2  # type: ignore[method-assign]
    assert norm_forward(other) is None


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_does_not_depend_on_its_batch(dtype: torch.dtype, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x, w = random((13, 100), 0, dtype), random((50, 100), 1, dtype)
        gate_up, down = random((4, 60, 100), 2, dtype), random((4, 100, 30), 3, dtype)
        chosen = torch.randint(0, 4, (13, 2), generator=torch.Generator().manual_seed(4))
        weights = random((13, 2), 5, dtype)
        together = bindings.linear(x, w, None), bindings.experts(x, chosen, weights, gate_up, down)
        for i in range(13):
            row = slice(i, i + 1)
            assert torch.equal(bindings.linear(x[row], w, None), together[0][row])
            alone = bindings.experts(x[row], chosen[row], weights[row], gate_up, down)
            assert torch.equal(alone, together[1][row])
    finally:
        torch.set_num_threads(before)


MODELS = ["olmoe", "gpt_oss", "mixtral", "aria_text", "qwen3_moe", "phimoe", "granitemoe", "dots1", "minimax_m2"]


@pytest.mark.parametrize("name", MODELS)
def test_modules_of_transformers(name: str) -> None:
    """Experts of every layout: interleaved, transposed, with biases, with activations of their own."""
    model = tiny_model(name).eval()
    modules = [m for m in model.modules() if type(m).__name__.endswith("Experts")]
    assert modules
    for module in modules:
        assert why_not(module) == ""
        hidden = module.down_proj.shape[1 if not module.is_transposed else 2]
        x = random((3, hidden), 1, torch.float32)
        chosen, weights = torch.tensor([[0, 1], [3, 1], [2, 0]]), random((3, 2), 2, torch.float32)
        with torch.no_grad():
            torch.testing.assert_close(
                experts_forward(module, x, chosen, weights), module(x, chosen, weights), atol=2e-6, rtol=1e-5
            )


def test_a_model_is_left_as_it_is() -> None:
    model = tiny_model("olmoe").eval()
    kernels = find_kernels(model)
    assert isinstance(kernels, Kernels)
    assert kernels.experts == 3
    assert kernels.linear == 13

    def interrupted() -> None:
        with kernels.installed():
            assert "forward" in vars(model.lm_head)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not any("forward" in vars(module) for module in model.modules())
    assert modeling_olmoe.apply_rotary_pos_emb.__module__ == modeling_olmoe.__name__


def test_the_choice_is_the_users() -> None:
    model = tiny_model("olmoe").eval()
    assert ts.wrap(model).engine.startswith("kernels for 3 layers of experts up to")
    assert ts.wrap(model, kernels=False).engine.startswith("no kernels: kernels=False")
    with pytest.raises(ts.ModelError, match=r"cannot run by our kernels: .*float16") as told:
        ts.wrap(tiny_model("olmoe").eval().half(), kernels=True)
    assert "leave kernels=True out" in str(told.value)
    assert "(not for experts: DbrxExperts is not one of" in Kernels(tiny_model("dbrx").eval()).told
    own = ts.load("demo", experts_implementation="eager")
    assert isinstance(own.kernels, Kernels)
    assert own.kernels.experts == 0


def test_what_is_not_for_the_kernels() -> None:
    half = tiny_model("olmoe").eval().half()
    assert "torch.float16" in str(find_kernels(half))
    assert "CPU" in str(find_kernels(nn.Linear(2, 2, device="meta")))
    loose = nn.Linear(3, 3)
    loose.forward = lambda x: x  # type: ignore[method-assign]
    assert Kernels(loose).linear == 0
    assert Kernels(nn.Linear(3, 3)).linear == 1


def test_few_rows_by_kernels_and_many_by_the_model() -> None:
    model = tiny_model("olmoe").eval()
    kernels = Kernels(model)
    ids = torch.arange(60).view(1, 60)
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        with kernels.installed():
            torch.testing.assert_close(model(input_ids=ids).logits, plain, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(model(input_ids=ids[:, :3]).logits, plain[:, :3], atol=1e-5, rtol=1e-4)


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(build.BuildError, match=r"\$CXX names 'no-such-compiler'"):
        build.built()
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(build.BuildError, match=r"no g\+\+ was found"):
        build.built()


def test_a_compiler_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'a.cpp:1: error: broken' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(build.BuildError, match=r"failed: a\.cpp:1: error: broken"):
        build.built()
    assert list((tmp_path / "cache").rglob("*.so")) == []


def test_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    for cached in (bindings.loaded, bindings.why_missing):
        cached.cache_clear()
    monkeypatch.setenv("TOKENSCALE_KERNELS", "0")
    try:
        model = tiny_model("olmoe").eval()
        lm = ts.wrap(model)
        assert lm.network.kernels is None
        assert "TOKENSCALE_KERNELS=0" in lm.engine
        prompt = ts.Prompt(token_ids=(5, 6, 7))
        [off] = ts.Pipeline(ts.RoE(n=3)).run(lm, [prompt], max_new_tokens=5)
    finally:
        for cached in (bindings.loaded, bindings.why_missing):
            cached.cache_clear()
    monkeypatch.delenv("TOKENSCALE_KERNELS")
    [on] = ts.Pipeline(ts.RoE(n=3)).run(ts.wrap(model), [prompt], max_new_tokens=5)
    assert on.winner.token_ids == off.winner.token_ids
    assert on.cost == off.cost


def test_without_kernels_experts_are_stored_as_grouped_products_read_them() -> None:
    lm, other = ts.load("demo", kernels=False), ts.load("demo")
    moved = lm.model.model.layers[0].mlp.experts.down_proj
    assert moved.stride() == (moved.shape[1] * moved.shape[2], 1, moved.shape[1])
    assert other.model.model.layers[0].mlp.experts.down_proj.is_contiguous()
    assert torch.equal(moved, other.model.model.layers[0].mlp.experts.down_proj)
    assert lm.fingerprint == other.fingerprint
    model = tiny_model("olmoe").eval()
    ts.wrap(model, kernels=False)
    assert model.model.layers[0].mlp.experts.down_proj.is_contiguous()


@pytest.mark.parametrize("name", ["olmoe", "gpt_oss"])
def test_another_layout_changes_nothing(name: str) -> None:
    model = tiny_model(name).eval()
    ids = torch.arange(12)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        assert lay_out_experts(model) == (6 if name == "olmoe" else 0)
        torch.testing.assert_close(model(input_ids=ids).logits, before, atol=1e-5, rtol=1e-4)
