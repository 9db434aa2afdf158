"""Many positions in one forward: the numbers are those of decoding step by step, and the bill is checked by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import tokenscale as ts
from tests.models.tiny import tiny
from tokenscale.core.score import given_texts
from tokenscale.core.stepped import stepped
from tokenscale.models import scoring

FIVE = ["olmoe", "mixtral", "mixtral-sliding", "qwen2-moe", "qwen3-moe"]
ROE = ts.RoE(n=4, tau=0.8, clean_layers=0)
random = torch.Generator().manual_seed(0)
TEXTS = [tuple(torch.randint(2, 101, (length,), generator=random).tolist()) for length in (12, 5, 2, 19)]
PROMPTS = [(7, 8, 9, 10, 11), (4,), (7, 8, 9, 10, 11), (50, 60)]


@pytest.fixture
def chunk_rows(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the most rows of a forward."""
    return lambda rows: monkeypatch.setattr(scoring, "CHUNK_ROWS", rows)


def in_steps(lm: ts.LanguageModel, proposer: ts.TokenProposer, aggregator: ts.Aggregator, prompts: Any) -> Any:
    with torch.no_grad():
        return stepped(lm, given_texts(lm, TEXTS, prompts), proposer, aggregator, 3)


def assert_equal_to_stepping(
    lm: ts.LanguageModel, proposer: ts.TokenProposer, aggregator: ts.Aggregator | None = None, prompts: Any = None
) -> None:
    how = aggregator or proposer.default_aggregator
    scores = lm.score(TEXTS, proposer, how, prompts=prompts)
    for score, wanted in zip(scores, in_steps(lm, proposer, how, prompts), strict=True):
        np.testing.assert_allclose(score.log_probs, wanted.log_probs, rtol=0, atol=1e-4)
        np.testing.assert_allclose(score.clean_log_probs, wanted.clean_log_probs, rtol=0, atol=1e-4)
        assert score.fallbacks == wanted.fallbacks
        assert score.cost.flops == pytest.approx(wanted.cost.flops, rel=1e-12)
        assert score.cost.rows == wanted.cost.rows
        assert score.cost.new_tokens == wanted.cost.new_tokens
        assert score.cost.prompt_tokens == wanted.cost.prompt_tokens
        assert score.cost.expert_loads <= wanted.cost.expert_loads
        assert score.cost.sequential_steps == 1


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FIVE)
def test_what_was_decoded_scores_what_decoding_said(family: str, attention: str) -> None:
    lm = ts.wrap(tiny(family, attention))
    asked = [ts.Prompt(token_ids=p, key=str(i)) for i, p in enumerate(PROMPTS)]
    results = ts.Pipeline(ROE, ts.Sample(1.0)).run(lm, asked, seed=5, max_new_tokens=14)
    scores = lm.score([r.winner.token_ids for r in results], ROE, prompts=asked, seed=5)
    for score, result in zip(scores, results, strict=True):
        np.testing.assert_allclose(score.log_probs, result.winner.log_probs, rtol=0, atol=1e-4)
    assert max(len(s.log_probs) for s in scores) > 6


@pytest.mark.parametrize("prompts", [None, PROMPTS], ids=["no prompts", "prompts"])
@pytest.mark.parametrize("family", ["olmoe", "mixtral-sliding"])
@pytest.mark.parametrize(
    "proposer",
    [
        ts.Plain(),
        ROE,
        ts.RoE(n=1),
        ts.RoE(n=3, tau=(0.5, 0.0, 2.0), clean_layers=0, current_kv="clean", first_token="clean"),
        ts.RoE(n=3, tau=0.8, weights="perturbed", noise="antithetic"),
        ts.RoE(n=2, tau=0.8, noise="uniform-experts", keep_head=1, candidate_pool=6),
        ts.RoE(n=2, tau=0.5, noise="gaussian", noise_on="scores"),
        ts.MCDropout(n=3),
        ts.SCMoE(),
        ts.SCMoE(weak=4),
    ],
    ids=repr,
)
def test_rows_of_every_kind_equal_stepping(proposer: ts.TokenProposer, family: str, prompts: Any) -> None:
    assert_equal_to_stepping(ts.wrap(tiny(family)), proposer, prompts=prompts)


@pytest.mark.parametrize(
    "aggregator",
    [ts.MeanLogit(), ts.MedianProbability(), ts.TokenVote(), ts.CleanAnchored(0.7), ts.MinProbability()],
    ids=repr,
)
def test_aggregators_that_fold_or_do_not(aggregator: ts.Aggregator) -> None:
    assert_equal_to_stepping(ts.wrap(tiny("olmoe")), ROE, aggregator)


