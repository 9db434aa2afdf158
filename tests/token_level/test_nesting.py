"""Every proposer in a vote and in a search: nothing depends on batch or order, and bills are those of what ran."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.beams import Beams
from tests.token_level.sequential import STREAM
from tokenscale.core.cost import popcount
from tokenscale.core.data import Ask
from tokenscale.core.decode import LocalBackend
from tokenscale.core.prompt import Prompt
from tokenscale.core.strategy import TokenProposer
from tokenscale.models.toy import ToyModel
from tokenscale.pipeline import Pipeline
from tokenscale.sequence_level.self_consistency import SelfConsistency
from tokenscale.token_level.adaptive_roe import AdaptiveRoE
from tokenscale.token_level.contrastive_decoding import ContrastiveDecoding
from tokenscale.token_level.decoders import Greedy, Sample
from tokenscale.token_level.dola import DoLa
from tokenscale.token_level.expert_sample import ExpertSample
from tokenscale.token_level.mc_dropout import MCDropout
from tokenscale.token_level.model_ensemble import ModelEnsemble
from tokenscale.token_level.more_experts import MoreExperts
from tokenscale.token_level.plain import Plain
from tokenscale.token_level.prompt_ensemble import PromptEnsemble
from tokenscale.token_level.roe import RoE
from tokenscale.token_level.scmoe import SCMoE

SIZES: dict[str, Any] = {"spelling": "", "width": 5, "context_length": 30}
LM = ToyModel(("a", "b", "1"), moe_layers=3, experts=6, top_k=3, **SIZES)
OTHER = ToyModel(("a", "b", "1"), moe_layers=1, experts=4, seed=3, **SIZES)
PROPOSERS: list[TokenProposer] = [
    Plain(),
    RoE(3, 0.8),
    RoE(3, 0.8, first_token="clean"),
    RoE(3, 0.8, cache="private"),
    RoE(3, 0.8, cache="private", prefill="noisy"),
    AdaptiveRoE(3, 0.8, exact=False, threshold=0.3, audit=0.3),
    ExpertSample(),
    ExpertSample(prefill="clean"),
    SCMoE(),
    SCMoE(cache="private"),
    MoreExperts(4),
    MCDropout(3, 0.2),
    DoLa(),
    ContrastiveDecoding(OTHER),
    PromptEnsemble(("{prompt}", "a{prompt}b")),
    ModelEnsemble((OTHER,)),
]
NAMES = [f"{number} {type(p).__name__}" for number, p in enumerate(PROPOSERS)]
PROMPTS = [(1, 2, 3), (2,), (3, 1, 1, 2), (1, 2, 3)]


@pytest.mark.parametrize("proposer", PROPOSERS, ids=NAMES)
def test_a_vote_does_not_depend_on_batch_and_order(proposer: TokenProposer) -> None:
    pipe = Pipeline(proposer, Sample(1.0), SelfConsistency(2))
    asked = [Prompt(token_ids=ids, key=str(i)) for i, ids in enumerate(PROMPTS)]
    alone = [pipe.run(LM, [prompt], max_new_tokens=4, batch_size=1, trace=True)[0] for prompt in asked]
    together = pipe.run(LM, asked[::-1], max_new_tokens=4, batch_size=3, trace=True)[::-1]
    for one, other in zip(alone, together, strict=True):
        assert [c.token_ids for c in one.candidates] == [c.token_ids for c in other.candidates]
        # An aggregator's sums may round otherwise where another sequence of the batch has more rows.
        for a, b in zip(one.candidates, other.candidates, strict=True):
            np.testing.assert_allclose(a.log_probs, b.log_probs, rtol=0, atol=1e-6)
            assert a.trace is not None
            assert b.trace is not None
            assert a.trace.rows == b.trace.rows
        assert (one.cost, one.routing) == (other.cost, other.routing)


@pytest.mark.parametrize("proposer", PROPOSERS, ids=NAMES)
def test_beams_fork_what_they_continue(proposer: TokenProposer) -> None:
    """The best beam's log-probabilities are those of its tokens fed one after the other."""
    backend = LocalBackend(LM, proposer, proposer.default_aggregator, Beams(3), batch_size=2)
    tickets = [backend.submit(Ask(Prompt(token_ids=ids), STREAM.child(i), 4)) for i, ids in enumerate(PROMPTS)]
    done: dict[int, Any] = {}
    while completions := backend.advance():
        done |= {c.ticket: c.candidates[0] for c in completions}
    for ids, ticket in zip(PROMPTS, tickets, strict=True):
        found = done[ticket]
        proposals, fed, log_probs = proposer.start(LM, [ids], [found.stream]), ids[-1], []
        for token in found.token_ids:
            rows, _ = proposals.propose(torch.tensor([fed]))
            log_probs.append(float(proposer.default_aggregator.aggregate(rows)[0, token]))
            fed = token
        np.testing.assert_allclose(found.log_probs, log_probs, rtol=0, atol=1e-6)


