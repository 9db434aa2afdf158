"""Scoring on the toy, whose probabilities are exact: step by step equals decoding, and the definitions hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

import tokenscale as ts
from tokenscale.core.score import gain_interval, given_texts
from tokenscale.core.stepped import stepped

LM = ts.ToyModel(("a", "b", "1", " ", "."), spelling="cd", moe_layers=3, experts=7, top_k=3, width=6, context_length=40)
ROE = ts.RoE(n=4, tau=1.0, clean_layers=0)
PROPOSERS = [
    None,
    ts.Plain(),
    ROE,
    ts.RoE(n=4, tau=1.0, clean_layers=0, cache="private"),
    ts.RoE(n=3, tau=1.0, clean_layers=0, first_token="clean", current_kv="clean"),
    ts.MCDropout(n=3),
    ts.SCMoE(),
    ts.ExpertSample(),
    ts.AdaptiveRoE(n=4, tau=1.0, clean_layers=0, exact=False),
]


def decoded(proposer: ts.TokenProposer | None, prompt: str, tokens: int = 9, seed: int = 3) -> ts.Result:
    pipe = ts.Pipeline(*([proposer] if proposer is not None else []), ts.Sample(temperature=1.5))
    [result] = pipe.run(LM, [prompt], seed=seed, max_new_tokens=tokens)
    return result


@pytest.mark.parametrize("proposer", PROPOSERS, ids=repr)
def test_what_was_decoded_scores_what_decoding_said(proposer: ts.TokenProposer | None) -> None:
    prompts = ["ab1", "a", "1 1 b."]
    results = [decoded(proposer, prompt) for prompt in prompts]
    scores = LM.score([r.winner.token_ids for r in results], proposer, prompts=prompts, seed=3)
    for score, result in zip(scores, results, strict=True):
        assert score.token_ids == result.winner.token_ids
        assert score.log_probs == result.winner.log_probs
        assert score.fallbacks == result.fallbacks
        assert score.cost == result.cost


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_a_text_scores_the_same_in_any_company(batch_size: int) -> None:
    texts = ["ab1 1b.", "a1", "1.", "b b b b b b b"]
    together = LM.score(texts, ROE, batch_size=batch_size)
    alone = [LM.score([text], ROE)[0] for text in texts]
    assert together == alone


def test_the_clean_row_and_plain_are_the_models_exact_probabilities() -> None:
    ids = LM.encode(ts.Prompt(text="ab1 b1.a"))
    wanted = [float(LM.exact_log_probs(ids[:i])[ids[i]]) for i in range(1, len(ids))]
    [plain] = LM.score([ids])
    [roe] = LM.score([ids], ROE)
    assert plain.token_ids == roe.token_ids == ids
    np.testing.assert_allclose(plain.log_probs, wanted, atol=1e-6)
    assert plain.clean_log_probs == plain.log_probs
    assert roe.clean_log_probs == pytest.approx(plain.log_probs, abs=1e-6)
    assert plain.gain == 0
    assert roe.log_probs != roe.clean_log_probs


def test_figures_are_what_they_are_called() -> None:
    [score] = LM.score(["ab1 b"], ROE)
    assert score.clean_log_probs is not None
    assert score.total == pytest.approx(sum(score.log_probs))
    assert score.mean == pytest.approx(score.total / 4)
    assert score.perplexity == pytest.approx(math.exp(-score.mean))
    assert score.gain == pytest.approx(np.mean(np.subtract(score.log_probs, score.clean_log_probs)))
    [impossible] = LM.score(["abc"], ROE)  # c is read and never written
    assert impossible.perplexity == math.inf
    data = impossible.to_dict()
    assert (data["perplexity"], data["tokens"], data["log_probs"][1]) == (None, 2, None)


def test_proposers_without_a_clean_row_say_so() -> None:
    [score] = LM.score(["ab1"], ts.ExpertSample())
    assert score.clean_log_probs is None
    assert score.gain is None


def test_the_aggregator_is_used() -> None:
    [score] = LM.score(["ab1"], ROE, ts.Weighted((1.0, 0.0, 0.0, 0.0)))
    assert score.log_probs == pytest.approx(score.clean_log_probs, abs=1e-6)
    [low], [high] = LM.score(["ab1"], ROE, ts.MinProbability()), LM.score(["ab1"], ROE, ts.MeanProbability())
    assert low.log_probs != high.log_probs


def test_text_behind_a_prompt_is_the_tail_of_the_whole() -> None:
    [whole] = LM.score(["ab1 1b"])
    [tail] = LM.score([" 1b"], prompts=["ab1"])
    assert tail.log_probs == whole.log_probs[2:]
    [ids] = LM.score([LM.encode(ts.Prompt(text=" 1b"))], prompts=[LM.encode(ts.Prompt(text="ab1"))])
    assert ids.log_probs == tail.log_probs


def test_noise_is_shared_by_options_and_not_by_repeats() -> None:
    first, other, again = LM.score([" 1", " a", " 1"], ROE, prompts=["ab", "ab", "ab"])
    assert first.log_probs[0] == other.log_probs[0]  # the same blank after the same prompt
    assert first.log_probs != again.log_probs
    assert LM.score([" 1"], ROE, prompts=["ab"], seed=1) != [first]
    named = [ts.Prompt(text="ab", key="one")] * 2
    one, two = LM.score([" 1", " 1"], ROE, prompts=named)
    assert one == two


def test_the_most_likely_option_is_chosen() -> None:
    prompt, options = "ab1", ["a", "b", "1", "b1", "1a"]
    log_probs = [LM.score([option], ROE, prompts=[prompt])[0] for option in options]
    chosen = ts.choose_option(LM, prompt, options, ROE)
    assert [s.total for s in chosen.scores] == [s.total for s in log_probs]
    assert chosen.index == int(np.argmax([s.total for s in log_probs]))
    by_length = ts.choose_option(LM, prompt, options, ROE, length_normalised=True)
    assert by_length.index == int(np.argmax([s.mean for s in log_probs]))
    assert ts.choose_option(LM, prompt, ["a", "a"]).index == 0


def test_two_options_differ_by_length_normalisation() -> None:
    """Of options whose tokens are about as likely, the shorter has the higher sum, not the higher mean."""
    differing = 0
    for first in "ab1":
        for second in ("aa", "b1", "1b", "aaa"):
            plain = ts.choose_option(LM, "ab", [first, second])
            differing += plain.index != ts.choose_option(LM, "ab", [first, second], length_normalised=True).index
    assert differing > 0


@pytest.mark.parametrize(
    ("arguments", "keywords", "message"),
    [
        (("ab",), {}, r"list of texts.*one string"),
        ((["a"],), {}, r"text 0 has no token that could be scored.*prompt"),
        ((["ab", ""],), {"prompts": ["a", "b"]}, r"text 1 has no token that could be scored"),
        ((["ab"],), {"prompts": ["a", "b"]}, r"1 texts and other than 1"),
        ((["ab" * 30],), {}, r"60 tokens.*context of toy holds 40"),
        (([(1, 99)],), {}, r"no token id 99"),
        (([3.5],), {}, r"text 0 is 3\.5.*strings, or sequences"),
        ((["ab"], ts.Greedy()), {}, r"score runs a proposer, got Greedy"),
        ((["ab"], ROE, "MeanLogit"), {}, r"score joins rows by an aggregator, got 'MeanLogit'.*MeanProbability"),
        ((["ab"], ts.AdaptiveRoE(n=4)), {}, r"settle the greedy token.*exact=False"),
        ((["ab"],), {"seed": -1}, r"seed must be at least 0"),
        ((["ab"],), {"max_memory_mb": 0}, r"max_memory_mb must be at least 1"),
    ],
)
def test_bad_input_is_one_error_with_the_fix(arguments: tuple, keywords: dict, message: str) -> None:
    with pytest.raises(ts.TokenscaleError, match=f"(?s){message}"):
        LM.score(*arguments, **keywords)


def test_what_a_model_lacks_is_refused() -> None:
    with pytest.raises(ts.CapabilityError, match="RoE changes what routers choose"):
        ts.ToyModel(moe_layers=0).score(["12"], ts.RoE(n=2))
    with pytest.raises(ts.ArgumentError, match="at least two options"):
        ts.choose_option(LM, "ab", ["a"])


def scores(differences: list[float], tokens: list[int]) -> list[ts.Score]:
    """Texts whose tokens all gain the same within a text, of a sum given."""
    return [
        ts.Score(tuple(range(t + 1)), (-1.0,) * t, (-1.0 - d / t,) * t, ts.Cost())
        for d, t in zip(differences, tokens, strict=True)
    ]


def test_the_interval_of_the_gain_is_students_where_texts_have_one_length() -> None:
    sums = [0.3, -0.1, 0.5, 0.2, 0.0]
    gain, interval = gain_interval(scores(sums, [10] * 5))
    per_token = np.array(sums) / 10
    assert gain == pytest.approx(per_token.mean())
    assert interval == pytest.approx(stats.t.interval(0.95, 4, per_token.mean(), stats.sem(per_token)))


def test_the_interval_of_the_gain_covers_the_truth() -> None:
    """500 draws of 12 texts of 5 to 40 tokens; covered by chance less than 0.91 of the time: p < 1e-4."""
    random, covered = np.random.default_rng(0), 0
    for _ in range(500):
        tokens = random.integers(5, 40, 12)
        sums = [float(random.normal(0.1, 0.5, t).sum()) for t in tokens]
        _, interval = gain_interval(scores(sums, tokens.tolist()))
        assert interval is not None
        covered += interval[0] <= 0.1 <= interval[1]
    assert 0.91 <= covered / 500 <= 0.98


def test_no_interval_without_two_texts_or_a_clean_row() -> None:
    gain, interval = gain_interval(scores([0.5], [5]))
    assert (gain, interval) == (pytest.approx(0.1), None)
    assert gain_interval(LM.score(["ab1", "a1"], ts.ExpertSample())) == (None, None)
    assert gain_interval(LM.score(["ab1", "abc"], ROE)) == (None, None)  # c is impossible in every row


def test_no_texts_are_no_scores() -> None:
    assert LM.score([]) == []


def test_stepping_needs_no_texts_of_one_length() -> None:
    given = given_texts(LM, ["ab1", "a1"])
    found = stepped(LM, given, ts.Plain(), ts.MeanProbability(), 2)
    assert [len(o.log_probs) for o in found] == [2, 1]
