"""Proposers on tiny transformers models: the suite, and oracles that are transformers' own forward passes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.models.tiny import tiny
from tokenscale.core.noise import Stream
from tokenscale.models.hf import HFModel, wrap
from tokenscale.testing import check_proposer
from tokenscale.token_level.adaptive_roe import AdaptiveRoE
from tokenscale.token_level.contrastive_decoding import ContrastiveDecoding
from tokenscale.token_level.dola import DoLa
from tokenscale.token_level.expert_sample import ExpertSample
from tokenscale.token_level.mc_dropout import MCDropout
from tokenscale.token_level.model_ensemble import ModelEnsemble
from tokenscale.token_level.more_experts import MoreExperts
from tokenscale.token_level.roe import RoE
from tokenscale.token_level.scmoe import SCMoE

PROMPT, FOLLOW = (5, 17, 60, 8, 33), (71, 12, 90)
STREAM = Stream(("tiny",))
# float32: rows, batches and caches of other shapes round in other orders.
ATOL = 1e-4


def proposed(proposer: Any, lm: HFModel) -> np.ndarray:
    """[steps, rows, vocab]"""
    proposals = proposer.start(lm, [PROMPT], [STREAM])
    return torch.stack([proposals.propose(torch.tensor([t]))[0].logits[0] for t in (PROMPT[-1], *FOLLOW)]).numpy()


@torch.no_grad()
def forward(model: Any, **options: Any) -> Any:
    """transformers' own pass over the whole text, without a cache."""
    return model(input_ids=torch.tensor([[*PROMPT, *FOLLOW]]), use_cache=False, **options)


def last(logits: torch.Tensor) -> np.ndarray:
    """The distributions behind the prompt and behind what follows."""
    return logits[0, len(PROMPT) - 1 :].numpy()


SUITE: list[tuple[str, Any]] = [
    ("olmoe", RoE(3, 0.5, clean_layers=0, cache="private", prefill="noisy")),
    ("llama", MCDropout(3, 0.2)),
    ("olmoe", SCMoE()),
]
MORE: list[tuple[str, Any]] = [
    ("mixtral", RoE(3, 0.5, clean_layers=0, first_token="clean", noise="antithetic")),
    ("qwen3-moe", RoE(3, 0.5, clean_layers=0, keep_head=1, candidate_pool=6, weights="perturbed")),
    ("olmoe-renormalised", AdaptiveRoE(4, 0.5, clean_layers=0, exact=False, threshold=0.05, audit=0.3)),
    ("olmoe", ExpertSample()),
    ("qwen2-moe", MCDropout(3, 0.2)),
    ("llama", DoLa()),
    ("mixtral-sliding", DoLa((0, 1))),
    ("mixtral", SCMoE(5, cache="private")),
    ("qwen3-moe", MoreExperts(5)),
]
CASES = [pytest.param(f, p, id=f"{f} {type(p).__name__}") for f, p in SUITE]
CASES += [pytest.param(f, p, id=f"{f} {type(p).__name__}", marks=pytest.mark.slow) for f, p in MORE]


@pytest.mark.parametrize(("family", "proposer"), CASES)
def test_it_conforms(family: str, proposer: Any) -> None:
    check_proposer(proposer, wrap(tiny(family)), atol=ATOL)


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_dola_reads_the_layers_of_transformers(family: str) -> None:
    model = tiny(family)
    states = forward(model, output_hidden_states=True).hidden_states
    with torch.no_grad():
        early = [model.lm_head(model.model.norm(states[layer + 1])) for layer in (0, 1)]
    wanted = np.stack([last(logits) for logits in (forward(model).logits, *early)], axis=1)
    np.testing.assert_allclose(proposed(DoLa((0, 1)), wrap(model)), wanted, rtol=0, atol=ATOL)


@pytest.mark.parametrize("family", ["mixtral", "olmoe", "qwen2-moe", "qwen3-moe"])
@pytest.mark.parametrize("k", [pytest.param(1, marks=pytest.mark.slow), 5])
def test_more_experts_is_the_model_with_another_top_k(family: str, k: int) -> None:
    model, other = tiny(family), tiny(family)
    routers = [module for module in other.modules() if hasattr(module, "top_k")]
    assert len(routers) >= 3
    for router in routers:
        router.top_k = k
    wanted = last(forward(other).logits)[:, None]
    found = proposed(MoreExperts(k), wrap(model))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=ATOL)
    assert np.abs(found[:, 0] - last(forward(model).logits)).max() > 0.01


def test_scmoe_has_the_models_routing_and_the_second_expert_alone() -> None:
    """The paper's form on Mixtral: the weak model's routers give all weight to the expert of rank 2."""
    model, weak = tiny("mixtral"), tiny("mixtral")

    def second(module: Any, inputs: Any, output: Any) -> Any:
        logits, weights, _ = output
        return logits, torch.ones_like(weights[:, :1]), logits.topk(2, -1).indices[:, 1:]

    for module in weak.modules():
        if type(module).__name__.endswith("TopKRouter"):
            module.register_forward_hook(second)
    wanted = np.stack([last(forward(one).logits) for one in (model, weak)], axis=1)
    private = proposed(SCMoE(cache="private"), wrap(model))
    np.testing.assert_allclose(private, wanted, rtol=0, atol=ATOL)
    clean = proposed(SCMoE(), wrap(model))
    np.testing.assert_allclose(clean[:, 0], wanted[:, 0], rtol=0, atol=ATOL)
    assert np.abs(clean[-1, 1] - wanted[-1, 1]).max() > 0.001


def test_second_models_are_transformers_own() -> None:
    strong, weak = tiny("olmoe"), tiny("llama", seed=1)
    wanted = np.stack([last(forward(model).logits) for model in (strong, weak)], axis=1)
    for proposer in (ContrastiveDecoding(wrap(weak)), ModelEnsemble((wrap(weak),))):
        np.testing.assert_allclose(proposed(proposer, wrap(strong)), wanted, rtol=0, atol=ATOL)
    check_proposer(ModelEnsemble((wrap(weak),)), wrap(strong), atol=ATOL)


def test_private_caches_without_noise_are_the_model_in_every_row() -> None:
    model = tiny("mixtral")
    rows = proposed(RoE(3, 1e-9, clean_layers=0, cache="private", prefill="noisy"), wrap(model))
    wanted = last(forward(model).logits)[:, None].repeat(3, 1)
    np.testing.assert_allclose(rows, wanted, rtol=0, atol=ATOL)


def test_row_0_of_private_caches_is_the_model_whatever_the_noise() -> None:
    model = tiny("qwen3-moe")
    rows = proposed(RoE(3, 2.0, clean_layers=0, cache="private", prefill="noisy"), wrap(model))
    np.testing.assert_allclose(rows[:, 0], last(forward(model).logits), rtol=0, atol=ATOL)
    assert np.abs(rows[:, 1] - rows[:, 0]).max() > 0.01