@pytest.mark.parametrize("rows", [4, 9, 12, 40])
@pytest.mark.parametrize("family", ["olmoe", "mixtral-sliding"])
def test_chunks_do_not_matter(family: str, rows: int, chunk_rows: Any) -> None:
    lm = ts.wrap(tiny(family))
    chunk_rows(10_000)
    whole = lm.score(TEXTS, ROE, prompts=PROMPTS)
    chunk_rows(rows)
    cut = lm.score(TEXTS, ROE, prompts=PROMPTS)
    for one, other in zip(whole, cut, strict=True):
        np.testing.assert_allclose(one.log_probs, other.log_probs, rtol=0, atol=1e-4)
        assert one.cost == other.cost


def test_memory_bounds_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = ts.wrap(tiny("olmoe"))
    seen = []
    run = scoring.Forcing.run
    monkeypatch.setattr(
        scoring.Forcing, "run", lambda self, chunk, *rest: seen.append(chunk) or run(self, chunk, *rest)
    )
    lm.score(TEXTS, ROE)
    assert [len(chunk.texts) for chunk in seen] == [3, 1]
    assert all(len(c.texts) * c.width * 4 <= scoring.CHUNK_ROWS for c in seen)
    lm.vocab_size = 20_000  # as if its logits were that wide
    seen.clear()
    lm.score(TEXTS, ROE, max_memory_mb=4)
    assert {len(c.texts) * c.width for c in seen} <= set(range(1, 4))
    with pytest.raises(
        ts.ArgumentError, match=r"(?s)max_memory_mb=1\): 4 rows of one token take .*write max_memory_mb=2"
    ):
        lm.score(TEXTS, ROE, max_memory_mb=1)


def test_the_clean_row_is_transformers_own_forward() -> None:
    for family in FIVE:
        model = tiny(family)
        for score in ts.wrap(model).score(TEXTS, ROE):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([score.token_ids])).logits[0, :-1]
            wanted = logits.log_softmax(-1).gather(1, torch.tensor(score.token_ids[1:])[:, None])[:, 0]
            np.testing.assert_allclose(score.clean_log_probs, wanted, rtol=0, atol=1e-4)
            assert score.log_probs != pytest.approx(score.clean_log_probs, abs=1e-2)


def test_a_bill_by_hand() -> None:
    """OLMoE of hidden 32, 3 layers, 8 experts of inner size 16, top 3, vocabulary 101; prompt 5, text 4, n = 3."""
    lm = ts.wrap(tiny("olmoe"))
    [score] = lm.score([(3, 4, 5, 6)], ts.RoE(n=3, tau=50.0, clean_layers=0), prompts=[(7, 8, 9, 10, 11)])
    rows, prefilled = 4 * 3, 4
    projections = 2 * (32 * 32 + 2 * 32 * 16 + 32 * 32)  # q, k and v of two heads of four, o
    dense = 3 * (projections + 2 * 32 * 8)
    experts = 3 * 3 * 2 * (3 * 32 * 16)
    keys = sum(range(1, 5)) + 3 * (5 + 6 + 7 + 8)
    attention = 3 * keys * 4 * 32
    head = rows * 2 * 32 * 101
    assert score.cost.flops == (rows + prefilled) * (dense + experts) + attention + head
    assert (score.cost.prompt_tokens, score.cost.new_tokens, score.cost.rows) == (5, 4, rows)
    assert score.cost.sequential_steps == 1
    assert score.cost.expert_loads <= 3 * 8
    assert score.cost.expert_loads > 3 * 6  # 16 rows of random experts: all but few of eight in three layers
    assert score.cost.bytes == lm.shape.dense_bytes + score.cost.expert_loads * lm.shape.expert_bytes


def test_rows_with_other_caches_are_stepped() -> None:
    lm = ts.wrap(tiny("olmoe"))
    caches = (ts.RoE(n=2, tau=0.8, cache="private"), ts.DoLa(), ts.SCMoE(cache="private"), ts.SCMoE(strong=3))
    for proposer in caches:
        given = given_texts(lm, TEXTS)
        assert lm.forced(given, proposer, proposer.default_aggregator, 2**30) is None
        scores = lm.score(TEXTS, proposer)
        assert [s.cost.sequential_steps for s in scores] == [len(t) - 1 for t in TEXTS]


def test_a_model_without_query_rows_is_stepped(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = ts.wrap(tiny("olmoe"))
    whole = lm.score(TEXTS, ROE)
    monkeypatch.setattr(lm, "masked", None)
    assert lm.forced([], ROE, ts.MeanProbability(), 2**30) is None
    assert whole[0].cost.sequential_steps == 1


def test_the_model_is_as_it_was_after_an_error() -> None:
    model = tiny("olmoe")
    lm = ts.wrap(model)
    before = lm.score(TEXTS)
    with torch.no_grad():
        kept = model.lm_head.weight[5].clone()
        model.lm_head.weight[5] = float("nan")
        with pytest.raises(ts.ModelError, match="NaN"):
            lm.score(TEXTS, ROE)
        model.lm_head.weight[5] = kept
    assert lm.score(TEXTS) == before


def test_dense_models_are_scored_in_one_forward_too() -> None:
    assert_equal_to_stepping(ts.wrap(tiny("llama")), ts.Plain(), prompts=PROMPTS)
