"""The toy model against its formula, written again without cache, batch or numpy's products."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tokenscale.core.errors import ArgumentError, CapabilityError, ModelError, PromptError
from tokenscale.core.model import ROUTING_NOISE
from tokenscale.core.plan import Routing, RowPlan
from tokenscale.core.prompt import Prompt
from tokenscale.models.toy import AGE_SLOPE, ToyModel
from tokenscale.testing import check_language_model

SMALL = ToyModel(("a", "b", "1"), spelling="", moe_layers=3, experts=4, width=4, context_length=12)
TEXT = "Q: Tom has 17 apples.\nA:"


def dot(x: list[float], y: list[float]) -> float:
    return math.fsum(a * b for a, b in zip(x, y, strict=True))


def times(x: list[float], table: np.ndarray) -> list[float]:
    return [dot(x, column) for column in table.T.tolist()]


def shares(scores: list[float]) -> list[float]:
    powers = [math.exp(s - max(scores)) for s in scores]
    return [p / math.fsum(powers) for p in powers]


def reference(lm: ToyModel, ids: tuple[int, ...], shift: np.ndarray | None = None) -> list[float]:
    """Next-token logits after `ids`, from the formula; `shift` moves the last token's choices."""
    weights, layers = lm.weights, lm.shape.moe_layers
    keys: list[list[list[float]]] = [[] for _ in range(layers + 1)]
    for place, token in enumerate(ids):
        x = weights.embed[token].tolist()
        for level in range(layers + 1):
            keys[level].append([math.tanh(v) for v in times(x, weights.keys[level])])
            ages = [place - t for t in range(place + 1)]
            scores = [dot(k, x) / math.sqrt(len(x)) - AGE_SLOPE * age for k, age in zip(keys[level], ages, strict=True)]
            seen = shares(scores)
            x = [v + math.fsum(w * k[i] for w, k in zip(seen, keys[level], strict=True)) for i, v in enumerate(x)]
            if level < layers:
                moved = shift[level] if shift is not None and place == len(ids) - 1 else np.zeros(lm.shape.experts)
                x = experts(lm, level, x, moved.tolist())
    return [lm.sharpness * v for v in times([math.tanh(v) for v in x], weights.unembed)]


def experts(lm: ToyModel, layer: int, x: list[float], shift: list[float]) -> list[float]:
    u = [math.tanh(v) for v in x]
    scores = times(u, lm.weights.router[layer])
    order = sorted(range(len(scores)), key=lambda e: -(scores[e] + shift[e]))[: lm.top_k]
    gates = shares([scores[e] for e in order])
    outputs = [[math.tanh(v) for v in times(u, lm.weights.expert[layer, e])] for e in order]
    return [v + math.fsum(g * o[i] for g, o in zip(gates, outputs, strict=True)) for i, v in enumerate(x)]


@pytest.mark.parametrize("lm", [SMALL, ToyModel(("a", "b", "1"), spelling="", moe_layers=0)], ids=["moe", "dense"])
def test_probabilities_are_those_of_the_formula(lm: ToyModel) -> None:
    for ids in [(0,), (1, 2, 3, 1), (3,) * 10]:
        logits = np.array(reference(lm, ids))
        wanted = logits - np.log(np.exp(logits).sum())
        np.testing.assert_allclose(lm.exact_log_probs(ids), wanted, rtol=0, atol=1e-12)


def test_noisy_rows_are_those_of_the_formula() -> None:
    ids = (1, 2, 3, 1)
    shift = torch.randn(3, 1, 5, 4, generator=torch.Generator().manual_seed(0))
    shift[:, :, 0] = 0
    step = SMALL.step(SMALL.prefill([ids[:-1]]), torch.tensor([ids[-1]]), RowPlan(5, Routing.of(shift)))
    wanted = [reference(SMALL, ids, shift[:, 0, i].double().numpy()) for i in range(5)]
    np.testing.assert_allclose(step.logits[0].numpy(), np.float32(wanted), rtol=0, atol=1e-6)
    assert step.changed is not None
    assert step.changed.any()


@pytest.mark.parametrize("layers", [0, 1, 4])
def test_it_conforms(layers: int) -> None:
    check_language_model(ToyModel(moe_layers=layers))


def test_the_whole_history_bears_on_the_next_token() -> None:
    lm = ToyModel()
    ids = lm.encode(Prompt(text=TEXT))
    wanted = np.exp(lm.exact_log_probs(ids))
    for place in range(len(ids)):
        other = [*ids]
        other[place] = ids[place] % 5 + 1
        assert np.abs(np.exp(lm.exact_log_probs(other)) - wanted).max() > 1e-5, place


