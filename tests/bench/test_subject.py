"""The models of the benchmark: random ones, twins over the same weights, prompts."""

from __future__ import annotations

import pytest
import torch
from transformers import OlmoeConfig

from tokenscale.bench import random_models
from tokenscale.bench.random_models import SHAPES, filled, plain, random_model
from tokenscale.bench.subject import Subject, twin
from tokenscale.core.errors import ArgumentError
from tokenscale.core.prompt import Prompt

OPTIONS = {"attn_implementation": "sdpa", "experts_implementation": "grouped_mm", "dtype": torch.bfloat16}


def test_a_twin_shares_weights_and_nothing_else(tiny: Subject) -> None:
    other = twin(tiny.lm.model)
    ours, theirs = dict(tiny.lm.model.named_parameters()), dict(other.named_parameters())
    assert {name: p.data_ptr() for name, p in ours.items()} == {name: p.data_ptr() for name, p in theirs.items()}
    other.generation_config.eos_token_id = 77
    other.model.layers[0].mlp.gate.forward = None
    assert tiny.lm.model.generation_config.eos_token_id == 1
    assert "forward" not in vars(tiny.lm.model.model.layers[0].mlp.gate)


def test_other_ends_leave_the_subject_as_it_was(tiny: Subject) -> None:
    endless, ending = tiny.ending_at(None), tiny.ending_at([5, 9])
    assert (tiny.lm.eos_ids, endless.lm.eos_ids, ending.lm.eos_ids) == ({1}, set(), {5, 9})
    assert ending.peer.generation_config.eos_token_id == [5, 9]
    assert not {5, 9} & set(ending.vocabulary)


def test_prompts_differ_by_number_and_repeat(tiny: Subject) -> None:
    assert tiny.prompt(30) == tiny.prompt(30)
    assert tiny.prompt(30) != tiny.prompt(30, number=1)
    assert not {0, 1} & set(tiny.prompt(500))  # padding and end


def test_a_model_filled_layer_by_layer_is_that_of_its_configuration() -> None:
    config = OlmoeConfig(**SHAPES["random-olmoe-tiny"], num_experts=64, num_experts_per_tok=8, pad_token_id=0)
    usual, other = plain(config, OPTIONS).eval(), filled(config, OPTIONS, tile=4099).eval()
    assert {n: (p.shape, p.dtype) for n, p in usual.named_parameters()} == {
        n: (p.shape, p.dtype) for n, p in other.named_parameters()
    }
    assert not any(tensor.is_meta for tensor in [*other.parameters(), *other.buffers()])
    matrices = [p.float() for p in other.parameters() if p.ndim > 1]
    assert all(0.015 < float(p.std()) < 0.025 for p in matrices)
    assert not torch.equal(other.model.layers[0].mlp.gate.weight, other.model.layers[1].mlp.gate.weight)
    # Rotary frequencies are no parameters: a forward with the usual weights shows that they are right.
    other.load_state_dict(usual.state_dict())
    ids = torch.arange(2, 30)[None]
    with torch.no_grad():
        torch.testing.assert_close(other(input_ids=ids).logits, usual(input_ids=ids).logits)


def test_the_large_model_takes_that_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_models, "filled", lambda config, options: plain(config, options))
    monkeypatch.setattr(random_models, "SHAPES", {**SHAPES, "random-olmoe-1b-7b": SHAPES["random-olmoe-tiny"]})
    assert random_model("random-olmoe-1b-7b", torch.bfloat16).dtype == torch.bfloat16


def test_a_random_model_can_be_read(tiny: Subject) -> None:
    assert tiny.lm.encode(Prompt(text="7 99 3")) == (7, 99, 3)
    assert tiny.lm.decode([7, 99, 3]) == "7 99 3"


def test_a_type_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ArgumentError, match="float31"):
        Subject.open("random-olmoe-tiny", "float31")
