"""MoreExperts and SCMoE: experts by rank, against the sequential reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.token_level.sequential import FOLLOW, LM, PROMPT, STREAM, assert_same, plain_rows, proposed
from tokenscale.core.errors import ArgumentError, CapabilityError
from tokenscale.models.toy import ToyModel
from tokenscale.testing import check_proposer
from tokenscale.token_level.aggregators import ContrastRows
from tokenscale.token_level.more_experts import MoreExperts
from tokenscale.token_level.plain import Plain
from tokenscale.token_level.scmoe import SCMoE

EMPTY = np.zeros((0, LM.layers, LM.hidden_size))
K = LM.shape.top_k


class Ranked:
    """The experts of the ranks from first to last, weighed as the model weighs its own."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last

    def choose(self, scores: np.ndarray, level: int, top_k: int) -> tuple[Any, np.ndarray]:
        ranked = sorted(range(len(scores)), key=lambda e: -scores[e])
        return np.array(ranked[self.first - 1 : self.last]), scores


def ranked_rows(first: int, last: int) -> list[np.ndarray]:
    return plain_rows(lambda past, token: LM._forward(past, token, Ranked(first, last)))  # type: ignore[arg-type]


@pytest.mark.parametrize("k", [1, 2, 3, 5, 7])
def test_more_experts_equals_the_sequential_reference(k: int) -> None:
    found = proposed(MoreExperts(k))
    assert_same(found, ranked_rows(1, k))
    plain = proposed(Plain())
    assert all((a == b).all() for a, b in zip(found, plain, strict=True)) == (k == K)


def weak_over_the_strong_cache(strong: tuple[int, int], weak: tuple[int, int]) -> list[np.ndarray]:
    """Rows of the clean cache: the weak row sees the strong one's past and its own key of the current token."""
    past, found = EMPTY, []
    for position, token in enumerate((*PROMPT, *FOLLOW)):
        both = [LM._forward(past, token, Ranked(*ranks)) for ranks in (strong, weak)]  # type: ignore[arg-type]
        past = np.concatenate([past, both[0].keys[None]])
        if position >= len(PROMPT) - 1:
            found.append(np.array([LM._logits(one.hidden[-1]) for one in both]))
    return found


@pytest.mark.parametrize(
    ("options", "strong", "weak"),
    [({}, (1, K), (2, 2)), ({"strong": 5}, (1, 5), (2, 2)), ({"weak": 4}, (1, K), (4, 4))],
)
def test_the_clean_form_of_scmoe_equals_the_sequential_reference(options: Any, strong: Any, weak: Any) -> None:
    assert_same(proposed(SCMoE(**options)), weak_over_the_strong_cache(strong, weak))


@pytest.mark.parametrize("strong", ["top_k", 5])
def test_the_papers_form_of_scmoe_has_a_cache_per_row(strong: Any) -> None:
    found = proposed(SCMoE(strong, cache="private"))
    rows = (ranked_rows(1, K if strong == "top_k" else strong), ranked_rows(2, 2))
    assert_same(found, [np.concatenate(pair) for pair in zip(*rows, strict=True)])
    clean = proposed(SCMoE(strong))
    assert all((a[0] == b[0]).all() for a, b in zip(found, clean, strict=True))
    assert not (found[-1][1] == clean[-1][1]).all()


def test_what_scmoe_runs_is_billed() -> None:
    """Strong rows run top-k experts a layer, weak rows one; the private form has a cache and a prefill for each."""
    layers = LM.shape.moe_layers
    for proposer, wanted in (
        (SCMoE(), [(2, 2, layers * (K + 1))]),
        (SCMoE(5), [(2, 2, layers * 6)]),
        (SCMoE(cache="private"), [(1, 1, layers * K), (1, 1, layers)]),
        (MoreExperts(5), [(1, 1, layers * 5)]),
    ):
        proposals = proposer.start(LM, [PROMPT], [STREAM])
        _, works = proposals.propose(torch.tensor([1]))
        assert [(int(w.rows), int(w.heads), int(w.runs)) for w in works] == wanted
        [caches] = proposals.cached
        per_token = [runs // rows for rows, _, runs in wanted] if len(wanted) == 2 else [layers * K]
        if proposer in (SCMoE(5), MoreExperts(5)):
            per_token = [layers * 5]
        assert [c.prefill.runs for c in caches] == [3 * runs for runs in per_token]
        assert all(c.prompt == PROMPT for c in caches)
        assert len({c.content for c in caches}) == len(caches)


@pytest.mark.parametrize("proposer", [MoreExperts(5), SCMoE(), SCMoE(5, 3), SCMoE(cache="private")], ids=repr)
def test_it_conforms(proposer: Any) -> None:
    check_proposer(proposer, LM)


def test_scmoe_contrasts_its_rows() -> None:
    assert SCMoE().default_aggregator == ContrastRows(beta=0.5, alpha=0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MoreExperts(0), r"MoreExperts\(k=0\): k must be at least 1"),
        (lambda: SCMoE("top"), r"SCMoE\(strong='top'\): strong must be 'top_k' or a number of experts\n  fix: write"),
        (lambda: SCMoE(0), r"SCMoE\(strong=0\): strong must be at least 1"),
        (lambda: SCMoE(None), r"SCMoE\(strong=None\): strong must be 'top_k'"),
        (lambda: SCMoE(weak=0), "weak must be at least 1"),
        (lambda: SCMoE(cache="own"), "cache must be 'clean' or 'private'"),
        (lambda: MoreExperts(8).check(LM), r"k=8\): the MoE layers of toy have 7 experts\n  fix: write k=7, or less"),
        (lambda: SCMoE(8).check(LM), r"strong=8\): the MoE layers of toy have 7 experts"),
        (lambda: SCMoE(weak=8).check(LM), r"weak=8\): the MoE layers of toy have 7 experts"),
    ],
)
def test_bad_parameters_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make()


@pytest.mark.parametrize("proposer", [MoreExperts(2), SCMoE()], ids=repr)
def test_a_dense_model_is_refused_by_name(proposer: Any) -> None:
    with pytest.raises(CapabilityError, match="dense toy does not allow: it is a dense model") as error:
        proposer.start(ToyModel(moe_layers=0), [(1,)], [STREAM])
    assert "MCDropout(n=4)" in error.value.hint
