"""Quantised checkpoints: what is refused by name, what is billed, and real ones where their package is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import tokenscale as ts
from tests.models.test_load import tokenizer
from tests.models.tiny import tiny
from tests.models.zoo import tiny_model
from tokenscale.core.errors import ModelError
from tokenscale.models.quantised import COUNTED, method_of
from tokenscale.models.stored import parts, stored_bytes

PROMPT = ts.Prompt(token_ids=(5, 6, 7, 8), key="a")


class Linear4bit(nn.Linear):
    """Named as that of bitsandbytes: weights are codes, two to a byte."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain.in_features, plain.out_features, bias=False, device="meta")
        codes = torch.zeros(plain.weight.numel() // 2, 1, dtype=torch.uint8)
        self.weight = nn.Parameter(codes, requires_grad=False)


class Codes(Tensor):
    """Named and made as tensors of torchao: it looks like a float32 weight and holds int8 codes and float16 scales."""

    @staticmethod
    def __new__(cls, qdata: Tensor, scale: Tensor) -> Any:
        return Tensor._make_wrapper_subclass(cls, qdata.shape, dtype=torch.float32)

    def __init__(self, qdata: Tensor, scale: Tensor) -> None:
        self.qdata, self.scale = qdata, scale

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["qdata", "scale"], None

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError(f"no {func}")


def codes(like: Tensor) -> nn.Parameter:
    scale = torch.ones(*like.shape[:-1], 1, dtype=torch.float16)
    return nn.Parameter(Codes(torch.zeros(like.shape, dtype=torch.int8), scale), requires_grad=False)


def with_method(model: Any, method: str, **more: Any) -> Any:
    model.config.quantization_config = {"quant_method": method, **more}
    return model


@pytest.mark.parametrize(
    ("given", "method"),
    [
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"load_in_4bit": True}, "bitsandbytes"),
        (BitsAndBytesConfig(load_in_8bit=True), "bitsandbytes"),
        (3, "int"),
    ],
)
def test_the_method_is_named_as_transformers_names_it(given: Any, method: str) -> None:
    assert method_of(given) == method


@pytest.mark.parametrize("method", ["hqq", "aqlm", "higgs", "spqr", "of-tomorrow"])
def test_a_method_that_is_not_counted_is_refused_before_weights_are_read(tmp_path: Path, method: str) -> None:
    tiny("olmoe").save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": method}}))
    (tmp_path / "model.safetensors").unlink()
    message = (
        rf"(?s)is quantised by '{method}', whose stored bytes are not known .*fix: .*awq, bitsandbytes, .* or torchao"
    )
    with pytest.raises(ModelError, match=message):
        ts.load(tmp_path)
    with pytest.raises(ModelError, match=message):
        ts.wrap(with_method(tiny("olmoe"), method))


def test_a_method_that_is_asked_for_is_refused_too(tmp_path: Path) -> None:
    tiny("olmoe").save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"is quantised by 'eetq'"):
        ts.load(tmp_path, quantization_config={"quant_method": "eetq"})


@pytest.mark.parametrize("method", COUNTED)
def test_counted_methods_with_plain_routers_pass(method: str) -> None:
    assert ts.wrap(with_method(tiny("olmoe"), method)).inspect_layers() != []


@pytest.mark.parametrize(
    ("method", "fix"),
    [
        ("bitsandbytes", r'BitsAndBytesConfig\(llm_int8_skip_modules=\["gate"\]\)'),
        ("torchao", r'quantization_config with modules_to_not_convert=\["gate"\]'),
        ("compressed-tensors", r'a checkpoint that was quantised with ignore=\["gate"\]'),
        ("gptq", r'a checkpoint that was quantised without "gate"'),
    ],
)
@pytest.mark.parametrize("how", ["codes", "bytes"])
def test_a_quantised_router_is_refused_with_the_fix(method: str, fix: str, how: str) -> None:
    model = tiny("olmoe")
    for layer in model.model.layers[1:]:
        gate = layer.mlp.gate
        plain = gate.weight
        if how == "codes":
            gate.register_buffer("scale_codes", torch.zeros(8, 4, dtype=torch.uint8))
        else:
            gate.weight = nn.Parameter(plain.detach().to(torch.float8_e4m3fn), requires_grad=False)
            gate.forward = lambda hidden, plain=plain: tiny_route(hidden, plain)
    message = rf"(?s)the router model.layers.1.mlp.gate .* is quantised by {method}, and 1 more: .*fix: .*{fix}"
    with pytest.raises(ModelError, match=message):
        ts.wrap(with_method(model, method))


@pytest.mark.parametrize("name", ["deepseek_v4", "doge"])
def test_tables_of_whole_numbers_and_routers_with_layers_are_no_codes(name: str) -> None:
    assert ts.wrap(tiny_model(name)).inspect_layers() != []


