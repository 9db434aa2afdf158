"""Counts guard the ratios of docs/benchmarks.md without a clock; the counter itself is checked against the bill."""

from __future__ import annotations

import pytest
import torch

import tokenscale as ts
from tokenscale.bench.memory import tensor_bytes
from tokenscale.bench.part import Sizes
from tokenscale.bench.sampling import Prompts, Vote, endings
from tokenscale.bench.steps import Step
from tokenscale.bench.subject import Subject
from tokenscale.bench.work import Tally, counted

SMALL = Sizes(k=8, prompt=64, prompts=24, longest=40, new_tokens=12)


def greedy(subject: Subject, batch: int, tokens: int) -> tuple[Tally, list[ts.Result]]:
    prompts = [ts.Prompt(token_ids=subject.prompt(16, number)) for number in range(batch)]
    with counted(subject.lm) as tally:
        results = ts.Pipeline(ts.Greedy()).run(subject.lm, prompts, max_new_tokens=tokens)
    return tally, results


def test_one_problem_is_counted_as_its_bill_says(tiny: Subject) -> None:
    tally, [result] = greedy(tiny.ending_at(None), batch=1, tokens=6)
    cost = result.cost
    assert tally.expert_loads == cost.expert_loads
    assert tally.rows == cost.rows
    assert tally.prefill_tokens + 1 == cost.prompt_tokens
    assert tally.step_bytes + tally.prefill_bytes == pytest.approx(cost.bytes)


def test_greedy_of_a_batch_is_a_forward_a_token(tiny: Subject) -> None:
    tally, _ = greedy(tiny.ending_at(None), batch=16, tokens=6)
    assert tally.steps == 6
    assert tally.prefill_tokens == 16 * 15
    assert tally.prefills <= 2


def test_a_vote_prefills_its_prompt_once(tiny: Subject) -> None:
    vote = Vote(tiny.ending_at(endings(tiny.vocabulary, 6)), SMALL)
    vote.prepare()
    with counted(vote.subject.lm) as tally:
        vote()
    assert tally.prefill_tokens == 63
    longest = max(len(c.token_ids) for c in vote.result.candidates)
    assert tally.steps == longest
    assert tally.sequences == vote.tokens[0]  # who has ended is not run
    assert len({len(c.token_ids) for c in vote.result.candidates}) > 1


def test_many_prompts_leave_no_gaps(tiny: Subject) -> None:
    prompts = Prompts(tiny.ending_at(endings(tiny.vocabulary, 6)), SMALL)
    prompts.prepare()
    with counted(prompts.subject.lm) as tally:
        prompts()
    assert tally.sequences == prompts.tokens[0]
    assert tally.prefill_tokens == sum(len(ids) - 1 for ids in prompts.asked)
    assert tally.steps <= 3 * SMALL.new_tokens  # batches of 16 one after another would take two full lengths


@pytest.mark.parametrize("n", [8, 32])
def test_a_roe_step_is_one_forward_that_loads_each_expert_once(tiny: Subject, n: int) -> None:
    step = Step(tiny.lm, tiny.prompt(20), n)
    with counted(tiny.lm) as tally:
        step()
    assert (tally.steps, tally.rows, tally.prefills) == (1, n, 0)
    assert tally.expert_loads <= 2 * min(64, 8 * n)


def test_rows_are_not_stored(tiny: Subject) -> None:
    steps = {n: Step(tiny.lm, tiny.prompt(512), n) for n in (1, 64)}
    for step in steps.values():
        step()
    # Room for the rows of one forward may be held, which is no more than 64 of 512 columns.
    assert tensor_bytes(steps[64].proposals) <= 1.12 * tensor_bytes(steps[1].proposals)


def test_a_prompt_is_stored_once_for_all_its_samples(tiny: Subject) -> None:
    prompt, streams = tiny.prompt(512), [ts.Stream((0, copy)) for copy in range(8)]
    one, eight = (ts.Plain().start(tiny.lm, [prompt] * k, streams[:k]) for k in (1, 8))
    for proposals, k in ((one, 1), (eight, 8)):
        proposals.propose(torch.tensor([5] * k))
    assert tensor_bytes(eight) < 2 * tensor_bytes(one)  # room for 64 new tokens each; eight copies would be 8


def test_scoring_takes_few_forwards(tiny: Subject) -> None:
    with counted(tiny.lm) as tally:
        tiny.lm.score([tiny.prompt(64)], ts.RoE(n=4, tau=0.3, clean_layers=0))
    assert tally.steps == 0


def test_storages_are_counted_once_and_models_not() -> None:
    class Holder:
        __slots__ = ("one", "rest")

        def __init__(self) -> None:
            whole = torch.zeros(10)
            self.one, self.rest = (
                whole[:3],
                {"a": [whole, torch.zeros(2, dtype=torch.int64)], "b": torch.nn.Linear(9, 9)},
            )

    assert tensor_bytes(Holder()) == 40 + 16


def test_the_model_is_as_it_was(tiny: Subject) -> None:
    with pytest.raises(RuntimeError), counted(tiny.lm):
        raise RuntimeError
    assert "step" not in vars(tiny.lm)
    assert "prefill" not in vars(tiny.lm)
