"""Work that a fixed run takes, counted: forwards, sequences, prompt tokens, joins. A worse schedule turns these red."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.core.scarce import ScarceModel
from tokenscale.core.admission import Schedule
from tokenscale.core.data import Result
from tokenscale.core.prompt import Prompt
from tokenscale.pipeline import Pipeline

BATCH = 16
MANY = 10**9


def run(
    text: str, count: int, most: int, *, batch_size: int = BATCH, tokens: int = MANY, **layout: bool
) -> tuple[ScarceModel, list[Result], Schedule]:
    lm = ScarceModel(moe_layers=1, experts=3, width=4)
    for name, value in layout.items():
        setattr(lm, name, value)
    schedules: list[Schedule] = []
    prompts = [Prompt(token_ids=(1 + i % 7, 1 + i // 7, *[2] * (i % 5)), key=str(i)) for i in range(count)]
    results = Pipeline.parse(text).run(
        lm,
        prompts,
        max_new_tokens=most,
        batch_size=batch_size,
        max_batch_tokens=tokens,
        on_schedule=schedules.append,
    )
    return lm, results, schedules[0]


def test_sixty_four_texts_of_mixed_length() -> None:
    """Close to sum of lengths / batch, and far from what batches of 16 take that wait for their longest."""
    lm, results, schedule = run("Sample(temperature=1.0)", 64, 60)
    lengths = [len(result.winner.token_ids) for result in results]
    assert min(lengths) < 5
    assert max(lengths) > 40
    assert lm.stepped == sum(lengths)
    assert schedule.steps == lm.ran["step"]
    assert schedule.joins == lm.ran["prefill"] == 1 + lm.ran["join"]
    assert lm.prefilled == sum(len(result.prompt.token_ids or ()) - 1 for result in results)
    ideal, in_batches = sum(lengths) / BATCH, sum(max(lengths[i : i + BATCH]) for i in range(0, 64, BATCH))
    # The last ones run alone: 184 steps and 14 joins, of 149.4 and 4 at the least, and 240 and 4 in batches.
    assert schedule.steps <= 1.25 * ideal
    assert schedule.steps + schedule.joins <= 0.82 * (in_batches + 4)


@pytest.mark.parametrize("text", ["SelfConsistency(k=8)", "BestOfN(n=8, scorer=LogProb())"])
def test_samples_of_one_prompt_are_prefilled_once(text: str) -> None:
    lm, [result], schedule = run(text, 1, 12)
    assert (lm.ran["prefill"], lm.prefilled) == (1, len(result.prompt.token_ids or ()) - 1)
    assert lm.stepped == sum(len(c.token_ids) for c in result.candidates)
    assert schedule.steps == max(len(c.token_ids) for c in result.candidates)
    assert schedule.started == 8


def test_a_vote_of_many_samples_keeps_its_batch_full() -> None:
    """40 samples in a batch of 8, of a prompt that is stored once: one joins as soon as one ends."""
    _, [result], schedule = run("SelfConsistency(k=40)", 1, 30, batch_size=8, shares_prompts=True)
    lengths = [len(c.token_ids) for c in result.candidates]
    ends = [0] * 8
    for length in lengths:
        ends[ends.index(min(ends))] += length
    assert schedule.steps == max(ends)
    assert schedule.most_tokens == 2 + 8 * 30  # the prompt counts once


def test_beams_of_a_search_count_as_one_and_their_tokens_all() -> None:
    lm, results, schedule = run("BeamSearch(width=3)", 12, 6, batch_size=4)
    assert schedule.started == 12
    assert schedule.most_tokens == max(
        sum(3 * (len(r.prompt.token_ids or ()) + 6) for r in some)
        for some in (results[i : i + 4] for i in range(0, 12, 4))
    )
    assert lm.ran["step"] == schedule.steps <= 3 * 6 + 6


def test_a_bound_on_tokens_costs_steps_and_no_prompt_tokens() -> None:
    wide_lm, wide, wide_schedule = run("Sample(temperature=1.0)", 32, 20)
    lm, narrow, schedule = run("Sample(temperature=1.0)", 32, 20, tokens=100)
    assert [r.winner for r in narrow] == [r.winner for r in wide]
    assert (lm.prefilled, lm.stepped) == (wide_lm.prefilled, wide_lm.stepped)
    assert schedule.most_tokens <= 100
    assert schedule.steps > wide_schedule.steps
    needs = [len(r.prompt.token_ids or ()) + 20 for r in wide]
    assert schedule.steps <= math.ceil(sum(len(r.winner.token_ids) for r in wide) / (100 // max(needs))) + 20


@pytest.mark.parametrize("text", ["SelfConsistency(k=3)", "AdaptiveSelfConsistency(max_k=4)", "BeamSearch(width=2)"])
def test_many_problems_of_a_strategy_share_their_steps(text: str) -> None:
    """Ten problems take a third of the steps that they take one after another, or fewer."""
    _, _, together = run(text, 10, 6)
    alone: Any = run(text, 10, 6, batch_size=1)[2]
    assert together.started == alone.started
    assert 3 * together.steps <= alone.steps
