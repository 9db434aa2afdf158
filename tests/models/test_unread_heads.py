"""lm_head apart from the decoder: the same logits for every model that allows it, and never too many at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GraniteMoeConfig,
    OlmoeConfig,
    Qwen3NextConfig,
)

import tokenscale as ts
from tests.models.tiny import SIZES, tiny
from tokenscale.core import unread
from tokenscale.core.folding import aggregated
from tokenscale.core.noise import Stream
from tokenscale.core.plan import RowPlan
from tokenscale.models.heads import UnreadHeads
from tokenscale.models.hf import HFModel, wrap

PROMPTS = [[5, 6, 7, 8], [9, 2], [3, 3, 4]]
MOE = {"num_experts": 8, "num_local_experts": 8, "intermediate_size": 24, "moe_intermediate_size": 16}
LINEAR = {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}
CONFIGS: dict[str, Any] = {
    "softcapped": Gemma2Config(**SIZES | {"head_dim": 8, "final_logit_softcapping": 2.0, "intermediate_size": 24}),
    "divided": GraniteMoeConfig(**SIZES | MOE | {"logits_scaling": 7.0}),
    "multiplied": CohereConfig(**SIZES | {"logit_scale": 0.3, "intermediate_size": 24}),
    "expanded": Qwen3NextConfig(**SIZES | MOE | LINEAR | {"linear_num_value_heads": 4, "linear_num_key_heads": 2}),
}


@pytest.fixture
def bound() -> Iterator[None]:
    """Nothing may be held at once."""
    before, unread.LOGITS_BYTES = unread.LOGITS_BYTES, 1
    yield
    unread.LOGITS_BYTES = before


def random(name: str) -> HFModel:
    if name == "olmoe":
        return wrap(tiny("olmoe"))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name], dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return wrap(model.eval())


def stepped(lm: HFModel) -> list[Any]:
    state = lm.prefill([p[:-1] for p in PROMPTS]).select([2, 0, 1])
    tokens = torch.tensor([PROMPTS[i][-1] for i in (2, 0, 1)])
    return [lm.step(state, tokens, RowPlan(2)), lm.step(state, tokens + 1, RowPlan(1))]


@pytest.mark.parametrize("name", ["olmoe", *CONFIGS])
def test_logits_read_later_are_the_models_own(name: str, bound: None) -> None:
    lm = random(name)
    unread.LOGITS_BYTES, most = 2**26, unread.LOGITS_BYTES
    wanted = stepped(lm)
    unread.LOGITS_BYTES = most
    modules = [set(vars(module)) for module in lm.model.modules()]
    for late, own in zip(stepped(lm), wanted, strict=True):
        assert isinstance(late.held, UnreadHeads)
        assert late.held.shape == own.logits.shape
        assert late.held.device == own.logits.device
        part = late.held.part(slice(1, 3), slice(0, 1)).read()
        torch.testing.assert_close(part, own.logits[1:3, :1], rtol=0, atol=1e-5)
        torch.testing.assert_close(late.logits, own.logits, rtol=0, atol=1e-5)
        assert late.logits.dtype == torch.float32
        assert (late.experts is None) == (own.experts is None)
    assert [set(vars(module)) for module in lm.model.modules()] == modules


def test_a_model_that_makes_logits_of_more_than_hidden_states_runs_by_itself(bound: None) -> None:
    lm = wrap(tiny("llama"))
    forward = lm.model.forward

    def added(*args: Any, **kwargs: Any) -> Any:
        out = forward(*args, **kwargs)
        out.logits = out.logits + kwargs["input_ids"][..., None]
        return out

    lm.model.forward = added
    assert all(isinstance(step.held, Tensor) for step in stepped(lm))


def test_early_layers_are_read_at_once(bound: None) -> None:
    lm = random("olmoe")
    state = lm.prefill([p[:-1] for p in PROMPTS])
    step = lm.step(state, torch.tensor([p[-1] for p in PROMPTS]), RowPlan(early_layers=(0,)))
    assert isinstance(step.held, Tensor)


@pytest.mark.parametrize(
    "pipe",
    [
        ts.Pipeline(ts.Greedy()),
        ts.RoE(4, 1.0) | ts.Greedy(),
        ts.RoE(2, 1.0, cache="private") | ts.Greedy(),
        ts.RoE(4, 1.0) | ts.MinProbability() | ts.Greedy(),
        ts.RoE(4, 1.0) | ts.MedianProbability() | ts.BeamSearch(2),
    ],
    ids=str,
)
def test_runs_find_the_same_tokens(pipe: ts.Pipeline, bound: None) -> None:
    lm = ts.load("demo")
    asked: dict[str, Any] = {"max_new_tokens": 6, "trace": True, "seed": 0}
    unread.LOGITS_BYTES, most = 2**26, unread.LOGITS_BYTES
    wanted = pipe.run(lm, ["3+4=", "12+9="], **asked)
    unread.LOGITS_BYTES = most
    found = pipe.run(lm, ["3+4=", "12+9="], **asked)
    for one, other in zip(found, wanted, strict=True):
        assert [c.token_ids for c in one.candidates] == [c.token_ids for c in other.candidates]
        assert one.cost == other.cost


class Largest(TorchDispatchMode):
    """The most numbers of one new tensor whose last dimension is the vocabulary."""

    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.vocab, self.numel = vocab, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.ndim > 1 and out.shape[-1] == self.vocab and not func.is_view:
            self.numel = max(self.numel, out.numel())
        return out


@pytest.mark.parametrize(("most", "products"), [(5, 12), (16, 3), (41, 2)])
def test_a_step_never_holds_more_logits_than_the_bound(most: int, products: int, bound: None) -> None:
    vocab, n, batch = 50_000, 16, 3
    torch.manual_seed(0)
    config = OlmoeConfig(**SIZES | {"vocab_size": vocab, "num_hidden_layers": 1, "num_experts": 8})
    lm = wrap(AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval())
    lm.network.heads(batch, RowPlan(n))  # found once
    unread.LOGITS_BYTES = 4 * vocab * most
    sizes: list[int] = []
    lm.model.lm_head.register_forward_hook(lambda module, args, out: sizes.append(out.numel()))
    prompts, streams = [tuple(prompt) for prompt in PROMPTS], [Stream((i,)) for i in range(batch)]
    proposals = ts.RoE(n, 1.0, clean_layers=0).start(lm, prompts, streams)
    with Largest(vocab) as largest, torch.no_grad():
        rows, _ = proposals.propose(torch.tensor([prompt[-1] for prompt in prompts]))
        log_probs, _ = aggregated(ts.MeanProbability(), rows)
    assert largest.numel <= most * vocab
    assert max(sizes) <= most * vocab
    assert len(sizes) == products  # as few as the bound allows: 3 x 4, 3 and 2 tiles
    wanted = ts.MeanProbability().aggregate(rows)
    torch.testing.assert_close(log_probs, wanted, rtol=0, atol=1e-5)
