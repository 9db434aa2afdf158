"""Beam search in the decode loop, against a search over sets of prefixes."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.core.asks import END, NOISY, PROMPTS, ask
from tokenscale.core.strategy import Choice, Decoder
from tokenscale.models.toy import ToyModel
from tokenscale.token_level.decoders import Sample


def beam_search(lm: ToyModel, prompt: tuple[int, ...], new: int, width: int) -> dict[tuple[int, ...], float]:
    """Brute force: every ended beam of a search over sets of prefixes, with its total log-probability."""
    live, ended = {(): 0.0}, dict[tuple[int, ...], float]()
    for _ in range(new):
        grown = {
            (*ids, token): score + lp
            for ids, score in live.items()
            for token, lp in enumerate(lm.exact_log_probs((*prompt, *ids)))
            if token not in lm.suppressed_ids
        }
        best = sorted(grown, key=lambda ids: -grown[ids])[:width]
        ended |= {ids: grown[ids] for ids in best if ids[-1] == END or len(ids) == new}
        live = {ids: grown[ids] for ids in best if ids not in ended}
    return ended


FLAT = {"spelling": "", "moe_layers": 1, "sharpness": 0.5}
SEARCHED = {
    "beams change places": ToyModel(("a", "b", "1"), **FLAT, suppressed_ids=(END,)),
    "the first to end is often the best": ToyModel(("a", "b", "1"), **FLAT),
    "the first to end is often not the best": ToyModel(("a", "b", "1"), spelling="", moe_layers=3, sharpness=4.0),
}


@pytest.mark.parametrize("width", [1, 2, 3, 100])
@pytest.mark.parametrize("model", SEARCHED.values(), ids=SEARCHED)
def test_beams_equal_brute_force(run: Any, beams: Any, width: int, model: ToyModel) -> None:
    """Wide enough, the search finds the best continuation of all."""
    new = 3 if width == 100 else 6
    done = run([ask(p, new) for p in PROMPTS], beams(width), model=model, batch_size=2)
    for prompt, completion in zip(PROMPTS, done, strict=True):
        [found] = completion.candidates
        ended = beam_search(model, prompt, new, width)
        wanted = max(ended, key=lambda ids: ended[ids])
        assert found.token_ids == wanted
        assert found.log_prob == pytest.approx(ended[wanted], abs=1e-5)
        if width == 100 and not model.suppressed_ids:
            everything = model.continuations(prompt, new)
            assert everything[wanted] == max(everything.values())


@dataclass(frozen=True)
class Force(Decoder):
    """Takes one given token."""

    token: int

    def choose(self, log_probs: Any, scores: Any, uniforms: Any, parts: Any = (0,), endings: int = 1) -> Choice:
        tokens = torch.full((len(log_probs), 1), self.token)
        return Choice(torch.zeros_like(tokens), tokens, torch.ones(len(log_probs)))


def test_beams_share_the_noise_of_their_ask(run: Any, beams: Any) -> None:
    """RoE is one function from prefix to distribution: a beam's steps repeat as asks that continue its prefix."""
    one = ask((1, 2), 3, ("beams",))
    [completion] = run([one], beams(5), NOISY)
    [found] = completion.candidates
    for place, token in enumerate(found.token_ids):
        again = replace(one, prefix_ids=found.token_ids[:place], max_new_tokens=1, decoder=Force(token))
        [repeated] = run([again], None, NOISY)
        assert repeated.candidates[0].log_probs[0] == pytest.approx(found.log_probs[place], abs=1e-6)


def test_beams_and_samples_share_a_batch(run: Any, beams: Any) -> None:
    asks = [
        ask(p, 5, ("mixed", i), decoder=[None, Sample(1.0), beams(3)][i % 3], k=1 + i % 2)
        for i, p in enumerate(PROMPTS)
    ]
    together = run(asks, None, NOISY, batch_size=4)
    for one, completion in zip(asks, together, strict=True):
        assert completion.candidates == run([one], None, NOISY, batch_size=4)[0].candidates


def test_the_experts_of_beams_are_joined(run: Any, beams: Any) -> None:
    """A search wide enough to keep everything runs the experts of all texts of one length."""
    model = SEARCHED["beams change places"]
    [completion] = run([ask((1, 2), 3)], beams(100), model=model)
    for length, found in enumerate(completion.usages[0].lanes[0].experts):
        wanted = np.zeros_like(found)
        for ids in itertools.product((1, 2, 3), repeat=length):
            *before, last = (1, 2, *ids)
            step = model.step(model.prefill([before]), torch.tensor([last]))
            assert step.experts is not None
            wanted |= np.packbits(step.experts[0, 0].numpy(), axis=-1)
        np.testing.assert_array_equal(found, wanted)
