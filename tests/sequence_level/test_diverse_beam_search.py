"""Diverse beam search against the paper's algorithm over sets of token ids, and what the penalty does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tokenscale as ts
from tests.sequence_level.searches import Ids, Rules, search

END = 0
PROMPTS: list[Ids] = [(1, 2, 3), (2,), (3, 3, 1, 2, 2)]
NAMES = ("a", "b", "1", "c", "d")
MEDIUM = ts.ToyModel(NAMES, spelling="", moe_layers=2, experts=4, context_length=24, sharpness=2.0)
FLAT = ts.ToyModel(("a", "b", "1"), spelling="", moe_layers=1, sharpness=0.5, context_length=24)


def run(decoder: ts.Decoder, lm: ts.ToyModel = MEDIUM, new: int = 5) -> list[ts.Result]:
    return ts.Pipeline(decoder).run(lm, [ts.Prompt(token_ids=ids) for ids in PROMPTS], max_new_tokens=new)


def texts(results: list[ts.Result]) -> list[list[tuple[Ids, float | None]]]:
    return [[(c.token_ids, c.score) for c in result.candidates] for result in results]


@pytest.mark.parametrize("early", [False, True, "never"])
@pytest.mark.parametrize(
    ("width", "groups", "diversity", "penalty"),
    [(4, 2, 0.5, 1.0), (4, 4, 0.7, 0.0), (6, 3, 2.0, 1.0), (6, 2, 0.25, -0.5), (4, 2, 0.0, 1.0), (3, 1, 0.9, 2.0)],
)
@pytest.mark.parametrize("lm", [MEDIUM, FLAT], ids=["medium", "flat"])
def test_searches_follow_the_papers_algorithm(
    lm: ts.ToyModel, width: int, groups: int, diversity: float, penalty: float, early: Any
) -> None:
    decoder = ts.DiverseBeamSearch(width, groups, diversity, penalty, num_return=width, early_stopping=early)
    rules = Rules(width, penalty, early, groups, diversity)
    for prompt, result in zip(PROMPTS, run(decoder, lm), strict=True):
        wanted = search(lambda ids, p=prompt: lm.exact_log_probs((*p, *ids)), {END}, 5, rules)  # type: ignore[misc]
        assert result.winner.score == pytest.approx(wanted.ended[0][1], abs=1e-4)
        # Of equal scores (one text found by two groups, say) either may stand first.
        found = sorted((round(c.score or 0.0, 4), c.token_ids) for c in result.candidates)
        assert [ids for _, ids in found] == [i for _, i in sorted((round(s, 4), i) for i, s in wanted.ended)]
        assert [s for s, _ in found] == pytest.approx(sorted(s for _, s in wanted.ended), abs=2e-4)
        assert result.winner.cost.new_tokens == sum(map(len, wanted.beams))


@pytest.mark.parametrize("early", [False, True, "never"])
def test_one_group_is_a_beam_search(early: Any) -> None:
    """Whatever the diversity."""
    for width in (1, 3):
        plain = run(ts.BeamSearch(width, 0.5, num_return=width, early_stopping=early))
        diverse = run(ts.DiverseBeamSearch(width, 1, 0.9, 0.5, num_return=width, early_stopping=early))
        assert plain == diverse


def test_groups_without_diversity_find_the_same() -> None:
    """Each finds what one beam search of its width finds."""
    for alone, result in zip(run(ts.BeamSearch(2, num_return=2)), run(ts.DiverseBeamSearch(6, 3, 0.0)), strict=True):
        assert result.text == alone.text
    for alone, result in zip(
        run(ts.BeamSearch(2, num_return=2)), run(ts.DiverseBeamSearch(6, 3, 0.0, num_return=6)), strict=True
    ):
        assert [c.token_ids for c in result.candidates] == [c.token_ids for c in alone.candidates for _ in range(3)]


def test_diversity_brings_other_first_tokens() -> None:
    first = {
        diversity: [len({c.token_ids[0] for c in result.candidates}) for result in results]
        for diversity in (0.0, 100.0)
        for results in [run(ts.DiverseBeamSearch(4, 4, diversity, num_return=4))]
    }
    assert first == {0.0: [1, 1, 1], 100.0: [4, 4, 4]}


def test_the_score_keeps_the_penalty_and_the_log_probability_is_the_models() -> None:
    [result, *_] = run(ts.DiverseBeamSearch(2, 2, 100.0, length_penalty=0.0, num_return=2))
    plain, driven = result.candidates
    assert plain.score == pytest.approx(plain.log_prob, abs=1e-5)
    paid = (driven.log_prob - (driven.score or 0.0)) / 100
    assert paid == pytest.approx(sum(a == b for a, b in zip(plain.token_ids, driven.token_ids, strict=False)), abs=1e-6)
    exact = [
        float(MEDIUM.exact_log_probs((*PROMPTS[0], *driven.token_ids[:i]))[token])
        for i, token in enumerate(driven.token_ids)
    ]
    assert driven.log_probs == pytest.approx(exact, abs=1e-5)


def test_a_choice_by_hand() -> None:
    """Three groups of one beam on (0.5, 0.3, 0.2): the most likely token costs the next group 1 nat."""
    logs = torch.tensor([[[0.5, 0.3, 0.2]]]).log()
    choice = ts.DiverseBeamSearch(3, 3, 1.0).choose(logs, torch.zeros(1, 1), None, (-1,))
    assert choice.tokens.tolist() == [[0, 1, 2]]
    assert choice.parents.tolist() == [[0, 0, 0]]
    wanted = [0.5, 0.3, 0.2]
    assert choice.scores is not None
    assert choice.scores[0].exp().tolist() == pytest.approx(wanted, abs=1e-6)
    # Group 2 is closest to another choice: 0.3 against 0.2, since 0.5 is worth 0.5 / e there.
    assert choice.margin.tolist() == pytest.approx([float(torch.tensor(0.2 / (0.5 / torch.e)).log())], abs=1e-5)


@pytest.mark.parametrize(
    ("text", "message", "fix"),
    [
        ("DiverseBeamSearch(5, 2)", "groups must divide width", "width=6"),
        ("DiverseBeamSearch(4, 0)", "groups must be at least 1", "groups=1"),
        ("DiverseBeamSearch(4, 2, -1.0)", "diversity must be at least 0", "diversity=0.5"),
        ("DiverseBeamSearch(4, 2, num_return=5)", "no more texts than beams", "width=5"),
        ("DiverseBeamSearch(4)", "needs groups", "groups="),
    ],
)
def test_refusals(text: str, message: str, fix: str) -> None:
    with pytest.raises(ts.PipelineError, match=message) as error:
        ts.Pipeline.parse(text)
    assert fix in error.value.hint


def test_the_text_form_is_read_back() -> None:
    pipe = ts.Pipeline(ts.RoE(n=2), ts.DiverseBeamSearch(4, 2, 1), ts.SelfConsistency(k=1))
    assert "DiverseBeamSearch(width=4, groups=2, diversity=1.0" in repr(pipe)
    assert ts.Pipeline.parse(repr(pipe)) == pipe == ts.Pipeline.from_spec(pipe.to_spec())
