"""ExpertSample against the sequential reference: one row whose experts are drawn anew at every token."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from tests.token_level.sequential import FOLLOW, LM, PROMPT, STREAM, Choice, assert_same, noise, proposed
from tokenscale.core.data import RoutingStats
from tokenscale.core.errors import ArgumentError, CapabilityError
from tokenscale.models.toy import ToyModel
from tokenscale.testing import check_proposer
from tokenscale.token_level.expert_sample import ExpertSample
from tokenscale.token_level.plain import Plain
from tokenscale.token_level.roe import RoE


def sampled_rows(sample: ExpertSample, head: int, pool: int) -> list[np.ndarray]:
    # The rule of one noisy sample of RoE without clean layers, with the numbers of a first noisy row.
    rule = RoE(2, sample.tau, 0, keep_head=head, candidate_pool=pool)
    past, found = np.zeros((0, LM.layers, LM.hidden_size)), []
    for position, token in enumerate((*PROMPT, *FOLLOW)):
        clean = sample.prefill == "clean" and position < len(PROMPT) - 1
        one = LM._forward(past, token, None if clean else Choice(rule, noise(rule, position, 1)))  # type: ignore[arg-type]
        past = np.concatenate([past, one.keys[None]])
        if position >= len(PROMPT) - 1:
            found.append(LM._logits(one.hidden[-1])[None])
    return found


@pytest.mark.parametrize(
    ("sample", "head", "pool"),
    [
        (ExpertSample(), 2, 12),  # k = 3: floor(3 / 2) + 1, and 4 k
        (ExpertSample(prefill="clean"), 2, 12),
        (ExpertSample(0.5, keep_head=1, candidate_pool=4), 1, 4),
        (ExpertSample(2.0, keep_head=0, candidate_pool=5, prefill="clean"), 0, 5),
    ],
    ids=repr,
)
def test_it_equals_the_sequential_reference(sample: ExpertSample, head: int, pool: int) -> None:
    found = proposed(sample)
    assert_same(found, sampled_rows(sample, head, pool))
    assert not all((a == b).all() for a, b in zip(found, proposed(Plain()), strict=True))


@pytest.mark.parametrize("sample", [ExpertSample(), ExpertSample(prefill="clean"), ExpertSample(0.0)], ids=repr)
def test_it_conforms(sample: ExpertSample) -> None:
    check_proposer(sample, LM)


def test_heads_always_run_and_nothing_beyond_the_pool_does() -> None:
    """In the first MoE layer, where all samples have the clean row's scores."""
    plain = LM.step(LM.prefill([PROMPT[:-1]]), torch.tensor([PROMPT[-1]]))
    scores = {}
    LM._forward(LM.prefill([PROMPT[:-1]]).sequences[0].past, PROMPT[-1], Spy(scores))  # type: ignore[arg-type]
    ranked = sorted(range(LM.shape.experts), key=lambda e: -scores[0][e])
    seen = np.zeros(LM.shape.experts)
    for sample in range(200):
        proposals = ExpertSample(5.0, keep_head=1, candidate_pool=5, prefill="clean").start(
            LM, [PROMPT], [STREAM.child(sample)]
        )
        _, [work] = proposals.propose(torch.tensor([PROMPT[-1]]))
        seen += work.experts[0, 0].numpy()
    assert seen[ranked[0]] == 200
    assert (seen[ranked[1:5]] > 50).all()
    assert (seen[ranked[5:]] == 0).all()
    assert plain.experts is not None
    assert plain.experts[0, 0, 0].nonzero().flatten().tolist() == sorted(ranked[:3])


class Spy:
    """The model's own choice, its scores noted."""

    def __init__(self, scores: dict[int, np.ndarray]) -> None:
        self.scores = scores

    def choose(self, scores: np.ndarray, level: int, top_k: int) -> tuple[Any, np.ndarray]:
        self.scores[level] = scores
        return np.argsort(-scores)[:top_k], scores


def test_samples_share_a_clean_prefill_and_nothing_of_a_noisy_one() -> None:
    streams = [STREAM.child(0), STREAM.child(1)]
    for prefill, shared in (("clean", 1), ("noisy", 2)):
        proposals = ExpertSample(prefill=prefill).start(LM, [PROMPT, PROMPT], streams)  # type: ignore[arg-type]
        assert len({caches[0].content for caches in proposals.cached}) == shared


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ExpertSample(-1), r"ExpertSample\(tau=-1\): tau must not be negative\n  fix: write tau=1.0"),
        (lambda: ExpertSample(math.nan), "tau must be a finite number"),
        (lambda: ExpertSample(keep_head=-1), "keep_head must be at least 0"),
        (lambda: ExpertSample(candidate_pool=0), "candidate_pool must be at least 1"),
        (lambda: ExpertSample(prefill="own"), "prefill must be 'noisy' or 'clean'"),
        (lambda: ExpertSample(keep_head=3).check(LM), "keeps 3 experts, and toy runs 3: none is left to draw"),
        (lambda: ExpertSample(candidate_pool=3).check(LM), "toy runs 3 experts, so none is left out"),
        (
            lambda: ExpertSample().check(ToyModel(top_k=2)),
            "keeps 2 experts, and toy runs 2.*\n  fix: write keep_head=1",
        ),
    ],
)
def test_bad_parameters_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make()


def test_a_dense_model_is_refused_by_name() -> None:
    with pytest.raises(CapabilityError, match="ExpertSample changes what routers choose, which dense toy does not"):
        ExpertSample().start(ToyModel(moe_layers=0), [(1,)], [STREAM])


def test_a_note_tells_of_noise_without_effect() -> None:
    [note] = ExpertSample(0.01).notes(RoutingStats(choices=600))
    assert "changed none of 600 router choices although tau=0.01" in note
    assert ExpertSample(0.01).notes(RoutingStats(choices=600, changed=1)) == ()
    assert ExpertSample(0.0).notes(RoutingStats(choices=600)) == ()
