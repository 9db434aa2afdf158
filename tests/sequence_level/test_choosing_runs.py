"""Strategies that choose keep the suite's promises, round-trip as text, and run over the toy model: draws and bills."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from tokenscale.core.backend import Completion
from tokenscale.core.data import Ask, Candidate, Result
from tokenscale.core.decode import LocalBackend
from tokenscale.core.errors import ArgumentError, PipelineError, PromptError, UnknownNameError
from tokenscale.core.prompt import Prompt
from tokenscale.core.run import run_problems
from tokenscale.core.strategy import SequenceStrategy
from tokenscale.dsl import to_text
from tokenscale.models.toy import ToyModel
from tokenscale.pipeline import Pipeline
from tokenscale.sequence_level.adaptive_self_consistency import AdaptiveSelfConsistency
from tokenscale.sequence_level.beam_search import BeamSearch
from tokenscale.sequence_level.best_of_n import BestOfN, WeightedBestOfN
from tokenscale.sequence_level.constrained import Constrained
from tokenscale.sequence_level.deepconf import DeepConf
from tokenscale.sequence_level.early_stopping_self_consistency import EarlyStoppingSelfConsistency
from tokenscale.sequence_level.scorers.function import FunctionScorer
from tokenscale.sequence_level.scorers.judge import LLMJudge
from tokenscale.sequence_level.scorers.reward import ProcessRewardScorer
from tokenscale.sequence_level.scorers.self_certainty import SelfCertainty
from tokenscale.sequence_level.self_consistency import SelfConsistency
from tokenscale.sequence_level.step_beam import StepBeam
from tokenscale.sequence_level.universal_self_consistency import UniversalSelfConsistency
from tokenscale.testing import check_sequence_strategy
from tokenscale.token_level.decoders import Greedy
from tokenscale.token_level.roe import RoE

TOY = ToyModel(moe_layers=1, context_length=4096)
QUESTIONS = ["7 = 7 and", "8", "", "Q: 12."]


def shortest(prompt: Prompt, answer: Candidate) -> float:
    return -len(answer.token_ids)


JUDGE = LLMJudge(template=" {answer}. 1 to {scale}: ", max_new_tokens=3)
CHOOSING: list[SequenceStrategy] = [
    SelfConsistency(4, weight="logprob"),
    SelfConsistency(4, weight="confidence"),
    AdaptiveSelfConsistency(7, confidence=0.8),
    AdaptiveSelfConsistency(6, min_k=2, batch=3),
    EarlyStoppingSelfConsistency(window=2, max_k=5),
    BestOfN(3),
    BestOfN(3, FunctionScorer(shortest), answers=None),
    BestOfN(3, JUDGE),
    WeightedBestOfN(4, SelfCertainty()),
    DeepConf(5, keep=0.5, window=3),
    DeepConf(6, keep=0.3, window=2, online=True, warmup=3),
    UniversalSelfConsistency(3, template=" {responses}. Which response? ", max_new_tokens=3),
]
PROMPT = Prompt(text="Q: 12")
PROMPTS = [Prompt(text="Q: 1 + 1?\nA:"), Prompt(token_ids=(1, 2)), Prompt.of([{"role": "user", "content": "1 + 1?"}])]


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("strategy", CHOOSING, ids=to_text)
def test_strategies_keep_their_promises(strategy: SequenceStrategy, prompt: Prompt) -> None:
    check_sequence_strategy(strategy, prompt=prompt)


@pytest.mark.parametrize("strategy", CHOOSING, ids=to_text)
def test_text_and_spec_are_the_strategy(strategy: SequenceStrategy) -> None:
    pipe = Pipeline(strategy)
    assert Pipeline.parse(repr(pipe)) == pipe == Pipeline.from_spec(pipe.to_spec())


class Recording(LocalBackend):
    """Keeps the prompts that it is asked and what it completes."""

    def __init__(self, pipe: Pipeline, signals: frozenset[str]) -> None:
        super().__init__(TOY, pipe.proposer, pipe.aggregator, pipe.decoder, batch_size=5, signals=signals)
        self.prompts, self.found = set[tuple[int, ...]](), list[Candidate]()

    def submit(self, ask: Ask) -> int:
        self.prompts.add(TOY.encode(ask.prompt))
        return super().submit(ask)

    def tick(self) -> list[Completion]:
        done = super().tick()
        self.found += [c for completion in done for c in completion.candidates]
        return done


def recorded(pipe: Pipeline) -> tuple[Result, Recording]:
    """A run's result, and the backend that has seen all that was decoded for it, questions included."""
    signals = frozenset().union(*(s.signals for s in pipe.stages))
    backend = Recording(pipe, signals)
    [result] = run_problems(TOY, backend, pipe.strategies, [PROMPT], seed=2, max_new_tokens=6)
    return result, backend


