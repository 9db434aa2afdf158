"""Whole pipelines on the toy model: streams, votes, bills and notes, in any batch and order."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from tokenscale.core.cost import popcount
from tokenscale.core.data import Ask, Candidate
from tokenscale.core.noise import Stream, UniformReader, prompt_key
from tokenscale.core.prompt import Prompt
from tokenscale.core.stage import Kind, Stage
from tokenscale.core.strategy import Asks, SequenceStrategy
from tokenscale.models.toy import ToyModel
from tokenscale.pipeline import Pipeline
from tokenscale.sequence_level.answers import extract
from tokenscale.sequence_level.chain_of_thought import ChainOfThought
from tokenscale.sequence_level.self_consistency import SelfConsistency
from tokenscale.token_level.decoders import Greedy, Sample
from tokenscale.token_level.roe import RoE

TOY = ToyModel(moe_layers=3)
QUESTIONS = ["Q: 1 + 1\nA:", "Q: 7 = 7", "Q: 1 + 1\nA:", "8", "Q: 12.\nA: so"]


@pytest.mark.parametrize(
    "pipe",
    [
        Pipeline(Greedy()),
        RoE(n=3, tau=1.0) | SelfConsistency(k=3),
        RoE(n=2, tau=1.0) | ChainOfThought("7 = 7") | SelfConsistency(k=2) | SelfConsistency(k=2),
    ],
    ids=str,
)
def test_results_depend_on_neither_batch_nor_order(pipe: Pipeline) -> None:
    keyed = [Prompt(text=q, key=f"problem-{i}") for i, q in enumerate(QUESTIONS)]
    # Equality is exact: texts, log-probabilities, votes and costs, to the last bit.
    wanted = pipe.run(TOY, keyed, seed=3, max_new_tokens=6, batch_size=1)
    order = list(range(len(keyed)))
    for batch_size in (3, 100):
        random.Random(batch_size).shuffle(order)
        found = pipe.run(TOY, [keyed[i] for i in order], seed=3, max_new_tokens=6, batch_size=batch_size)
        assert found == [wanted[i] for i in order]
    assert pipe.run(TOY, keyed[3:4], seed=3, max_new_tokens=6) == wanted[3:4]


def sampled(prompt: tuple[int, ...], stream: Stream, temperature: float, limit: int) -> tuple[int, ...]:
    """One token after another by the inverse distribution function, from the model's exact probabilities."""
    uniforms, ids = UniformReader(stream), list(prompt)
    while len(ids) < len(prompt) + limit:
        weights = np.exp(TOY.exact_log_probs(ids) / temperature)
        ends = np.cumsum(weights) / weights.sum()
        ids.append(int(np.searchsorted(ends, uniforms.at(len(ids)), side="right")))
        if ids[-1] in TOY.eos_ids:
            break
    return tuple(ids[len(prompt) :])


def test_nested_votes_draw_from_nested_streams() -> None:
    [result] = (SelfConsistency(k=2) | SelfConsistency(k=3)).run(TOY, ["Q: 1"], seed=5, max_new_tokens=5)
    ids = TOY.encode(Prompt(text="Q: 1"))
    paths = [(5, prompt_key(ids, 0), i, j) for i in range(3) for j in range(2)]
    assert [c.stream.path for c in result.candidates] == paths
    assert [c.token_ids for c in result.candidates] == [sampled(ids, Stream(path), 0.7, 5) for path in paths]


def majority(candidates: tuple[Candidate, ...]) -> Counter[str | None]:
    found = Counter(extract(c.text) for c in candidates)
    del found[None]
    return found or Counter({None: len(candidates)})


