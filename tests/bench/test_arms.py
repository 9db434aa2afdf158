"""The peers of a RoE step do what they say: the same distribution from the same routes, or the model's own."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.models.tiny import SIZES
from tokenscale.bench import steps
from tokenscale.bench.arms import Forwards, OwnCaches, Replay, Unrelated
from tokenscale.bench.bandwidth import Limits
from tokenscale.bench.part import QUICK, LeftOut
from tokenscale.bench.sampling import endings, generated
from tokenscale.bench.steps import Step, recorded
from tokenscale.bench.subject import Subject, twin
from tokenscale.models.hf import wrap

CALLS = 4


@pytest.mark.parametrize("n", [2, 5])
def test_a_batch_with_own_caches_and_our_routes_gives_our_distribution(tiny: Subject, n: int) -> None:
    """At the first call; later ones differ, since each row then reads a past of its own."""
    prompt = tiny.prompt(20)
    ours, routes = Step(tiny.lm, prompt, n), recorded(tiny.lm, prompt, n, CALLS)
    theirs = OwnCaches(tiny, prompt, n, routes)
    theirs.prepare()
    torch.testing.assert_close(theirs()[None], ours().exp(), rtol=1e-4, atol=1e-7)


def test_recorded_routes_are_those_of_every_step(tiny: Subject) -> None:
    prompt = tiny.prompt(20)
    step, routes = Step(tiny.lm, prompt, 3), recorded(tiny.lm, prompt, 3, CALLS)
    for _ in range(CALLS):
        step()
    assert step.loads == [sum(len(set(layer.flatten().tolist())) for layer in route) for route in routes]


def test_forwards_in_turn_give_the_models_own_distribution_and_move_on_by_one(tiny: Subject) -> None:
    prompt = tiny.prompt(20)
    ours, theirs = Step(tiny.lm, prompt, 1), Forwards(tiny, prompt, 3)
    for _ in range(3):
        torch.testing.assert_close(theirs(), ours().exp(), rtol=1e-4, atol=1e-7)


def test_unrelated_rows_run_our_routes(tiny: Subject) -> None:
    prompt = tiny.prompt(20)
    routes = recorded(tiny.lm, prompt, 4, CALLS)
    guard = Unrelated(tiny, prompt, 4, routes)
    guard.prepare()
    assert guard().shape == (4, 1, tiny.lm.vocab_size)
    guard.check(routes[1])


def test_routes_that_do_not_arrive_are_noticed(tiny: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Replay, "_replaying", lambda self, layer, router: router.module.forward)
    prompt = tiny.prompt(20)
    with pytest.raises(LeftOut, match="do not reach"):
        Unrelated(tiny, prompt, 4, recorded(tiny.lm, prompt, 4, 1))


def test_a_dense_model_has_no_routes_and_no_roe(limits: Limits) -> None:
    model = LlamaForCausalLM(LlamaConfig(**{**SIZES, "num_experts_per_tok": None}, intermediate_size=24)).eval()
    with pytest.raises(LeftOut, match="recorded routes"):
        Replay(model)
    dense = Subject("dense", wrap(model), twin(model), 1, 1)
    with pytest.raises(LeftOut, match="RoE does not run on it: it is a dense model"):
        steps.measure(dense, QUICK, limits)


def test_lengths_of_generate_are_those_of_its_texts(tiny: Subject) -> None:
    ends = endings(tiny.vocabulary, 4)
    subject = tiny.ending_at(ends)
    prompts = [subject.prompt(length, length) for length in (5, 9, 3)]
    seen: list[list[int]] = []
    own = subject.peer.generate

    def noting(ids: torch.Tensor, **options: object) -> torch.Tensor:
        out = own(ids, **options)
        seen.extend(out[:, ids.shape[1] :].tolist())
        return out

    subject.peer.generate = noting
    found = generated(subject, prompts, most=10, seed=3, copies=2)
    wanted = [next((i + 1 for i, token in enumerate(text) if token in ends), len(text)) for text in seen]
    assert found == wanted
    assert len(found) == 6
    assert len(set(found)) > 1


@pytest.mark.parametrize("mean_length", [4, 32])
def test_about_one_token_in_so_many_ends_a_text(mean_length: int) -> None:
    assert len(endings(range(8192), mean_length)) == pytest.approx(8192 / mean_length, rel=0.02)
    assert endings([7], 1e9) == [7]
