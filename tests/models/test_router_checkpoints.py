"""Checkpoints with quantised or fused blocks: routes that are handed over, and kernels that are refused by name.

No kernel of these runs on a CPU. The classes are transformers' own where they can be built; what
their kernels would do is done by the unquantised experts, or by products that torch does not show.
"""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import FineGrainedFP8Config
from transformers.integrations.finegrained_fp8 import replace_with_fp8_linear
from transformers.integrations.mxfp4 import Mxfp4GptOssMLP

from tests.models.test_router_choices import ROWS, ids, noise, zero
from tests.models.zoo import tiny_model
from tokenscale.core.errors import ModelError, RoutingError
from tokenscale.core.plan import Routing, RowPlan
from tokenscale.models.hf import wrap
from tokenscale.models.routers import find_routers, watch


@torch.no_grad()
def same_under(one: Any, other: Any, routing: Routing | None) -> None:
    """Both models run the same experts with the same weights."""
    logits, marks = [], []
    for model in (one, other):
        with watch(find_routers(model), routing) as record:
            logits.append(model(ids()).logits)
        marks.append(record.marks(*ids().shape, max(r.experts for r in find_routers(model))))
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=1e-5)
    assert torch.equal(marks[0], marks[1])


def routings(name: str) -> list[Routing | None]:
    shift, noisy = noise(name, seed=6)
    ranks = Routing(ranks=(None, (2, 2), *((1, 5),) * (ROWS - 2)))
    return [None, Routing(shift, noisy), Routing(shift, noisy, "scores", "perturbed"), ranks]


def mxfp4(model: Any) -> Any:
    """The blocks of MXFP4 GPT-OSS, whose own forward ranks the logits inside a kernel, around unquantised experts."""
    for layer in model.model.layers:
        layer.mlp = Mxfp4GptOssMLP(layer.mlp.router, layer.mlp.experts)
    return model.eval()


@pytest.mark.parametrize("routing", routings("gpt_oss"), ids=["plain", "noise", "perturbed", "ranks"])
def test_the_fused_block_of_gpt_oss_is_handed_its_routes(routing: Routing | None) -> None:
    same_under(tiny_model("gpt_oss"), mxfp4(tiny_model("gpt_oss")), routing)


@torch.no_grad()
def test_the_fused_block_of_gpt_oss_in_a_step() -> None:
    models = [wrap(tiny_model("gpt_oss")), wrap(mxfp4(tiny_model("gpt_oss")))]
    shift, _ = noise("gpt_oss", seed=7)
    shift[:, :, 0] = 0
    steps = []
    for lm in models:
        state = lm.prefill([[5, 6, 7], [8]])
        steps.append(lm.step(state, torch.tensor([9, 10]), RowPlan(ROWS, Routing.of(shift))))
    torch.testing.assert_close(steps[0].logits, steps[1].logits, rtol=0, atol=1e-5)
    assert (steps[0].logits[:, 1:] - steps[0].logits[:, :1]).abs().max() > 1e-2
    assert "forward" not in vars(models[1].model.model.layers[0].mlp)


class Kernel(nn.Module):
    """A layer as the kernel hub has it; its forward takes the place of a block's."""

    def forward(self, hidden_states: torch.Tensor) -> Any:
        return hidden_states, None


Kernel.forward.__module__ = "megablocks.layers"


def test_a_kernel_from_the_hub_is_refused_by_name() -> None:
    model = tiny_model("gpt_oss")
    block = model.model.layers[1].mlp
    block.forward = types.MethodType(Kernel.forward, block)
    found = r"(?s)layers.1.mlp.router \(GptOssMLP\) runs a fused kernel of megablocks.layers.*fix: .*use_kernels=False"
    with pytest.raises(ModelError, match=found):
        wrap(model)


