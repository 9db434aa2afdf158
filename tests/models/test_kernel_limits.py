"""The kernels where something is not as expected: compilers, folders, memory, numbers, weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tokenscale as ts
from tests.models.zoo import tiny_model
from tokenscale.models.native import bindings, build
from tokenscale.models.native.kernels import Kernels
from tokenscale.models.native.small import norm_forward

pytestmark = pytest.mark.skipif(bool(bindings.why_missing()), reason=bindings.why_missing())


@pytest.mark.parametrize("script", ['"unbalanced', "{hangs}"])
def test_no_compiler_stops_a_load(script: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One that hangs, an odd $CXX, no home folder: there are no kernels then, and it is said why."""
    hangs = tmp_path / "hangs"
    hangs.write_text("#!/bin/sh\nexec sleep 60\n")
    hangs.chmod(0o755)
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: run(*args, **(kwargs | {"timeout": 0.1})))
    monkeypatch.setenv("CXX", script.format(hangs=hangs))
    with pytest.raises(build.BuildError, match="cannot be used"):
        build.built()


def test_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(build.Path, "home", homeless)
    with pytest.raises(build.BuildError, match="home directory"):
        build.built()


def test_numbers_that_are_none_stay_none() -> None:
    """Whatever of a layer is NaN, its attention is."""
    for name in ("q_proj", "k_proj", "v_proj"):
        model = tiny_model("olmoe").eval()
        with torch.no_grad():
            getattr(model.model.layers[-1].self_attn, name).weight.fill_(float("nan"))
        lm = ts.wrap(model)
        assert lm.step(lm.prefill([[5, 6, 7]]), torch.tensor([8])).logits.isnan().all(), name


def test_no_rows_and_short_numbers_of_experts() -> None:
    x, weights = torch.randn(2, 8), torch.rand(2, 2)
    gate_up, down = torch.randn(4, 16, 8), torch.randn(4, 8, 8)
    chosen = torch.tensor([[1, 2], [0, 3]])
    wanted = bindings.experts(x, chosen, weights, gate_up, down)
    assert torch.equal(bindings.experts(x, chosen.int(), weights, gate_up, down), wanted)
    assert bindings.experts(x[:0], chosen[:0], weights[:0], gate_up, down).shape == (0, 8)
    assert bindings.grouped(x[:0], chosen.view(-1)[:0], gate_up, None, False).shape == (0, 16)


def test_weights_that_are_replaced_after_loading() -> None:
    """Other types and layouts than the kernels read are left to the model."""

    def turned(weight: torch.Tensor) -> torch.Tensor:
        return weight.transpose(-1, -2).contiguous().transpose(-1, -2)

    model = tiny_model("olmoe").eval()
    kernels, ids = Kernels(model), torch.tensor([[5, 6, 7]])
    layer = model.model.layers[0]
    for weight in (layer.self_attn.q_proj.weight, layer.mlp.experts.down_proj):
        weight.data = turned(weight.data)
    layer.input_layernorm.weight.data = torch.rand(2 * len(layer.input_layernorm.weight))[::2]
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        with kernels.installed():
            torch.testing.assert_close(model(input_ids=ids).logits, plain, atol=1e-5, rtol=1e-4)
    norm = layer.post_attention_layernorm
    forward = norm_forward(norm)
    assert forward is not None
    x = torch.randn(2, len(norm.double().weight)).double()
    torch.testing.assert_close(forward(x), norm(x))


def test_memory_that_runs_out_is_an_error_and_no_end_of_the_process() -> None:
    code = """
import resource, torch
from tokenscale.models.native import bindings
bindings.loaded()
w, x = torch.zeros(4, 2_000_000), torch.zeros(16, 2_000_000)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 20_000_000,) * 2)
try:
    bindings.linear(x, w, None)
except MemoryError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "a kernel ran out of memory\n"), done.stderr
