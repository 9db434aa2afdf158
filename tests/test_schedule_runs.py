"""Whole pipelines whose batch is cut short by bounds and by memory that runs out: the same results and bills."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch

import tokenscale as ts
from tests.core.scarce import ScarceModel
from tokenscale.core import memory
from tokenscale.core.streaming import Piece, Progress

TEXTS = [
    "RoE(n=3, tau=1.0, clean_layers=0) | SelfConsistency(k=3)",
    "RoE(n=2, tau=1.0, clean_layers=0, cache='private') | ChainOfThought() | BestOfN(n=3, scorer=LogProb())",
    "Constrained(regex='[a-z 0-9]{4}.*') | AdaptiveSelfConsistency(max_k=4)",
    'StepBeam(width=2, expand=2, scorer=LogProb(), step=" ")',
    "DeepConf(k=4, warmup=2)",
    "DiverseBeamSearch(width=4, groups=2)",
]
# Calls at which memory runs out, and sequences of a step that are too many.
PLACES, MOST = {3, 9, 14, 30, 31, 52}, 4


@pytest.fixture(autouse=True)
def no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "release", lambda: None)


def prompts(count: int) -> list[ts.Prompt]:
    return [ts.Prompt(text=f"Q: {i} + 1?\nA:", key=str(i)) for i in range(count)]


def scarce() -> ScarceModel:
    lm = ScarceModel(moe_layers=1, experts=4, width=4)
    lm.fails = lambda event, count: event != "prefill" and count > 1 and (count > MOST or lm.ran.total() in PLACES)
    return lm


@pytest.mark.parametrize("text", TEXTS)
def test_results_and_bills_depend_on_no_schedule(text: str) -> None:
    pipe, roomy = ts.Pipeline.parse(text), ScarceModel(moe_layers=1, experts=4, width=4)
    beams, rows = pipe.decoder.width, 2 if "private" in text else 1
    wanted = pipe.run(roomy, prompts(4), max_new_tokens=6, batch_size=1)
    for batch_size, tokens in ((3, "auto"), (16, 150), ("auto", "auto")):
        lm = scarce()
        most = max(MOST, beams * rows)
        lm.fails = lambda event, count, lm=lm, most=most: count > most
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", ts.TokenscaleWarning)
            found = pipe.run(lm, prompts(4), max_new_tokens=6, batch_size=batch_size, max_batch_tokens=tokens)
        assert found == wanted
        assert len(said) == lm.failures


def test_a_stream_does_not_take_back_what_it_has_shown() -> None:
    """Pieces and counts of a vote whose samples are begun again are those of one that has memory."""
    pipe, prompt = ts.Pipeline.parse("Sample(temperature=1.0) | SelfConsistency(k=6)"), prompts(1)[0]
    lm = scarce()
    *wanted, result = pipe.stream(ScarceModel(moe_layers=1, experts=4, width=4), prompt, max_new_tokens=6, batch_size=1)
    with pytest.warns(ts.TokenscaleWarning, match="memory ran out"):
        *events, found = pipe.stream(lm, prompt, max_new_tokens=6, batch_size=6)
    assert lm.failures
    assert found == result
    assert [e for e in events if isinstance(e, Piece)] == [e for e in wanted if isinstance(e, Piece)]
    counts = [e for e in events if isinstance(e, Progress)]
    assert counts == sorted(counts, key=lambda e: (e.ended, e.tokens))
    assert counts[-1] == [e for e in wanted if isinstance(e, Progress)][-1]


def test_an_error_behind_a_halving_cancels_everything() -> None:
    lm = scarce()

    def fails(event: str, count: int) -> bool:
        if lm.failures == 2:
            raise KeyboardInterrupt
        return count > 1

    lm.fails = fails
    schedules: list[ts.Schedule] = []
    pipe = ts.Pipeline.parse("SelfConsistency(k=4)")
    with pytest.warns(ts.TokenscaleWarning), pytest.raises(KeyboardInterrupt):
        pipe.run(lm, prompts(4), max_new_tokens=4, on_schedule=schedules.append)
    assert schedules[0].halvings == 2
    lm.fails = lambda event, count: False
    again = pipe.run(lm, prompts(4), max_new_tokens=4)
    assert again == pipe.run(ScarceModel(moe_layers=1, experts=4, width=4), prompts(4), max_new_tokens=4)


def test_the_demo_model_says_the_same_where_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, up to near-ties, which are counted: tokens and the bill of every problem."""
    lm = ts.load("demo")
    pipe = ts.Pipeline.parse("RoE(n=2, tau=0.3) | SelfConsistency(k=3)")
    asked = [ts.Prompt(text=f"Q: Tom has {i} apples. How many?\nA:", key=str(i)) for i in range(4)]
    wanted = pipe.run(lm, asked, max_new_tokens=8, batch_size=1)
    step, calls = lm.step, []

    def scarce_step(state: Any, tokens: Any, *plan: Any) -> Any:
        found = step(state, tokens, *plan)
        calls.append(len(tokens))
        if len(tokens) > 7 or (len(calls) == 10 and len(tokens) > 1):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return found

    monkeypatch.setattr(lm, "step", scarce_step)
    for bounds in ({"batch_size": 16}, {"batch_size": 3, "max_batch_tokens": 200}):
        calls.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ts.TokenscaleWarning)
            found = pipe.run(lm, asked, max_new_tokens=8, **bounds)
        for one, other in zip(found, wanted, strict=True):
            same = [c.token_ids for c in one.candidates] == [c.token_ids for c in other.candidates]
            assert same or other.near_ties
            if same and not other.near_ties:
                assert replace(one.cost, expert_loads=0) == replace(other.cost, expert_loads=0)
