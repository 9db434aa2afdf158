"""The reference of RoE's loss: its rows are the model itself without noise, and what stepping gives with it."""

import pytest
import torch
from transformers import DynamicCache

from tools.demo_model.model import build, install_routers
from tools.demo_text.held_out import Block, plain_log_probs
from tools.demo_text.reference import measure, row_log_probs, row_mask, with_more_experts
from tools.demo_text.temperature import losses_by_temperature

BLOCKS = [Block(0, (1, 5, 6, 9, 40, 7, 7)), Block(1, (1, 8))]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build("olmoe", 64, 0, 1).eval()


@pytest.mark.parametrize("current_kv", ["own", "clean"])
def test_rows_without_noise_are_the_model(model, current_kv):
    expected = plain_log_probs(model, BLOCKS)
    routers = install_routers(model, 0.0, torch.Generator())
    for block, log_probs in zip(BLOCKS, expected, strict=True):
        rows = row_log_probs(model, routers, block, 0.0, 3, current_kv)
        torch.testing.assert_close(rows, torch.tensor(log_probs).expand(3, -1), atol=1e-5, rtol=0)


def test_mask_shows_clean_keys_before_and_one_of_the_position():
    own = row_mask(3, "own")[0, 0] == 0
    assert own.tolist() == [[0, 0, 0, 1, 0, 0], [1, 0, 0, 0, 1, 0], [1, 1, 0, 0, 0, 1]]
    clean = row_mask(3, "clean")[0, 0] == 0
    assert clean.tolist() == [[1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0]]


def test_a_noisy_row_equals_a_step_over_the_clean_past(model):
    # One position of one noisy row, run alone: the clean past in a cache, the same experts forced.
    block, tau, n, place = BLOCKS[0], 3.0, 4, 4
    routers = install_routers(model, 0.0, torch.Generator().manual_seed(5))
    chosen = []
    hooks = [r.register_forward_hook(lambda m, i, out: chosen.append(out[2])) for r in routers]
    rows = row_log_probs(model, routers, block, tau, n, "own")
    for hook in hooks:
        hook.remove()
    noisy = [out.view(n - 1, len(block.ids), -1) for out in chosen[len(routers) :]]
    for router in routers:
        router.scale = 0.0
    ids = torch.tensor([block.ids])
    with torch.no_grad():
        past = DynamicCache(config=model.config)
        model(input_ids=ids[:, :place], cache=past, use_cache=True)
        for router, experts in zip(routers, noisy, strict=True):
            forced = experts[1, place]
            router.forward = lambda hidden, router=router, forced=forced: force(router, hidden, forced)
        logits = model(input_ids=ids[:, place : place + 1], cache=past).logits[0, -1]
    for router in routers:
        del router.forward
    expected = logits.log_softmax(-1)[block.ids[place + 1]]
    torch.testing.assert_close(rows[2, place], expected, atol=1e-5, rtol=0)
    assert (rows[1:] - rows[0]).abs().max() > 1e-4


def force(router, hidden, experts):
    logits = hidden.reshape(-1, hidden.shape[-1]) @ router.weight.T
    return logits, logits.softmax(-1)[:, experts], experts[None]


def test_measure_is_minus_the_log_of_the_mean_probability(model):
    routers = install_routers(model, 0.0, torch.Generator().manual_seed(7))
    found = measure(model, routers, BLOCKS[:1], 2.0, "own", 4)
    again = install_routers(model, 0.0, torch.Generator().manual_seed(7))
    rows = row_log_probs(model, again, BLOCKS[0], 2.0, 4, "own").double().exp()
    assert list(found) == [1, 2, 4]
    for n, losses in found.items():
        assert losses == pytest.approx([-rows[:n].mean(0).log().sum().item()])


def test_one_expert_more_is_a_model_configured_so(model):
    routers = install_routers(model, 1.0, torch.Generator())
    found = with_more_experts(model, routers, BLOCKS)
    torch.manual_seed(0)
    other = build("olmoe", 64, 0, 1).eval()
    for layer in other.model.layers:
        layer.mlp.gate.top_k = 9
    assert found == pytest.approx([-sum(scores) for scores in plain_log_probs(other, BLOCKS)], abs=1e-4)
    assert all(router.top_k == 8 for router in routers)


def test_losses_by_temperature_are_those_of_divided_logits(model):
    install_routers(model, 0.0, torch.Generator())
    found = losses_by_temperature(model, BLOCKS)
    assert found[1.0] == pytest.approx([-sum(scores) for scores in plain_log_probs(model, BLOCKS)], abs=1e-4)
    logits = model(input_ids=torch.tensor([BLOCKS[1].ids])).logits[0, 0].double() / 1.3
    assert found[1.3][1] == pytest.approx((logits.logsumexp(0) - logits[8]).item(), abs=1e-5)
