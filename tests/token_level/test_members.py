"""ContrastiveDecoding and ModelEnsemble: second models, their vocabularies, their contexts and their bills."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax

from tests.token_level.sequential import FOLLOW, LM, PROMPT, STREAM, assert_same, proposed
from tokenscale.core import model
from tokenscale.core.errors import ArgumentError, ModelError, PipelineError, PromptError
from tokenscale.models.toy import ToyModel
from tokenscale.pipeline import Pipeline
from tokenscale.testing import check_proposer
from tokenscale.token_level.aggregators import ContrastRows, MeanProbability
from tokenscale.token_level.contrastive_decoding import ContrastiveDecoding
from tokenscale.token_level.model_ensemble import ModelEnsemble

SMALL = ToyModel(("a", "b", "1"), spelling="", moe_layers=1, experts=4, width=4, context_length=30, seed=5)
DENSE = ToyModel(("a", "b", "1"), spelling="", moe_layers=0, width=8, context_length=40, seed=6)
PROPOSERS = [ContrastiveDecoding(SMALL), ModelEnsemble((DENSE, SMALL)), ModelEnsemble((LM,))]


def rows_of(*models: ToyModel) -> list[np.ndarray]:
    found = []
    for end in range(len(FOLLOW) + 1):
        ids = (*PROMPT, *FOLLOW[:end])
        rows = [lm._logits(lm._forward(lm.prefill([ids[:-1]]).sequences[0].past, ids[-1]).hidden[-1]) for lm in models]
        found.append(np.array(rows))
    return found


def test_rows_are_the_models() -> None:
    assert_same(proposed(ContrastiveDecoding(SMALL)), rows_of(LM, SMALL))
    assert_same(proposed(ModelEnsemble((DENSE, SMALL))), rows_of(LM, DENSE, SMALL))


def test_the_contrast_is_the_papers() -> None:
    """(1 + beta) log p - beta log q over p >= alpha max p, by hand."""
    rows, _ = ContrastiveDecoding(SMALL).start(LM, [PROMPT], [STREAM]).propose(torch.tensor([PROMPT[-1]]))
    p, q = softmax(rows_of(LM, SMALL)[0], axis=-1)
    wanted = np.where(p >= 0.1 * p.max(), p**1.5 * q**-0.5, 0.0)
    aggregator = ContrastiveDecoding(SMALL).default_aggregator
    assert aggregator == ContrastRows(beta=0.5, alpha=0.1)
    found = aggregator.aggregate(rows)[0].exp().numpy()
    np.testing.assert_allclose(found, wanted / wanted.sum(), rtol=0, atol=1e-6)
    assert ModelEnsemble(SMALL).default_aggregator == MeanProbability()  # type: ignore[arg-type]


@pytest.mark.parametrize("proposer", PROPOSERS, ids=["contrast", "three", "itself"])
def test_it_conforms(proposer: Any) -> None:
    check_proposer(proposer, LM)


def test_every_model_is_billed_by_its_own_shape() -> None:
    """Two tokens after a prompt of four: decoding and prefill of both models, by hand."""
    pipe = Pipeline(ContrastiveDecoding(SMALL))
    from tokenscale.core.prompt import Prompt

    [result] = pipe.run(LM, [Prompt(token_ids=PROMPT)], max_new_tokens=2)
    tokens = len(result.winner.token_ids)
    flops = 0.0
    for lm in (LM, SMALL):
        shape = lm.shape
        per_token = shape.dense_flops + shape.expert_flops
        seen = [1, 2, 3, *range(4, 4 + tokens)]
        flops += len(seen) * per_token + tokens * shape.head_flops + shape.attention[0][0] * sum(seen)
    assert result.cost.flops == pytest.approx(flops, rel=1e-12)
    assert result.cost.rows == 2 * tokens
    assert result.cost.prompt_tokens == 2 * 4
    assert result.cost.new_tokens == tokens
    assert result.cost.sequential_steps == tokens + 1
    assert result.routing.choices == 0


def test_a_reference_is_opened_when_a_model_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def load(reference: str) -> ToyModel:
        asked.append(reference)
        return SMALL

    monkeypatch.setattr(model, "_open", load)
    proposer, ensemble = ContrastiveDecoding("small"), ModelEnsemble(("small", "small"))
    assert repr(proposer) == "ContrastiveDecoding(amateur='small')"
    assert repr(ensemble) == "ModelEnsemble(models=('small', 'small'))"
    for part in (proposer, ensemble):
        assert Pipeline.parse(repr(part)) == Pipeline(part) == Pipeline.from_spec(Pipeline(part).to_spec())
    assert Pipeline.parse("ModelEnsemble('small')") == Pipeline(ModelEnsemble(("small",)))
    assert asked == []
    assert_same(proposed(proposer), rows_of(LM, SMALL))
    assert set(asked) == {"small"}


def test_a_loaded_model_has_no_text_form() -> None:
    for part in (ContrastiveDecoding(SMALL), ModelEnsemble((SMALL,))):
        with pytest.raises(PipelineError, match="has no text form"):
            Pipeline(part).to_spec()
        assert "ToyModel" in repr(Pipeline(part))


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (ToyModel(("a", "b"), spelling=""), "4 and 3 token ids"),
        (ToyModel(("a", "b", "2"), spelling=""), "id 3 is '1' and '2'"),
    ],
)
def test_another_vocabulary_is_refused(other: ToyModel, difference: str) -> None:
    message = f"toy and toy have not one vocabulary: {difference}\n  fix: name a model with the tokenizer of toy"
    for proposer in (ContrastiveDecoding(other), ModelEnsemble((SMALL, other))):
        with pytest.raises(ArgumentError, match=f"{type(proposer).__name__}: {message}"):
            proposer.check(LM)
        with pytest.raises(ArgumentError, match="have not one vocabulary"):
            proposer.start(LM, [PROMPT], [STREAM])


def test_pieces_are_compared_where_tokenizers_list_them() -> None:
    class Listing:
        def __init__(self, *pieces: str) -> None:
            self.pieces = pieces

        def get_vocab(self) -> dict[str, int]:
            return {piece: i for i, piece in enumerate(self.pieces)}

    one, same, other = (ToyModel(("a", "b", "1"), spelling="", with_tokenizer=False) for _ in range(3))
    ContrastiveDecoding(same).check(one)
    one.tokenizer, same.tokenizer = Listing("</s>", "a", "b", "1"), Listing("</s>", "a", "b", "1")
    other.tokenizer = Listing("</s>", "a", "b")
    ContrastiveDecoding(same).check(one)
    with pytest.raises(ArgumentError, match="id 3 is '1' and None"):
        ContrastiveDecoding(other).check(one)


@pytest.mark.parametrize("value", [None, 3, "", ToyModel])
def test_what_names_no_model_is_refused(value: Any) -> None:
    with pytest.raises(ArgumentError, match=r"amateur must name a model\n  fix: give a folder"):
        ContrastiveDecoding(value)
    with pytest.raises(ArgumentError, match="models must name a model"):
        ModelEnsemble((SMALL, value))
    with pytest.raises(ArgumentError, match="models is empty"):
        ModelEnsemble(())


def test_the_smallest_context_bounds_the_text() -> None:
    with pytest.raises(PromptError, match="the prompt has 30 tokens, and the context of toy holds 30"):
        ContrastiveDecoding(SMALL).start(LM, [(1,) * 30], [STREAM])
    proposals = ContrastiveDecoding(SMALL).start(LM, [(1,) * 29], [STREAM])
    for _ in range(2):
        proposals.propose(torch.tensor([1]))
    with pytest.raises(ModelError, match="toy holds 30 tokens\n  fix: ask for fewer new tokens"):
        proposals.propose(torch.tensor([1]))
