"""Beam search on the toy model: against its definition, against all texts there are, and in pipelines."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import tokenscale as ts
from tests.sequence_level.searches import Ids, Rules, Search, search
from tokenscale.core.constraint import Constraint, Guide
from tokenscale.core.errors import ArgumentError
from tokenscale.core.stage import Kind

END = 0
PROMPTS: list[Ids] = [(1, 2, 3), (2,), (3, 3, 1, 2, 2)]
LM = ts.ToyModel(("a", "b", "1"), spelling="", moe_layers=2, experts=4, context_length=24, sharpness=2.0)
SHARP = ts.ToyModel(("a", "b", "1"), spelling="", moe_layers=3, sharpness=4.0, context_length=24)
FLAT = ts.ToyModel(("a", "b", "1"), spelling="", moe_layers=1, sharpness=0.5, context_length=24)
MODELS = {"medium": LM, "sharp": SHARP, "flat": FLAT}
EARLY: tuple[Any, ...] = (False, True, "never")


def toy(lm: ts.ToyModel, prompt: Ids) -> Callable[[Ids], Any]:
    return lambda ids: lm.exact_log_probs((*prompt, *ids))


def prompts(given: list[Ids]) -> list[ts.Prompt]:
    return [ts.Prompt(token_ids=ids) for ids in given]


def check_found(result: ts.Result, wanted: Search) -> None:
    assert [c.token_ids for c in result.candidates] == [ids for ids, _ in wanted.ended]
    assert [c.score for c in result.candidates] == pytest.approx([rank for _, rank in wanted.ended], abs=1e-4)


@pytest.mark.parametrize("early", EARLY)
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_searches_follow_the_definition(model: ts.ToyModel, early: Any) -> None:
    """More beams than tokens too: four tokens feed at most three of the eight beams at first."""
    for width, penalty in [(1, 1.0), (2, 0.0), (3, 1.0), (3, -1.0), (4, 2.0), (8, 0.5)]:
        pipe = ts.Pipeline(ts.BeamSearch(width, penalty, num_return=width, early_stopping=early))
        for prompt, result in zip(PROMPTS, pipe.run(model, prompts(PROMPTS), max_new_tokens=5), strict=True):
            check_found(result, search(toy(model, prompt), {END}, 5, Rules(width, penalty, early)))


@pytest.mark.parametrize("penalty", [0.0, 1.0, -1.0])
def test_wide_enough_it_finds_all_texts_that_there_are(penalty: float) -> None:
    """And says that there are no more of them: 1 + 3 + 9 + 27 end with the end token, 81 at the fourth."""
    pipe = ts.Pipeline(ts.BeamSearch(200, penalty, num_return=200, early_stopping="never"))
    [result] = pipe.run(LM, prompts([(1, 2)]), max_new_tokens=4)
    everything = LM.continuations((1, 2), 4)
    ranks = {ids: math.log(p) / len(ids) ** penalty for ids, p in everything.items()}
    assert len(everything) == 121
    assert {c.token_ids for c in result.candidates} == set(everything)
    assert [c.score for c in result.candidates] == pytest.approx(sorted(ranks.values(), reverse=True), abs=1e-4)
    assert all(c.score == pytest.approx(ranks[c.token_ids], abs=1e-4) for c in result.candidates)
    assert any("121 of 200 texts" in note for note in result.notes)


def test_the_ways_to_end_differ_in_what_they_find_and_cost() -> None:
    found = {}
    for early in EARLY:
        pipe = ts.Pipeline(ts.BeamSearch(3, 1.0, num_return=3, early_stopping=early))
        found[early] = pipe.run(LM, prompts(PROMPTS), max_new_tokens=8)
    costs = {early: sum(r.cost.new_tokens for r in results) for early, results in found.items()}
    best = {early: [r.candidates[0].score for r in results] for early, results in found.items()}
    assert costs[True] < costs[False] < costs["never"]
    assert all(a <= b <= c for a, b, c in zip(best[True], best[False], best["never"], strict=True))
    assert best[True] != best["never"]


@pytest.mark.parametrize("decoder", [ts.BeamSearch(3), ts.BeamSearch(4, 0.0, early_stopping=True)])
def test_the_bill_counts_dropped_beams(decoder: ts.BeamSearch) -> None:
    prompt, new = (1, 2, 3), 5
    [result] = ts.Pipeline(decoder).run(LM, prompts([prompt]), max_new_tokens=new)
    rules = Rules(decoder.width, decoder.length_penalty, decoder.early_stopping)
    beams = search(toy(LM, prompt), {END}, new, rules).beams
    assert any(len(step) == decoder.width for step in beams)
    flops = sum(LM.shape.decode_flops([1], len(prompt) + len(ids)) for step in beams for ids in step)
    loads = 0
    for step in beams:
        texts = [(*prompt, *ids) for ids in step]
        done = LM.step(LM.prefill([text[:-1] for text in texts]), torch.tensor([text[-1] for text in texts]))
        assert done.experts is not None
        loads += int(done.experts.any(0).sum())
    cost = result.winner.cost
    assert cost.new_tokens == cost.rows == sum(map(len, beams))
    assert cost.sequential_steps == len(beams)
    assert cost.expert_loads == loads
    assert cost.flops == pytest.approx(flops)


def test_a_batch_finds_what_each_prompt_finds_alone() -> None:
    pipe = ts.Pipeline(ts.RoE(n=3, tau=1.0, clean_layers=0), ts.BeamSearch(3, num_return=2))
    together = pipe.run(LM, prompts(PROMPTS * 2), seed=4, max_new_tokens=5, batch_size=4)
    for one, prompt in zip(together, prompts(PROMPTS), strict=False):
        [alone] = pipe.run(LM, [prompt], seed=4, max_new_tokens=5)
        assert one == alone


PROPOSERS = [
    ts.RoE(n=4, tau=1.0, clean_layers=0),
    ts.AdaptiveRoE(n=4, tau=1.0, clean_layers=0, exact=False),
    ts.ExpertSample(keep_head=1),
    ts.SCMoE(),
    ts.MoreExperts(k=3),
    ts.MCDropout(n=3),
    ts.DoLa(),
    ts.PromptEnsemble(("{prompt}", "a{prompt}")),
]


@pytest.mark.parametrize("proposer", PROPOSERS, ids=lambda p: type(p).__name__)
def test_under_any_proposer_a_search_is_one_over_its_distribution(proposer: ts.TokenProposer) -> None:
    """One random stream for all beams: the distribution is a function of the prefix."""
    lm = ts.ToyModel(("a", "b", "1"), spelling="", moe_layers=4, context_length=24, sharpness=2.0)
    pipe = ts.Pipeline(proposer, ts.BeamSearch(3, num_return=3))
    [result] = pipe.run(lm, [ts.Prompt(text="ab1")], seed=5, max_new_tokens=4)
    ids = lm.encode(ts.Prompt(text="ab1"))

    def log_probs(generated: Ids) -> Any:
        proposals = proposer.start(lm, [ids], [result.candidates[0].stream])
        for token in (ids[-1], *generated):
            rows, _ = proposals.propose(torch.tensor([token]))
        return pipe.aggregator.aggregate(rows)[0].double().numpy()

    check_found(result, search(log_probs, {END}, 4, Rules(3)))


@dataclass
class Alternating(Guide):
    """The text is a's and b's in turn, at most `longest` of them; the end may follow any b."""

    longest: int
    ids: Ids = ()

    def allowed(self) -> torch.Tensor:
        mask = torch.zeros(4, dtype=torch.bool)
        if len(self.ids) < self.longest:
            mask[[2] if self.ids[-1:] == (1,) else [1] if self.ids else [1, 2]] = True
        mask[END] = self.met
        return mask

    def advance(self, token: int) -> None:
        self.ids += (token,)

    def fork(self) -> Alternating:
        return Alternating(self.longest, self.ids)

    @property
    def met(self) -> bool:
        return self.ids[-1:] == (2,)

    @property
    def over(self) -> bool:
        return len(self.ids) >= self.longest


@dataclass(frozen=True)
class Alternate(Constraint):
    """Starts such guides."""

    kind = Kind.CONSTRAINT
    longest: int = 5

    def start(self, lm: Any) -> Guide:
        return Alternating(self.longest)


def test_guides_fork_with_their_beams() -> None:
    pipe = ts.Pipeline(Alternate(), ts.BeamSearch(4, num_return=4, early_stopping="never"))
    for prompt, result in zip(PROMPTS, pipe.run(LM, prompts(PROMPTS), max_new_tokens=5), strict=True):

        def log_probs(ids: Ids, prompt: Ids = prompt) -> Any:
            return np.where(Alternating(5, ids).allowed().numpy(), LM.exact_log_probs((*prompt, *ids)), -np.inf)

        check_found(result, search(log_probs, {END}, 5, Rules(4, early_stopping="never")))
        assert all("aa" not in c.text and "bb" not in c.text and "1" not in c.text for c in result.candidates)
        assert len({c.text for c in result.candidates}) == 4


def test_a_vote_over_the_beams_of_one_search() -> None:
    lm = ts.ToyModel(context_length=64)
    search_alone = ts.Pipeline(ts.BeamSearch(8, num_return=8))
    vote = search_alone | ts.SelfConsistency(k=8)
    asked = [ts.Prompt(text="Q: 1+1\nA:")]
    [beams], [voted] = (pipe.run(lm, asked, max_new_tokens=6) for pipe in (search_alone, vote))
    assert [c.token_ids for c in voted.candidates] == [c.token_ids for c in beams.candidates]
    assert len({c.token_ids for c in voted.candidates}) == 8
    assert voted.cost == beams.cost
    answers = [c.answer for c in voted.candidates]
    assert sum(weight for _, weight in voted.votes) == len(answers)
    assert voted.votes[0][1] == max(answers.count(a) for a in answers if a is not None)
    assert voted.winner.log_prob == max(c.log_prob for c in voted.candidates if c.answer == voted.answer)


def test_one_search_is_asked_for_no_more_texts_than_it_gives() -> None:
    with pytest.raises(ArgumentError, match="gives 2 texts, and 5 candidates are asked for") as error:
        ts.Pipeline.parse("BeamSearch(4, num_return=2) | SelfConsistency(k=5)").run(ts.ToyModel(), ["1"])
    assert "write num_return=5" in error.value.hint
    pipe = ts.Pipeline.parse("RoE(n=2) | BeamSearch(4, num_return=2) | SelfConsistency(k=5)")
    [result] = pipe.run(ts.ToyModel(), ["1"], max_new_tokens=3)
    assert len(result.candidates) == 5
    assert len({c.stream for c in result.candidates}) == 3


def test_stop_strings_and_immediate_ends() -> None:
    lm = ts.ToyModel(("a", "b", "1", "c"), spelling="", moe_layers=1, sharpness=0.5)
    [stopped] = ts.Pipeline(ts.BeamSearch(3, num_return=3)).run(lm, ["ab"], max_new_tokens=6, stop_strings=["a"])
    assert {c.finish_reason for c in stopped.candidates} == {"stop_string"}
    assert all("a" not in c.text for c in stopped.candidates)
    [short] = ts.Pipeline(ts.BeamSearch(3, num_return=3)).run(LM, ["ab"], max_new_tokens=1)
    assert [len(c.token_ids) for c in short.candidates] == [1, 1, 1]
    assert short.cost.new_tokens == 1


@given(st.data())
def test_a_margin_bounds_what_rounding_can_change(data: st.DataObject) -> None:
    """Noise of less than half the margin changes neither who goes on nor who may end, whatever tokens end."""
    beams, vocab, endings = data.draw(st.integers(1, 3)), data.draw(st.integers(3, 6)), data.draw(st.integers(1, 2))
    coarse = arrays(np.int64, (beams, vocab), elements=st.integers(-6, 0)).map(lambda logs: logs / 2)
    logs = torch.from_numpy(data.draw(coarse))[None]
    decoder, scores = ts.BeamSearch(beams), torch.zeros(1, beams, dtype=torch.float64)
    choice = decoder.choose(logs, scores, None, (0,) * beams, endings)
    margin = min(float(choice.margin[0]), 1.0)
    noise = torch.from_numpy(data.draw(arrays(np.float64, (beams, vocab), elements=st.floats(-0.49, 0.49))))
    moved = decoder.choose(logs + margin * noise, scores, None, (0,) * beams, endings)
    if margin > 0:
        for ends in itertools.combinations(range(vocab), endings):
            assert outcome(choice, beams, ends) == outcome(moved, beams, ends)


def outcome(choice: ts.Choice, beams: int, ends: Ids) -> tuple[set[Ids], set[Ids]]:
    """The beams that end among the first, and those that go on."""
    pairs = list(zip(choice.parents[0].tolist(), choice.tokens[0].tolist(), strict=True))
    assert choice.scores is not None
    pairs = [pair for pair, score in zip(pairs, choice.scores[0].tolist(), strict=True) if score > -math.inf]
    going = [pair for pair in pairs if pair[1] not in ends]
    return {pair for pair in pairs[:beams] if pair[1] in ends}, set(going[:beams])


@pytest.mark.parametrize(
    ("logs", "margin"),
    [
        ([-1.0, -1.0, -3.0, -4.0, -9.0, -9.0], 1.0),  # a tie of two that both go on
        ([-1.0, -2.0, -2.0, -4.0, -9.0, -9.0], 0.0),  # at the border
        ([-1.0, -2.0, -3.5, -4.5, -5.25, -9.0], 0.75),  # at the border if two end
        ([-1.0, -2.0, -math.inf, -math.inf, -math.inf, -math.inf], math.inf),  # no other candidate
    ],
)
def test_margins_by_hand(logs: list[float], margin: float) -> None:
    choice = ts.BeamSearch(2).choose(torch.tensor([[logs]]), torch.zeros(1, 1), None)
    assert choice.margin.tolist() == pytest.approx([margin])
    assert set(choice.tokens[0, :2].tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("text", "message", "fix"),
    [
        ("BeamSearch(0)", r"width=0\): width must be at least 1", "width=1"),
        ("BeamSearch(2, num_return=3)", "no more texts than beams", "width=3"),
        ("BeamSearch(2, num_return=0)", "num_return must be at least 1", "num_return=1"),
        ("BeamSearch(2, length_penalty=11)", "must lie between -10 and 10", "length_penalty=1.0"),
        ("BeamSearch(2, length_penalty='long')", "must be a finite number", "length_penalty=1.0"),
        ("BeamSearch(2, early_stopping='always')", 'must be True, False or "never"', "never"),
        ("BeamSearch(2, early_stopping=1)", 'must be True, False or "never"', "never"),
        ("BeamSearch()", "BeamSearch needs width", "width="),
    ],
)
def test_refusals(text: str, message: str, fix: str) -> None:
    with pytest.raises(ts.PipelineError, match=message) as error:
        ts.Pipeline.parse(text)
    assert fix in error.value.hint


def test_the_text_form_is_read_back() -> None:
    pipe = ts.Pipeline(ts.BeamSearch(4, -1, num_return=2, early_stopping="never"))
    assert repr(pipe) == "BeamSearch(width=4, length_penalty=-1.0, num_return=2, early_stopping='never')"
    assert ts.Pipeline.parse(repr(pipe)) == pipe == ts.Pipeline.from_spec(pipe.to_spec())