def tiny_route(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What OLMoE's router does."""
    logits = nn.functional.linear(hidden, weight)
    values, indices = logits.float().softmax(-1).topk(3, dim=-1)
    return logits, values, indices


def test_experts_of_codes_run_one_by_one_only() -> None:
    model = tiny("olmoe")
    model.model.layers[2].mlp.experts.down_proj = codes(model.model.layers[2].mlp.experts.down_proj)
    with pytest.raises(ModelError, match=r'(?s)down_proj around .* is a Codes, which grouped_mm.*fix: .*="eager"'):
        ts.wrap(model)
    model.set_experts_implementation("eager")
    assert ts.wrap(model).shape.experts == 8


def test_a_head_without_a_weight_is_refused() -> None:
    model = tiny("olmoe")
    head = model.lm_head
    del head.weight
    head.register_buffer("qweight", torch.zeros(4, 101, dtype=torch.int32))
    with pytest.raises(ModelError, match=r'(?s)lm_head of OlmoeForCausalLM is quantised by gptq.*"lm_head"'):
        ts.wrap(with_method(model, "gptq"))


def test_the_bill_counts_what_is_stored_and_the_work_of_the_numbers_it_stands_for() -> None:
    """4-bit attention: 3 layers of 3072 weights, at half a byte; experts of int8 codes with a float16 scale a row."""
    plain, model = ts.wrap(tiny("olmoe")).shape, tiny("olmoe")
    model.set_experts_implementation("eager")
    for layer in model.model.layers:
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(layer.self_attn, name, Linear4bit(getattr(layer.self_attn, name)))
        for name in ("gate_up_proj", "down_proj"):
            setattr(layer.mlp.experts, name, codes(getattr(layer.mlp.experts, name)))
    shape = ts.wrap(with_method(model, "bitsandbytes", load_in_4bit=True)).shape
    assert (shape.dense_flops, shape.expert_flops, shape.head_flops) == (
        plain.dense_flops,
        plain.expert_flops,
        plain.head_flops,
    )
    rotary = sum(b.nbytes for b in model.buffers())
    assert shape.dense_bytes == plain.dense_bytes - 3 * 3072 * 4 + 3 * 3072 / 2 + rotary
    assert shape.expert_bytes == (32 * 32 + 32 * 16) + 2 * (32 + 32)
    assert shape.head_bytes == plain.head_bytes


def test_scales_beside_codes_are_stored_too() -> None:
    class State:
        def __init__(self, **parts: Any) -> None:
            self.__dict__.update(parts)

    weight = nn.Parameter(torch.zeros(512, 1, dtype=torch.uint8), requires_grad=False)
    weight.quant_state = State(  # type: ignore[attr-defined]
        absmax=torch.zeros(16, dtype=torch.uint8),
        code=torch.zeros(16),
        state2=State(absmax=torch.zeros(1), code=torch.zeros(256)),
    )
    assert [name for name, _ in parts(weight)] == [
        "",
        "quant_state.absmax",
        "quant_state.code",
        "state2.absmax",
        "state2.code",
    ]
    assert stored_bytes([weight]) == 512 + 16 + 64 + 4 + 1024


def roe(lm: ts.LanguageModel) -> ts.Result:
    return ts.Pipeline(ts.RoE(n=4, tau=0.3)).run(lm, [PROMPT], seed=0, max_new_tokens=6)[0]


def large(folder: Path) -> Path:
    """Layers of 64 and more, which 4-bit kernels want."""
    model = tiny("mixtral")
    config = model.config
    config.hidden_size, config.intermediate_size, config.head_dim = 64, 64, 16
    torch.manual_seed(0)
    type(model)._from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    tokenizer(bos_token="<end>").save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("default")  # packages that are not ours warn of torch's future
@pytest.mark.parametrize("what", ["linear", "experts"])
def test_torchao(tmp_path: Path, what: str) -> None:
    """Real int8 weights: tokens are those of the same weights rounded, and half of the bytes are read."""
    quantization = pytest.importorskip("torchao.quantization")
    from transformers import TorchAoConfig

    folder, int8 = large(tmp_path), quantization.Int8WeightOnlyConfig()
    experts = {f"re:.*experts.{name}": int8 for name in ("gate_up_proj", "down_proj")}
    asked = TorchAoConfig(int8 if what == "linear" else quantization.FqnToConfig({"_default": int8, **experts}))
    if what == "experts":
        with pytest.raises(ModelError, match=r"is a \w+, which grouped_mm products of experts cannot run"):
            ts.load(folder, quantization_config=asked)
    lm = ts.load(folder, quantization_config=asked, experts_implementation="eager")
    plain = ts.load(folder)
    assert lm.fingerprint == ts.load(folder, quantization_config=asked, experts_implementation="eager").fingerprint
    assert lm.fingerprint != plain.fingerprint
    bill, other = roe(lm).cost, roe(plain).cost
    assert (lm.shape.dense_flops, lm.shape.expert_flops) == (plain.shape.dense_flops, plain.shape.expert_flops)
    assert bill.rows == other.rows
    assert lm.shape.dense_bytes < 0.62 * plain.shape.dense_bytes
    assert (lm.shape.expert_bytes < 0.62 * plain.shape.expert_bytes) == (what == "experts")
    rounded = dequantised(lm.model, folder)
    expected = [lm_.step(lm_.prefill([(5, 6, 7)]), torch.tensor([8])).logits for lm_ in (lm, ts.wrap(rounded))]
    torch.testing.assert_close(*expected, rtol=0, atol=0.05)  # bfloat16, of logits up to 2


def dequantised(model: Any, folder: Path) -> Any:
    """The same model with the numbers that its codes stand for."""
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        for one, other in zip(plain.parameters(), model.parameters(), strict=True):
            one.copy_(other.dequantize() if hasattr(other, "qdata") else other)
    return plain


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("bits", [4, 8])
def test_bitsandbytes(tmp_path: Path, bits: int) -> None:
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("accelerate")
    folder = large(tmp_path)
    lm = ts.load(folder, quantization_config=BitsAndBytesConfig(**{f"load_in_{bits}bit": True}))
    plain = ts.load(folder)
    assert (lm.shape.dense_flops, lm.shape.expert_bytes) == (plain.shape.dense_flops, plain.shape.expert_bytes)
    attention = 3 * (64 * 64 * 2 + 64 * 32 * 2)  # weights of attention: the experts are left as they are
    saved = plain.shape.dense_bytes - lm.shape.dense_bytes
    assert attention * (2 - bits / 8 - 0.15) < saved < attention * (2 - bits / 8)
    assert roe(lm).cost.rows == roe(plain).cost.rows