@torch.no_grad()
def test_a_kernel_that_came_after_wrapping_is_an_error_of_the_step() -> None:
    model = tiny_model("gpt_oss")
    lm = wrap(model)
    state = lm.prefill([[5, 6]])
    block = model.model.layers[1].mlp
    block.forward = types.MethodType(Kernel.forward, block)
    for routing in (None, zero("gpt_oss").at(torch.tensor([0]))):
        with pytest.raises(RoutingError, match=r"(?s)1 of 3 routers were not called.*fix: .*dequantised checkpoint"):
            lm.step(state, torch.tensor([7]), RowPlan(ROWS, routing))


def fp8(model: Any) -> Any:
    """FP8 experts whose weights are not quantised, so that their code runs without a kernel."""
    model.set_experts_implementation("eager")
    weights = model.state_dict()
    kept = [f"{name}$" for name, _ in model.named_modules() if name and not name.endswith(".experts")]
    replace_with_fp8_linear(model, kept, FineGrainedFP8Config(weight_block_size=(8, 8)))
    for name, module in model.named_modules():
        if name.endswith(".experts"):
            module.gate_up_proj = nn.Parameter(weights[f"{name}.gate_up_proj"])
            module.down_proj = nn.Parameter(weights[f"{name}.down_proj"])
    return model.eval()


@pytest.mark.parametrize("name", ["olmoe", "deepseek_v3"])
def test_fp8_experts_are_handed_their_routes(name: str) -> None:
    model = fp8(tiny_model(name))
    assert {type(m).__name__ for m in model.modules() if type(m).__name__.endswith("Experts")} == {"FP8Experts"}
    for routing in routings(name):
        same_under(tiny_model(name), model, routing)


class Linear4bit(nn.Module):
    """A layer that shows neither its weights' shape nor, as kernels of quantisers do not, its product."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self.register_buffer("packed", linear.weight.detach().clone().view(torch.uint8).reshape(-1, 1))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        product = torch.empty(*hidden.shape[:-1], self.out_features)
        weight = self.packed.numpy().reshape(-1).view(np.float32).reshape(self.out_features, -1)
        product.numpy()[...] = hidden.numpy() @ weight.T  # as a kernel: torch sees an empty tensor, and no product
        if self.bias is not None:
            product.numpy()[...] += self.bias.detach().numpy()
        return product


def packed(model: Any) -> Any:
    """Every plain linear layer packed, those inside routers too, as quantisers do."""
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and name != "lm_head" and not name.endswith("wg"):
            model.set_submodule(name, Linear4bit(module))
    return model.eval()


@pytest.mark.parametrize("name", ["afmoe", "dbrx", "gemma4_text", "jetmoe", "zaya", "mixtral"])
def test_routers_with_packed_products_take_noise(name: str) -> None:
    """No operation makes their logits, which are met where they are taken."""
    model = packed(tiny_model(name))
    for routing in routings(name)[:-1] if name == "jetmoe" else routings(name):
        same_under(tiny_model(name), model, routing)


class KernelRouter(nn.Module):
    """Ranks a kernel's logits with a bias, and weighs by the logits once more."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.bias = Linear4bit(nn.Linear(16, 8, bias=False)), nn.Parameter(torch.zeros(8))

    def forward(self, hidden: torch.Tensor) -> Any:
        logits = self.gate(hidden)
        indices = (logits + self.bias).topk(2, dim=-1).indices
        return logits, logits.gather(-1, indices).sigmoid(), indices


class Whole(nn.Module):
    """A model of one router."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = KernelRouter()
        text = types.SimpleNamespace(hidden_size=16)
        self.config = types.SimpleNamespace(get_text_config=lambda decoder: text)


def test_logits_of_a_kernel_that_weigh_once_more_are_not_perturbed() -> None:
    """What is in them when noise could be added is not what the kernel will write."""
    [router] = find_routers(Whole())
    assert router.lacks("logits", "scores", "ranks") == ""
    assert router.lacks("perturbed").startswith("KernelRouter takes no perturbed: gate weights are made of logits")
