"""Every proposer with every other part: legal pairs keep their promises, the others are refused with the fix."""

from __future__ import annotations

import pytest

import tokenscale as ts
from tests.pairs import PARTS, PROPOSERS, REFUSED
from tokenscale.core import model as models
from tokenscale.models.toy import ToyModel
from tokenscale.testing import check_runs

QUESTIONS = ("Q: 1 + 1?\nA:", "and so")
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
    check_runs(pipe_of(proposer, part), other_vocabularies=proposer not in TWO_MODELS)