NESTED = [
    BestOfN(2) | SelfConsistency(3),
    SelfConsistency(2, weight="logprob") | BestOfN(2),
    WeightedBestOfN(2, SelfCertainty()) | AdaptiveSelfConsistency(5, confidence=0.7),
    EarlyStoppingSelfConsistency(2, 4) | BestOfN(2, JUDGE),
    BestOfN(2, JUDGE) | SelfConsistency(2),
    DeepConf(4, keep=0.5, window=2, online=True, warmup=2) | SelfConsistency(2),
    SelfConsistency(2) | DeepConf(4, keep=0.5, window=2, online=True, warmup=2),
    UniversalSelfConsistency(2, template="{responses}:", max_new_tokens=2) | EarlyStoppingSelfConsistency(2, 4),
]
ALL = [*map(Pipeline, CHOOSING), *NESTED]


@pytest.mark.parametrize("pipe", ALL, ids=repr)
def test_the_bill_is_what_was_decoded_and_one_prefill_of_each_prompt(pipe: Pipeline) -> None:
    result, backend = recorded(pipe)
    found, cost = backend.found, result.cost
    assert (cost.new_tokens, cost.rows) == (sum(len(c.token_ids) for c in found), sum(c.cost.rows for c in found))
    # All that was sampled is shown; only the answers to questions are left out.
    leaves = {c.stream.path: c.token_ids for c in result.candidates}
    asked = [c for c in found if {"judge", "choice"} & set(c.stream.path)]
    assert {c.stream.path: c.token_ids for c in found if c not in asked} == leaves
    assert len(result.candidates) == len(found) - len(asked)
    # A question begins with the prompt, so a part of its own prefill is there already.
    decoding, first = sum(c.cost.flops for c in found), prefill_flops(TOY.encode(PROMPT))
    least, most = decoding + first, decoding + sum(map(prefill_flops, backend.prompts))
    assert cost.flops == pytest.approx(most, rel=1e-12) if not asked else least < cost.flops < most


def prefill_flops(prompt: tuple[int, ...]) -> float:
    shape, [(per_key, _)] = TOY.shape, TOY.shape.attention
    return sum(shape.dense_flops + shape.expert_flops + per_key * (i + 1) for i in range(len(prompt) - 1))


@pytest.mark.parametrize("pipe", [*NESTED, Pipeline(DeepConf(6, keep=0.3, window=2, online=True, warmup=3))], ids=repr)
def test_results_depend_on_neither_batch_nor_order(pipe: Pipeline) -> None:
    keyed = [Prompt(text=q, key=f"problem-{i}") for i, q in enumerate(QUESTIONS[:3])]
    wanted = pipe.run(TOY, keyed, seed=3, max_new_tokens=3, batch_size=1)
    order = random.Random(0).sample(range(len(keyed)), len(keyed))
    found = pipe.run(TOY, [keyed[i] for i in order], seed=3, max_new_tokens=3, batch_size=7)
    assert found == [wanted[i] for i in order]


@pytest.mark.parametrize("inner", [None, BestOfN(2), SelfConsistency(2)], ids=repr)
def test_a_vote_that_ends_early_is_the_beginning_of_the_full_vote(inner: SequenceStrategy | None) -> None:
    inside = () if inner is None else (inner,)
    full = Pipeline(*inside, SelfConsistency(8)).run(TOY, QUESTIONS, max_new_tokens=3)
    for strategy in (AdaptiveSelfConsistency(8, confidence=0.7), EarlyStoppingSelfConsistency(1, 8)):
        early = Pipeline(*inside, strategy).run(TOY, QUESTIONS, max_new_tokens=3)
        for short, long in zip(early, full, strict=True):
            assert short.winner.members == long.winner.members[: len(short.winner.members)]
            assert short.cost.new_tokens == sum(len(c.token_ids) for c in short.candidates)
        drawn = [len(result.winner.members) for result in early]
        assert min(drawn) < 8
    one, two = (Pipeline(*inside, SelfConsistency(k)).run(TOY, QUESTIONS, max_new_tokens=3) for k in (1, 2))
    assert [r.winner.members for r in one] == [r.winner.members[:1] for r in two]


def test_online_candidates_are_offline_ones_that_end_early() -> None:
    offline = DeepConf(9, keep=0.3, window=3)
    online = replace(offline, online=True, warmup=3)
    wholes, parts = (Pipeline(s).run(TOY, QUESTIONS, max_new_tokens=12) for s in (offline, online))
    ended = 0
    for whole, part in zip(wholes, parts, strict=True):
        for full, cut in zip(whole.candidates, part.candidates, strict=True):
            assert cut.token_ids == full.token_ids[: len(cut.token_ids)]
            assert (cut.finish_reason == "stop_rule") or cut.token_ids == full.token_ids
        assert all(c.finish_reason != "stop_rule" for c in part.candidates[:3])
        ended += sum(c.finish_reason == "stop_rule" for c in part.candidates)
        assert part.cost.new_tokens == sum(len(c.token_ids) for c in part.candidates)
        assert part.cost.new_tokens <= whole.cost.new_tokens
    assert ended >= 5


