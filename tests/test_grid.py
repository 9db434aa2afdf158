"""Every proposer with every other part: legal pairs keep their promises, the others are refused with the fix."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as tokenizers
from transformers import PreTrainedTokenizerFast

import tokenscale as ts
from tests.models.tiny import tiny
from tests.pairs import CONSTRAINED, PARTS, PROPOSERS, REFUSED
from tokenscale.core import model as models
from tokenscale.models.toy import ToyModel
from tokenscale.testing import check_runs

QUESTIONS = ("Q: 1 + 1?\nA:", "and so")
DEMO_QUESTIONS = (
    "Q: Tom works 15 hours for $78 an hour. How many dollars does Tom have in the end?\nA:",
    "Q: Lucy sells 12 cards at $60 each. She buys 7 cards at $8 each. How many dollars does Lucy have?\nA:",
)
LEGAL = [(proposer, part) for proposer in PROPOSERS for part in PARTS if (proposer, part) not in REFUSED]
# What `make test` runs of the whole suite: parts over the model itself, and what proposers may do to votes.
QUICK = [(proposer, "SelfConsistency") for proposer in ("RoE", "RoE, private caches", "ModelEnsemble")]
QUICK += [("Plain", part) for part in PARTS if part not in ("UniversalSelfConsistency", "BestOfN, judge")]
TWO_MODELS = ("ContrastiveDecoding", "ModelEnsemble")


@pytest.fixture(autouse=True)
def other_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second model that ensembles name."""
    other = ToyModel(seed=1)
    monkeypatch.setattr(models, "_open", lambda reference: other)


@pytest.fixture(scope="module")
def demos() -> tuple[ts.LanguageModel, ts.LanguageModel]:
    return ts.load("demo"), ts.load("demo-noisy")


def pipe_of(proposer: str, part: str) -> ts.Pipeline:
    return ts.Pipeline.parse(f"{PROPOSERS[proposer]} | {PARTS[part]}")


@pytest.mark.parametrize("proposer", PROPOSERS)
def test_every_legal_pair_runs(proposer: str) -> None:
    lm = ToyModel()
    for part in (part for first, part in LEGAL if first == proposer):
        results = pipe_of(proposer, part).run(lm, QUESTIONS, seed=1, max_new_tokens=4)
        for result in results:
            assert result.text in {c.text for c in result.candidates}, part
            assert result.cost.new_tokens >= 1, part
            assert result.cost.rows >= result.cost.new_tokens, part


@pytest.mark.parametrize(("proposer", "part"), REFUSED)
def test_every_other_pair_is_refused_with_the_fix(proposer: str, part: str) -> None:
    says, fix = REFUSED[proposer, part]
    with pytest.raises(ts.PipelineError) as refused:
        pipe_of(proposer, part)
    assert says in refused.value.message
    assert fix in refused.value.hint


@pytest.mark.parametrize(("proposer", "part"), QUICK)
def test_pipelines_keep_their_promises(proposer: str, part: str) -> None:
    check_runs(pipe_of(proposer, part), max_new_tokens=6, other_vocabularies=proposer not in TWO_MODELS)


@pytest.mark.slow
@pytest.mark.parametrize(("proposer", "part"), [pair for pair in LEGAL if pair not in QUICK])
def test_all_pipelines_keep_their_promises(proposer: str, part: str) -> None:
    check_runs(pipe_of(proposer, part), max_new_tokens=6, other_vocabularies=proposer not in TWO_MODELS)


def test_a_tokenizer_without_a_pad_token_serves_every_part() -> None:
    words = {"<end>": 0, **{f"w{i}": i + 1 for i in range(99)}, "?": 100}
    inner = Tokenizer(tokenizers.WordLevel(words, unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", bos_token="<end>", unk_token="?")
    assert tokenizer.pad_token is None
    lm = ts.wrap(tiny("olmoe"), tokenizer)
    for part in (part for part in PARTS if part not in CONSTRAINED and "eward" not in PARTS[part]):
        results = pipe_of("Plain", part).run(lm, ["w1 w2", "w3"], max_new_tokens=5)
        assert all(result.candidates for result in results), part


@pytest.mark.slow
@pytest.mark.parametrize("proposer", PROPOSERS)
def test_every_legal_pair_runs_on_the_demo_model(
    proposer: str, demos: tuple[ts.LanguageModel, ts.LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens do not depend on the batch either, which a transformers model computes in float32."""
    lm, other = demos
    monkeypatch.setattr(models, "_open", lambda reference: other)
    for part in (part for first, part in LEGAL if first == proposer):
        pipe = pipe_of(proposer, part)
        results = pipe.run(lm, DEMO_QUESTIONS, seed=1, max_new_tokens=24)
        [alone] = pipe.run(lm, DEMO_QUESTIONS[:1], seed=1, max_new_tokens=24, batch_size=1)
        assert [c.token_ids for c in alone.candidates] == [c.token_ids for c in results[0].candidates], part
        for result in results:
            assert result.text in {c.text for c in result.candidates}, part
            assert result.cost.rows >= result.cost.new_tokens >= 1, part