def test_a_vote_of_votes_is_the_vote_of_its_inner_winners() -> None:
    pipe = RoE(n=2, tau=1.0) | SelfConsistency(k=4) | SelfConsistency(k=3)
    for result in pipe.run(TOY, QUESTIONS, max_new_tokens=5):
        assert len(result.candidates) == 12
        inner = [result.candidates[i : i + 4] for i in (0, 4, 8)]
        assert [m.members for m in result.winner.members] == inner
        for member in result.winner.members:
            assert dict(member.votes) == majority(member.members)
            assert member.votes[0][0] == member.answer == extract(member.text)
        assert dict(result.votes) == majority(result.winner.members)
        assert result.answer == extract(result.text) == result.votes[0][0]


def test_five_candidates_are_the_first_five_of_ten() -> None:
    five, ten = ((RoE(n=2, tau=1.0) | SelfConsistency(k=k)).run(TOY, QUESTIONS, max_new_tokens=4) for k in (5, 10))
    assert [r.candidates for r in five] == [r.candidates[:5] for r in ten]


def test_seeds_and_repeats_of_a_prompt_draw_differently() -> None:
    pipe = Pipeline(SelfConsistency(k=4))
    one, _, again, *_ = pipe.run(TOY, QUESTIONS, seed=0, max_new_tokens=6)
    [other] = pipe.run(TOY, QUESTIONS[:1], seed=1, max_new_tokens=6)
    texts = [[c.text for c in result.candidates] for result in (one, again, other)]
    assert texts[0] != texts[1]
    assert texts[0] != texts[2]


def test_the_bill_of_five_answers() -> None:
    n, k = 3, 5
    [result] = (RoE(n=n, tau=1.0) | SelfConsistency(k=k)).run(TOY, ["Q: 12"], max_new_tokens=6)
    prompt, shape = TOY.encode(Prompt(text="Q: 12")), TOY.shape
    lengths = [len(c.token_ids) for c in result.candidates]
    assert len(lengths) == k
    cost = result.cost
    assert (cost.prompt_tokens, cost.new_tokens, cost.rows) == (len(prompt), sum(lengths), n * sum(lengths))
    # One forward for the prompt without its last token, then all candidates in lockstep.
    assert cost.sequential_steps == 1 + max(lengths)
    [(per_key, _)] = shape.attention
    prefill = sum(shape.dense_flops + shape.expert_flops + per_key * (i + 1) for i in range(len(prompt) - 1))
    row = shape.dense_flops + shape.head_flops + shape.expert_flops
    steps = [n * (row + per_key * (len(prompt) + step)) for length in lengths for step in range(length)]
    assert cost.flops == pytest.approx(prefill + sum(steps), rel=1e-12)
    assert cost.flops == pytest.approx(prefill + sum(c.cost.flops for c in result.candidates), rel=1e-12)
    # Experts are a union in every step: fewer loads than the candidates' own, more than any one's.
    loads = popcount(TOY.prefill([prompt[:-1]]).prefills[0].experts)
    alone = [c.cost.expert_loads for c in result.candidates]
    assert max(alone) < cost.expert_loads - loads < sum(alone)


def test_chain_of_thought_is_the_prompt_with_the_trigger() -> None:
    trigger = " Let's think step by step."
    cases: list[tuple[Any, Any]] = [
        ("Q: 1\nA:", f"Q: 1\nA:{trigger}"),
        (Prompt(token_ids=(3, 1)), Prompt(token_ids=(3, 1), suffix=trigger)),
        ([{"role": "user", "content": "1?"}], [{"role": "user", "content": f"1?\n{trigger.strip()}"}]),
    ]
    for given, meant in cases:
        [asked] = Pipeline(ChainOfThought()).run(TOY, [given], max_new_tokens=6)
        [wanted] = Pipeline(Greedy()).run(TOY, [meant], max_new_tokens=6)
        assert asked.candidates[0].token_ids == wanted.candidates[0].token_ids
        assert asked.cost == wanted.cost
        assert asked.prompt == Prompt.of(given)