def test_text_is_read_and_written() -> None:
    lm = ToyModel()
    ids = lm.encode(Prompt(text=TEXT))
    assert lm.decode(ids) == TEXT
    assert lm.decode([*ids, 0]) == TEXT
    assert lm.decode(lm.encode(Prompt(text="6 and 3. The answer is 18."))) == "6 and 3. The answer is 18."
    assert len(lm.encode(Prompt(text=" The answer is "))) == 1
    written = np.flatnonzero(np.exp(lm.exact_log_probs(ids)))
    assert len(written) == 21
    assert {"7", " The answer is ", "\n"} <= {lm.decode([i]) for i in written.tolist()}


def test_prompts_of_every_kind_are_encoded() -> None:
    lm = ToyModel()
    assert lm.encode(Prompt(text="")) == lm.encode(Prompt(token_ids=())) == (0,)
    assert lm.encode(Prompt(token_ids=(3, 4), suffix="7")) == (3, 4, 8)
    chat = Prompt.of([{"role": "user", "content": "Hi"}])
    assert lm.decode(lm.encode(chat)) == "user: Hi\nassistant: "


def test_what_it_cannot_read_is_refused() -> None:
    with pytest.raises(PromptError, match="the toy tokenizer has no piece for 'é'"):
        ToyModel().encode(Prompt(text="é"))
    with pytest.raises(PromptError, match="toy has no token id 4\n  fix: use ids below 4"):
        SMALL.encode(Prompt(token_ids=(4,)))
    bare = ToyModel(with_tokenizer=False)
    with pytest.raises(CapabilityError, match="toy has no tokenizer"):
        bare.encode(Prompt(text="Hi"))
    with pytest.raises(CapabilityError, match="toy has no tokenizer"):
        bare.decode([1])
    with pytest.raises(ArgumentError, match="moe_layers must be at least 0"):
        ToyModel(moe_layers=-1)


def test_the_context_is_bounded() -> None:
    state = SMALL.prefill([(1,) * 11])
    SMALL.step(state, torch.tensor([1]))
    with pytest.raises(ModelError, match="toy holds 12 tokens"):
        SMALL.step(state, torch.tensor([1]))


def test_a_state_that_was_given_away_is_refused() -> None:
    state, other = SMALL.prefill([(1,)]), SMALL.prefill([(2,)])
    joined = state.join(other)
    picked = joined.select([1])
    assert picked.lengths == [1]
    for spent in (state, other, joined):
        with pytest.raises(ModelError, match="given away by select or join"):
            SMALL.step(spent, torch.tensor([1]))


def test_continuations_are_all_there_is() -> None:
    found = SMALL.continuations((1, 2), 4)
    assert math.fsum(found.values()) == pytest.approx(1, abs=1e-12)
    # Without the end token 3 ways a step; with it, at any of the four steps.
    assert len(found) == 3**4 + (1 + 3 + 9 + 27)
    assert all(ids.count(0) == (len(ids) < 4 or ids[-1] == 0) for ids in found)
    ids = (3, 1, 2, 2)
    alone = sum(SMALL.exact_log_probs((1, 2, *ids[:i]))[ids[i]] for i in range(4))
    assert math.log(found[ids]) == pytest.approx(alone, abs=1e-12)


def test_continuations_under_another_distribution() -> None:
    tables = {1: [-1.0, -1.0, -math.inf, -math.inf], 2: [-1.0, -math.inf, -math.inf, -2.0]}
    found = SMALL.continuations((1,), 2, lambda prefix: np.array(tables[len(prefix)]))
    wanted = {(0,): math.exp(-1), (1, 0): math.exp(-2), (1, 3): math.exp(-3)}
    assert found == pytest.approx(wanted)


def test_capabilities_and_fingerprints_tell_models_apart() -> None:
    dense = ToyModel(moe_layers=0)
    assert ROUTING_NOISE in ToyModel().capabilities
    assert ROUTING_NOISE not in dense.capabilities
    assert (dense.name, dense.shape.experts, dense.inspect_layers()) == ("dense toy", 0, [])
    models = [ToyModel(), dense, ToyModel(seed=1), ToyModel(top_k=3), ToyModel(("a",)), ToyModel(sharpness=1.0)]
    assert len({m.fingerprint for m in models}) == len(models)
    assert ToyModel().fingerprint == models[0].fingerprint


def test_the_bill_counts_the_products_of_the_formula() -> None:
    lm = ToyModel(("a", "b", "1"), spelling="", moe_layers=3, experts=5, top_k=2, width=4)
    per_level, per_layer = 2 * 4 * 4, 2 * 4 * 5 + 2 * (2 * 4 * 4)
    keys = 6
    scores = 4 * (2 * 4 * keys + 2 * 4 * keys)
    assert lm.shape.decode_flops([1], keys) == 4 * per_level + 3 * per_layer + scores + 2 * 4 * 4
    assert lm.shape.kv_bytes == 8 * 4 * 4
    assert lm.shape.expert_bytes == 8 * 16
