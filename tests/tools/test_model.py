"""Training-time router and experts against transformers' own, forward and backward."""

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM, OlmoeConfig, OlmoeForCausalLM
from transformers.models.olmoe.modeling_olmoe import OlmoeExperts, OlmoeTopKRouter

from tools.demo_model.experts import GatedExperts, install_experts, rows_of_experts
from tools.demo_model.model import TrainingRouter, build, install_routers, parameter_counts

SMALL = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


def small_olmoe(renormalise: bool) -> OlmoeForCausalLM:
    config = OlmoeConfig(**SMALL, num_experts=6, num_experts_per_tok=3, norm_topk_prob=renormalise, pad_token_id=0)
    return OlmoeForCausalLM(config)


def small_mixtral() -> MixtralForCausalLM:
    sizes = {"num_key_value_heads": 1, "num_local_experts": 6, "num_experts_per_tok": 2, "pad_token_id": 0}
    return MixtralForCausalLM(MixtralConfig(**SMALL, **sizes))


@pytest.fixture
def router():
    torch.manual_seed(0)
    config = OlmoeConfig(**SMALL, num_experts=6, num_experts_per_tok=3, norm_topk_prob=False)
    plain = OlmoeTopKRouter(config)
    torch.nn.init.normal_(plain.weight)
    return plain


@pytest.mark.parametrize("renormalise", [False, True])
def test_router_without_noise_is_transformers_router(router, renormalise):
    router.norm_topk_prob = renormalise
    ours = TrainingRouter(router, 3, renormalise, 0.0, torch.Generator())
    hidden = torch.randn(2, 40, 16)
    for mine, theirs in zip(ours(hidden), router(hidden), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_balance_is_switch_transformers_loss(router):
    # Written out from Fedus et al. 2021, equation 4, for top-k: load counts each of the k choices.
    ours = TrainingRouter(router, 3, False, 0.0, torch.Generator())
    logits, _, indices = ours(torch.randn(40, 16))
    load = [(indices == expert).sum().item() / 40 for expert in range(6)]
    probability = logits.softmax(-1).mean(0).tolist()
    assert ours.balance.item() == pytest.approx(6 * sum(a * b for a, b in zip(load, probability, strict=True)))


def test_noise_changes_the_selection_and_never_the_gates(router):
    ours = TrainingRouter(router, 3, False, 1.0, torch.Generator().manual_seed(0))
    hidden = torch.randn(200, 16)
    logits, gates, indices = ours(hidden)
    torch.testing.assert_close(gates, logits.softmax(-1).gather(-1, indices))
    assert (indices.sort(-1).values != router(hidden)[2].sort(-1).values).any()


def test_noise_is_gumbel(router):
    # Top-1 of logits + Gumbel is a draw from their softmax. 20,000 fixed draws; a share strays by
    # 0.02 (over five standard deviations) once in a million seeds.
    ours = TrainingRouter(router, 1, False, 1.0, torch.Generator().manual_seed(0))
    hidden = 0.3 * torch.randn(1, 16).expand(20_000, 16)  # far from one-sided
    logits, _, indices = ours(hidden)
    shares = torch.bincount(indices[:, 0], minlength=6) / 20_000
    assert (shares - logits[0].softmax(-1)).abs().max() < 0.02


def test_rows_of_experts_is_a_partition():
    indices = torch.tensor([[0, 2], [2, 3], [0, 3]])
    rows = {expert: sorted(places.tolist()) for expert, places in rows_of_experts(indices, 5)}
    assert rows == {0: [0, 4], 2: [1, 2], 3: [3, 5]}


def test_experts_equal_transformers_forward_and_gradients():
    torch.manual_seed(0)
    config = OlmoeConfig(**SMALL, num_experts=6, num_experts_per_tok=3)
    experts = OlmoeExperts(config).double()
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    inputs = [torch.randn(30, 16, dtype=torch.double), torch.rand(30, 3, dtype=torch.double)]
    indices = torch.rand(30, 5).argsort(-1)[:, :3]  # expert 5 gets no token
    outcome = []
    for apply in (
        lambda x, gates: experts(x, indices, gates),
        lambda x, gates: GatedExperts.apply(x, indices, gates, experts.gate_up_proj, experts.down_proj),
    ):
        x, gates = (value.clone().requires_grad_() for value in inputs)
        out = apply(x, gates)
        loss = (out * torch.arange(out.numel(), dtype=torch.double).view_as(out).sin()).sum()
        outcome.append([out, *torch.autograd.grad(loss, [x, gates, *experts.parameters()])])
    for theirs, ours in zip(*outcome, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("make", [lambda: small_olmoe(False), lambda: small_olmoe(True), small_mixtral])
def test_a_model_in_training_computes_what_transformers_computes(make):
    torch.manual_seed(0)
    model = make()
    tokens = torch.randint(1, 50, (3, 20))
    plain = model(input_ids=tokens, labels=tokens)
    plain.loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    names = set(model.state_dict())
    install_routers(model, 0.0, torch.Generator())
    install_experts(model)
    assert set(model.state_dict()) == names
    ours = model(input_ids=tokens, labels=tokens)
    ours.loss.backward()
    torch.testing.assert_close(ours.logits, plain.logits)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], msg=name)


def test_sizes_of_the_models():
    olmoe, mixtral = build("olmoe", 622, 0, 1), build("mixtral", 622, 0, 1)
    total, active = parameter_counts(olmoe)
    # 4 layers: 64 experts of 3 * 128 * 32, of which 8 are active.
    assert total - active == 4 * (64 - 8) * 3 * 128 * 32
    assert total == olmoe.num_parameters()
    assert total * 2 < 9e6  # bytes in float16; two of them stay under 20 MB
    assert mixtral.num_parameters() * 2 < 1e6
