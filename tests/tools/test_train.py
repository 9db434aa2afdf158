"""Training: a resumed run equals an uninterrupted one, and gradients in parts are those of the whole."""

from dataclasses import replace

import pytest
import torch

from tools.demo_model.batches import Stage, pad
from tools.demo_model.documents import Mix
from tools.demo_model.train import RECIPES, Recipe, Run, losses, parts, summary, train

EASY_MIX = Mix(levels=(1, 0, 0), drills=0.3, direct=0.2, detail=0.2, terse=0.5)
RECIPE = Recipe("mixtral", (Stage("one", 3, EASY_MIX), Stage("two", 3, EASY_MIX)), batch=4, warm_up=2)


@pytest.fixture(scope="module")
def tokenizer_folder(small_tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    small_tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("scale", [0.0, 0.3])
@pytest.mark.parametrize("interrupted", [2, 3, 4])
def test_a_resumed_run_equals_an_uninterrupted_one(tokenizer_folder, tmp_path, scale, interrupted):
    whole = Run(RECIPE, 0, scale, tokenizer_folder)
    train(whole, tmp_path / "whole", RECIPE.steps)
    train(Run(RECIPE, 0, scale, tokenizer_folder), tmp_path / "parts", interrupted)
    resumed = Run(RECIPE, 0, scale, tokenizer_folder)
    resumed.load(tmp_path / "parts" / "checkpoint.pt")
    assert resumed.step == interrupted
    train(resumed, tmp_path / "parts", RECIPE.steps)
    assert (resumed.step, resumed.tokens) == (whole.step, whole.tokens)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert torch.equal(whole.noise.get_state(), resumed.noise.get_state())


def test_checkpoints_at_the_ends_of_stages(tokenizer_folder, tmp_path):
    run = Run(RECIPE, 0, 0.0, tokenizer_folder)
    train(run, tmp_path, RECIPE.steps)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.pt", "checkpoint-one.pt", "checkpoint-two.pt"}
    middle = Run(RECIPE, 0, 0.0, tokenizer_folder)
    middle.load(tmp_path / "checkpoint-one.pt")
    assert middle.step == 3
    assert summary(run)["steps"] == 6


def test_only_what_is_still_to_come_may_change(tokenizer_folder, tmp_path):
    train(Run(RECIPE, 0, 0.0, tokenizer_folder), tmp_path, 3)
    one, two = RECIPE.stages
    longer = replace(RECIPE, stages=(one, replace(two, steps=5, mix=replace(EASY_MIX, terse=0.9))))
    resumed = Run(longer, 0, 0.0, tokenizer_folder)
    resumed.load(tmp_path / "checkpoint-one.pt")
    train(resumed, tmp_path / "longer", longer.steps)
    assert resumed.step == 8
    for other in (replace(RECIPE, rate=1.0), replace(RECIPE, stages=(replace(one, steps=4), two))):
        with pytest.raises(ValueError, match=r"the checkpoint's (rate|stage one) is .* train from the start"):
            Run(other, 0, 0.0, tokenizer_folder).load(tmp_path / "checkpoint-one.pt")


def test_a_checkpoint_of_another_seed_or_noise_is_refused(tokenizer_folder, tmp_path):
    train(Run(RECIPE, 0, 0.3, tokenizer_folder), tmp_path, 2)
    for seed, scale, named in ((1, 0.3, "seed is 0"), (0, 0.0, "scale is 0.3")):
        with pytest.raises(ValueError, match=f"the checkpoint's {named}, .* train from the start"):
            Run(RECIPE, seed, scale, tokenizer_folder).load(tmp_path / "checkpoint.pt")


def test_a_run_depends_on_its_seed_and_on_noise(tokenizer_folder, tmp_path):
    weights = []
    for seed, scale in ((0, 0.0), (1, 0.0), (0, 0.3)):
        run = Run(RECIPE, seed, scale, tokenizer_folder)
        train(run, tmp_path / f"{seed}-{scale}", 2)
        weights.append(run.model.model.layers[0].mlp.gate.weight.detach().clone())
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_cross_entropy_in_parts_is_that_of_the_whole(tokenizer_folder, monkeypatch):
    run = Run(RECIPE, 0, 0.0, tokenizer_folder)
    rng = torch.Generator().manual_seed(0)
    documents = [
        (torch.randint(2, 200, (length,), generator=rng).tolist(), torch.rand(length, generator=rng).tolist())
        for length in (12, 30, 7, 25, 30)
    ]
    batch = pad(documents, run.tokenizer.pad_token_id)
    gradients = []
    for size in (10_000, 60):
        monkeypatch.setattr("tools.demo_model.train.PART", size)
        pieces = parts(batch)
        run.model.zero_grad()
        for part in pieces:
            share = part.weights[:, 1:].sum() / batch.weights[:, 1:].sum()
            (share * losses(run.model, run.routers, part)[0]).backward()
        gradients.append([p.grad.clone() for p in run.model.parameters()])
    assert len(pieces) == 3
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_loss_is_the_weighted_cross_entropy(tokenizer_folder):
    run = Run(RECIPE, 0, 0.0, tokenizer_folder)
    batch = pad([([5, 6, 7, 8], [1.0, 0.1, 0.0, 1.0]), ([9, 5], [0.1, 0.5])], run.tokenizer.pad_token_id)
    expected = 0.0
    for tokens, weighted in (([5, 6, 7, 8], {1: 0.1, 3: 1.0}), ([9, 5], {1: 0.5})):
        log_probs = run.model(input_ids=torch.tensor([tokens])).logits[0].double().log_softmax(-1)
        expected -= sum(weight * log_probs[i - 1, tokens[i]].item() for i, weight in weighted.items())
    assert losses(run.model, run.routers, batch)[0].item() == pytest.approx(expected / 1.6, rel=1e-5)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_learning_rate_warms_up_holds_and_decays(recipe):
    factors = [recipe.factor(step) for step in range(recipe.steps)]
    decay = recipe.steps - recipe.stages[-1].steps
    assert factors[0] == pytest.approx(1 / recipe.warm_up)
    assert set(factors[recipe.warm_up : decay + 1]) == {1.0}
    assert factors[decay:] == sorted(factors[decay:], reverse=True)
    assert factors[-1] == 0.02
    assert max(factors) == 1.0


def test_a_step_lowers_the_loss_on_its_own_batch(tokenizer_folder):
    # The optimizers hold every parameter once and push in the right direction.
    run = Run(replace(RECIPE, warm_up=1, rate=1e-3), 0, 0.0, tokenizer_folder)
    held = [p for optimizer in run.optimizers for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in run.model.parameters()}
    assert len(held) == len(list(run.model.parameters()))
    batch = pad([([5, 6, 7, 8, 9, 10], [1.0] * 6)] * 2, run.tokenizer.pad_token_id)
    assert run.update(batch) > run.update(batch)