def test_stop_strings_and_length_reach_every_candidate() -> None:
    [result] = Pipeline(SelfConsistency(k=6)).run(TOY, ["Q: 1"], max_new_tokens=5, stop_strings=["7"])
    assert all(len(c.token_ids) <= 5 and "7" not in c.text for c in result.candidates)
    assert {c.finish_reason for c in result.candidates} >= {"stop_string"}


def test_traces_are_kept_on_request() -> None:
    pipe = RoE(n=2) | SelfConsistency(k=2)
    [plain], [traced] = (pipe.run(TOY, ["Q: 1"], max_new_tokens=3, trace=trace) for trace in (False, True))
    assert all(c.trace is None for c in plain.candidates)
    assert all(c.trace is not None and len(c.trace.entropy) == len(c.token_ids) for c in traced.candidates)
    assert [replace(c, trace=None) for c in traced.candidates] == list(plain.candidates)


def test_progress_counts_problems() -> None:
    seen: list[tuple[int, int]] = []
    Pipeline(SelfConsistency(k=2)).run(
        TOY, QUESTIONS, max_new_tokens=2, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(done, len(QUESTIONS)) for done in range(len(QUESTIONS) + 1)]


@pytest.mark.parametrize(
    ("decoder", "tau", "expected"),
    [
        # Noise of this size changes no choice at all, noise of tau = 3 most of them.
        (Greedy(), 1e-9, ["RoE changed none of", "only 0 of 4 candidates differ from the first: Greedy() leaves all"]),
        (Sample(temperature=0.7), 1e-9, ["RoE changed none of"]),
        (Greedy(), 3.0, []),
    ],
)
def test_notes_say_when_chance_changes_nothing(decoder: Stage, tau: float, expected: list[str]) -> None:
    pipe = RoE(n=2, tau=tau, clean_layers=0) | decoder | SelfConsistency(k=4)
    [result] = pipe.run(TOY, ["Q: 1"], max_new_tokens=8)
    assert len(result.notes) == len(expected)
    assert all(note.startswith(start) for note, start in zip(result.notes, expected, strict=True))
    # Without a vote there is nothing to compare.
    [single] = Pipeline(RoE(n=2, tau=1.0), Greedy()).run(TOY, ["Q: 1"], max_new_tokens=8)
    assert single.notes == ()


@dataclass(frozen=True)
class Proved(SequenceStrategy):
    """A search that knows its answer, which no text says."""

    kind = Kind.SEARCH

    def solve(self, ask: Ask) -> Asks:
        [candidates] = yield [ask]
        return [replace(candidates[0], answer="proved")]


def test_an_answer_that_a_search_found_is_kept() -> None:
    assert [r.answer for r in Pipeline(Proved()).run(TOY, ["7 = 7"], max_new_tokens=4)] == ["proved"]


def test_without_a_vote_the_answer_is_the_texts_number() -> None:
    results = Pipeline(ChainOfThought("7 = 7")).run(TOY, QUESTIONS, max_new_tokens=12)
    assert [r.answer for r in results] == [extract(r.text) for r in results]
    assert any(r.answer is not None for r in results)


def test_an_answer_that_does_not_meet_its_constraint_says_so() -> None:
    lm = ToyModel()
    [met] = Pipeline.parse('Constrained(regex="[0-9]{1,3}")').run(lm, ["Q:"], max_new_tokens=3)
    [unmet] = Pipeline.parse('Constrained(regex="[0-9]{9}")').run(lm, ["Q:"], max_new_tokens=3)
    assert met.notes == ()
    assert unmet.notes == (
        "the answer does not meet Constrained(regex='[0-9]{9}'): raise max_new_tokens, or look whether the model "
        "writes what the constraint (or its `after`) waits for.",
    )
    [voted] = Pipeline.parse('Constrained(regex="[0-9]{9}") | SelfConsistency(k=3)').run(lm, ["Q:"], max_new_tokens=3)
    assert "3 of 3 answers do not meet" in voted.notes[-1]