def test_the_votes_of_a_run_are_the_weights_of_its_candidates() -> None:
    [result] = Pipeline(SelfConsistency(6, weight="confidence")).run(TOY, ["Q: 1"], max_new_tokens=5)
    means = [(c.answer, sum(c.signal("confidence")) / len(c.token_ids)) for c in result.candidates]
    for answer, weight in result.votes:
        assert weight == pytest.approx(sum(mean for name, mean in means if name == answer), rel=1e-12)


def test_a_judge_scores_what_is_shown() -> None:
    [result] = Pipeline(BestOfN(4, JUDGE)).run(TOY, ["Q: 1"], max_new_tokens=5)
    scores = [member.score for member in result.winner.members]
    assert all(score is not None and (score == 0 or 1 <= score <= 10) for score in scores)
    named = [m for m in result.winner.members if m.answer is not None]
    assert result.winner.score == max(m.score or 0 for m in named)


@pytest.mark.parametrize("pipe", ALL, ids=repr)
def test_one_token_is_enough(pipe: Pipeline) -> None:
    for result in pipe.run(TOY, ["Q: 1", ""], max_new_tokens=1):
        assert all(len(c.token_ids) == 1 for c in result.candidates)


def test_a_question_beyond_the_context_is_refused() -> None:
    small = ToyModel(moe_layers=1, context_length=60)
    with pytest.raises(PromptError, match="context"):
        Pipeline(UniversalSelfConsistency(3)).run(small, ["Q: 1"], max_new_tokens=5)


@pytest.mark.parametrize("strategy", CHOOSING, ids=to_text)
def test_a_choice_without_chance_is_refused(strategy: SequenceStrategy) -> None:
    with pytest.raises(PipelineError, match="would choose among equal candidates"):
        Pipeline(Greedy(), strategy)


def test_a_second_choice_over_one_search_is_refused() -> None:
    """Every copy of the inner choice gets the same texts."""
    search = BeamSearch(width=4, num_return=2)
    for inner in (BestOfN(2), StepBeam(1, 2, step=" ")):
        with pytest.raises(PipelineError, match=r"SelfConsistency\(k=2\) would choose among equal candidates"):
            Pipeline(search, inner, SelfConsistency(2))
    assert len(Pipeline(RoE(3), search, BestOfN(2), SelfConsistency(2))) == 4


@pytest.mark.parametrize("kind", [["number"], {"number": 1}, 5])
def test_names_are_texts(kind: Any) -> None:
    for name, strategy in (("answers", SelfConsistency), ("answers", BestOfN), ("score", DeepConf)):
        with pytest.raises(UnknownNameError, match="unknown"):
            strategy(2, **{name: kind})
    with pytest.raises(UnknownNameError, match="unknown reduction"):
        ProcessRewardScorer(reduce=kind)
    with pytest.raises(ArgumentError, match="online must be True or False"):
        DeepConf(2, online=kind)


def test_rounds_over_a_search_that_gives_all_at_once_are_refused() -> None:
    search = BeamSearch(width=4, num_return=2)
    [result] = (search | BestOfN(2)).run(TOY, ["8"], max_new_tokens=3)
    assert len(result.candidates) == 2
    assert (search | DeepConf(2)).decoder == search
    for strategy in (
        AdaptiveSelfConsistency(4),
        EarlyStoppingSelfConsistency(2, 4),
        DeepConf(4, online=True, warmup=2),
    ):
        with pytest.raises(
            PipelineError, match=r"asks in rounds, and one BeamSearch\(.*\n.*around it, or num_return=1"
        ):
            Pipeline(search, strategy)


def test_a_scorer_is_no_stage() -> None:
    with pytest.raises(PipelineError, match=r"LLMJudge\(.*is a scorer.*\n.*BestOfN\(n=8, scorer=LLMJudge"):
        Pipeline(LLMJudge())


def test_a_judge_under_a_constraint_always_gives_a_number() -> None:
    judge = replace(JUDGE, constraint=Constrained(choice=tuple("123456789")))
    pipe = Pipeline(BestOfN(4, judge, answers=None))
    assert Pipeline.parse(repr(pipe)) == pipe
    [result] = pipe.run(TOY, ["Q: 1"], max_new_tokens=5)
    assert {member.score for member in result.winner.members} <= set(map(float, range(1, 10)))
    assert result.notes == ()
    # The candidates are not bound by it.
    assert any(c.text not in "123456789" for c in result.candidates)
