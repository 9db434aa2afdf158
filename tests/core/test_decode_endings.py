"""How candidates end, and what may be chosen: end tokens, stop strings, lengths, suppressed tokens, processors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.core.asks import END, PROMPTS, ask
from tokenscale.core.errors import ModelError, PipelineError
from tokenscale.core.model import State
from tokenscale.core.plan import PLAIN, RowPlan
from tokenscale.core.step import Step
from tokenscale.models.toy import ToyModel
from tokenscale.token_level.aggregators import TokenVote
from tokenscale.token_level.decoders import Sample
from tokenscale.token_level.plain import Plain


def test_the_end_token_ends_a_candidate(run: Any) -> None:
    [completion] = run([ask(k=50, new=20)], Sample(2.0))
    ended = [c for c in completion.candidates if c.finish_reason == "eos"]
    assert len(ended) > 10
    assert all(c.token_ids.index(END) == len(c.token_ids) - 1 for c in ended)
    others = [c for c in completion.candidates if c.finish_reason == "length"]
    assert all(END not in c.token_ids and len(c.token_ids) == 20 for c in others)


def test_stop_strings_end_a_candidate_where_they_appear(run: Any, lm: ToyModel) -> None:
    stops = ("ab1", "bb")
    free = run([ask(path=("stop",), k=60, new=15)], Sample(1.5))[0].candidates
    stopped = run([ask(path=("stop",), k=60, new=15, stop_strings=stops)], Sample(1.5))[0].candidates
    spanning = 0
    for long, short in zip(free, stopped, strict=True):
        ends = [n for n in range(1, len(long.token_ids) + 1) if any(s in lm.decode(long.token_ids[:n]) for s in stops)]
        kept = ends[0] if ends and long.token_ids[ends[0] - 1] != END else len(long.token_ids)
        assert short.token_ids == long.token_ids[:kept]
        assert not any(s in short.text for s in stops)
        if ends:
            assert short.finish_reason == "stop_string"
            assert lm.decode(short.token_ids).startswith(short.text)
            spanning += 1
    assert spanning > 10


def test_length_is_bounded_by_the_ask_and_the_context(run: Any, lm: ToyModel) -> None:
    suppressed = ToyModel(("a", "b", "1"), spelling="", context_length=8, suppressed_ids=(END,))
    done = run([ask((1, 2, 3), 4), ask((1, 2, 3), 100), ask((1,) * 7, 100)], model=suppressed)
    assert [len(c.candidates[0].token_ids) for c in done] == [4, 5, 1]
    assert {c.candidates[0].finish_reason for c in done} == {"length"}


def test_suppressed_tokens_are_never_chosen_and_log_probs_stay_the_models(run: Any, lm: ToyModel) -> None:
    banned = ToyModel(("a", "b", "1"), spelling="", moe_layers=3, experts=4, sharpness=2.0, suppressed_ids=(END, 2))
    [completion] = run([ask(k=40, new=10)], Sample(1.0), model=banned)
    for found in completion.candidates:
        assert not {END, 2} & set(found.token_ids)
    first = completion.candidates[0]
    assert first.log_probs[0] == pytest.approx(lm.exact_log_probs((1, 2, 3))[first.token_ids[0]], abs=1e-6)


def test_processors_see_the_ids_and_change_what_is_chosen(run: Any, lm: ToyModel) -> None:
    seen: list[list[int]] = []

    def forbid_repeats(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        seen.append(ids[0].tolist())
        scores[:, ids[0, -1]] = float("-inf")
        return scores

    prompts = PROMPTS[:3]
    done = run([ask(p) for p in prompts], processor=forbid_repeats, batch_size=2)
    for prompt, completion in zip(prompts, done, strict=True):
        [found] = completion.candidates
        ids = list(prompt)
        for token, log_prob in zip(found.token_ids, found.log_probs, strict=True):
            exact = lm.exact_log_probs(ids)
            assert ids in seen
            assert log_prob == pytest.approx(exact[token], abs=1e-6)
            exact[ids[-1]] = -np.inf
            assert token == exact.argmax()
            ids.append(token)


def test_processors_that_allow_nothing_are_refused(run: Any) -> None:
    with pytest.raises(PipelineError, match="logits processors left no token to choose"):
        run([ask()], processor=lambda ids, scores: torch.full_like(scores, float("-inf")))


def test_where_only_suppressed_tokens_are_possible_the_first_row_decides(run: Any) -> None:
    """A vote of one row allows its favourite only, and that one is never to be generated."""

    @dataclass(frozen=True)
    class Voted(Plain):
        """The model with a vote as its aggregator."""

        default_aggregator = TokenVote(0.0)

    exact = ToyModel().exact_log_probs(PROMPTS[0])
    second, favourite = exact.argsort()[-2:].tolist()
    [done] = run([ask(PROMPTS[0], 1)], proposer=Voted(), model=ToyModel(suppressed_ids=[favourite]))
    [found] = done.candidates
    assert (found.token_ids, found.fallbacks) == ((second,), 1)
    assert found.log_probs[0] == pytest.approx(exact[second], abs=1e-5)


def test_a_model_all_of_whose_tokens_are_suppressed_is_refused(run: Any) -> None:
    model = ToyModel()
    with pytest.raises(PipelineError, match="suppressed tokens, constraints and logits processors left no token"):
        run([ask(PROMPTS[0])], model=ToyModel(suppressed_ids=range(model.vocab_size)))


def test_logits_that_are_not_numbers_are_refused(run: Any) -> None:
    class Broken(ToyModel):
        """Its logits are NaN."""

        def step(self, state: State, tokens: torch.Tensor, plan: RowPlan = PLAIN) -> Step:
            step = super().step(state, tokens, plan)
            return replace(step, logits=step.logits * float("nan"))

    with pytest.raises(ModelError, match="logits are not numbers"):
        run([ask()], model=Broken(("a", "b", "1"), spelling=""))