LENGTH, NEW, N = 4, 3, 3


def run_and_watch(proposer: TokenProposer) -> tuple[Any, list[list[Any]]]:
    """A greedy text of three tokens, and what the proposer says it ran, step by step."""
    lm = ToyModel(("a", "b", "1"), moe_layers=3, experts=6, top_k=3, suppressed_ids=(0,), **SIZES)
    [result] = Pipeline(proposer, Greedy()).run(lm, [Prompt(token_ids=(1, 2, 3, 1))], max_new_tokens=NEW)
    proposals = proposer.start(lm, [(1, 2, 3, 1)], [result.winner.stream])
    works = [proposals.propose(torch.tensor([fed]))[1] for fed in (1, *result.winner.token_ids[:-1])]
    return result, [list(step) for step in works]


@pytest.mark.parametrize("prefill", ["clean", "noisy"])
def test_the_bill_of_private_caches_by_hand(prefill: Any) -> None:
    result, works = run_and_watch(RoE(N, 0.8, cache="private", prefill=prefill))
    shape, copies = LM.shape, N if prefill == "noisy" else 1
    row = shape.dense_flops + shape.expert_flops
    per_key = shape.attention[0][0]
    prefills = copies * (3 * row + per_key * (1 + 2 + 3))
    steps = N * sum(row + shape.head_flops + per_key * keys for keys in (4, 5, 6))
    assert result.cost.flops == pytest.approx(prefills + steps, rel=1e-12)
    assert (result.cost.prompt_tokens, result.cost.rows, result.cost.new_tokens) == (copies * LENGTH, N * NEW, NEW)
    assert result.cost.sequential_steps == 1 + NEW
    # Keys and values: the prompt's once where the rows share it, and every row's own of the tokens after it.
    keys = NEW * copies * LENGTH + N * (0 + 1 + 2)
    loads = sum(popcount(np.packbits(np.any([w.experts[0].numpy() for w in step], axis=0))) for step in works)
    decoding = NEW * (shape.dense_bytes + shape.head_bytes) + loads * shape.expert_bytes + keys * shape.kv_bytes
    assert result.winner.cost.bytes == pytest.approx(decoding, rel=1e-12)
    assert result.winner.cost.expert_loads == loads


def test_the_bill_of_a_clean_first_token_by_hand() -> None:
    for cache in ("clean", "private"):
        result, works = run_and_watch(RoE(N, 0.8, first_token="clean", cache=cache))  # type: ignore[arg-type]
        assert result.cost.rows == 1 + N * (NEW - 1)
        ran = [[int(w.rows) for w in step] for step in works]
        assert ran == ([[1], [N], [N]] if cache == "clean" else [[1, 0, 0], [1, 1, 1], [1, 1, 1]])
        assert [sum(int(w.choices) for w in step) for step in works] == [0, N - 1, N - 1]


def test_the_bill_of_a_layer_contrast_by_hand() -> None:
    """DoLa: one row a token, and an lm_head for the row and each of its two candidate layers."""
    result, _ = run_and_watch(DoLa((0, 2)))
    shape = LM.shape
    row, per_key = shape.dense_flops + shape.expert_flops, shape.attention[0][0]
    wanted = 6 * row + per_key * sum(range(1, 7)) + NEW * 3 * shape.head_flops
    assert result.cost.flops == pytest.approx(wanted, rel=1e-12)
    assert result.cost.rows == NEW
