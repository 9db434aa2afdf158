"""Strategies that go on with texts, run over the toy model: many problems at once, bills, and what they nest in."""

from __future__ import annotations

from typing import Any

import pytest

from tokenscale.core.data import Result
from tokenscale.core.prompt import Prompt
from tokenscale.core.stage import Kind
from tokenscale.models.toy import ToyModel
from tokenscale.pipeline import Pipeline
from tokenscale.testing import check_sequence_strategy

LM = ToyModel(("7", "a", "\n", "####"), spelling="QWSoit ", moe_layers=1, experts=4, sharpness=2.5, context_length=48)
STEPS = "step=('\\n', 'a'), max_steps=3"
PIPELINES = (
    f"StepBeam(width=2, expand=2, {STEPS})",
    f"DVTS(subtrees=2, expand=2, scorer=SelfCertainty(), {STEPS})",
    f"ParticleFilter(particles=3, resampling='systematic', {STEPS}) | SelfConsistency(k=2)",
    "BudgetForcing(min=3, max=5, end='####') | SelfConsistency(k=3)",
    f"RoE(n=2, tau=1.0, clean_layers=0) | ChainOfThought('So', extract=' So') | ParticleFilter(particles=2, {STEPS})",
    f"BudgetForcing(min=3) | ChainOfThought('So', extract='So it') | StepBeam(width=1, expand=2, {STEPS})",
)


def problems(count: int) -> list[Prompt]:
    return [Prompt(text="Q" * (1 + i % 3), key=f"problem {i}") for i in range(count)]


def run(text: str, count: int = 40, batch_size: int = 16, **options: Any) -> list[Result]:
    pipe = Pipeline.parse(text)
    return pipe.run(LM, problems(count), max_new_tokens=7, batch_size=batch_size, stop_strings=["77"], **options)


@pytest.mark.parametrize("text", PIPELINES)
def test_batches_and_order_change_nothing(text: str) -> None:
    """40 problems in batches of 16 (12 of the longer pipelines); the first in batches of 7 and, in reverse, singly."""
    together, pipe = run(text, 12 if "ChainOfThought" in text else 40), Pipeline.parse(text)
    sevens = run(text, count=9, batch_size=7)
    singles = pipe.run(LM, problems(40)[4::-1], max_new_tokens=7, batch_size=1, stop_strings=["77"])[::-1]
    assert together[:9] == sevens
    assert together[:5] == singles
    assert len({c.token_ids for r in together for c in r.candidates}) > 5
    assert len({r.cost.sequential_steps for r in together}) > 2


@pytest.mark.parametrize("text", PIPELINES)
def test_every_token_that_was_decided_is_billed(text: str) -> None:
    decided: list[tuple[int, ...]] = []
    results = run(text, count=5, on_token=lambda *event: decided.append(event))
    assert sum(r.cost.new_tokens for r in results) == len(decided)
    for result in results:
        assert result.winner in [*result.winner.members, result.winner]
        for c in result.candidates:
            assert len(c.log_probs) == len(c.token_ids)
            kept = c.token_ids[: len(c.token_ids) - c.ending]
            assert LM.decode(kept) + c.rest == c.text or c.stopped_by == "77"


@pytest.mark.parametrize("text", PIPELINES)
def test_traces_and_signals_have_one_entry_a_token(text: str) -> None:
    for result in run(f"{text} | BestOfN(n=2, scorer=SelfCertainty())", count=2, trace=True):
        for c in result.candidates:
            assert c.trace is not None
            assert len(c.trace.entropy) == len(c.trace.rows) == len(c.token_ids) == len(c.signal("self_certainty"))


@pytest.mark.parametrize("text", PIPELINES)
def test_a_full_context_ends_the_answers(text: str) -> None:
    pipe = Pipeline.parse(text)
    for length in (36, 39, 40, 41, 42, 43):
        [result] = pipe.run(LM, ["Q" * length], max_new_tokens=30)
        for c in result.candidates:
            assert length + len(c.token_ids) <= 48 + 3  # and at most what was to be put behind a full context


@pytest.mark.parametrize(
    "prompt", [Prompt(text="Q"), Prompt(token_ids=(1, 2)), Prompt.of([{"role": "user", "content": "Q"}])]
)
@pytest.mark.parametrize("text", PIPELINES)
def test_every_strategy_keeps_its_promises(text: str, prompt: Prompt) -> None:
    for strategy in Pipeline.parse(text).strategies:
        if strategy.kind is not Kind.CHOOSING:
            check_sequence_strategy(strategy, prompt=prompt)


def test_seeds_reproduce_and_differ() -> None:
    for text in PIPELINES[2:4]:
        first, again, other = (run(text, count=4, seed=seed) for seed in (0, 0, 1))
        assert first == again
        assert [r.text for r in first] != [r.text for r in other]
