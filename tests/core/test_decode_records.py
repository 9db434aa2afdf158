"""What the decode loop keeps of every token: near ties, traces, usage and bills."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.core.asks import NOISY, ask
from tokenscale.core.ledger import Ledger, decode_cost
from tokenscale.core.model import State
from tokenscale.core.plan import PLAIN, RowPlan
from tokenscale.core.starting import start_all
from tokenscale.core.step import Step
from tokenscale.core.strategy import Rows
from tokenscale.models.toy import ToyModel
from tokenscale.token_level.decoders import Greedy, Sample
from tokenscale.token_level.one_cache import OneCacheProposals
from tokenscale.token_level.roe import RoE, Samples


def test_near_ties_are_counted(run: Any) -> None:
    class Tied(ToyModel):
        """Tokens a and b are equally likely, and likelier than the rest."""

        def step(self, state: State, tokens: torch.Tensor, plan: RowPlan = PLAIN) -> Step:
            step = super().step(state, tokens, plan)
            step.logits[..., 1:3] = 20.0
            return step

    [completion] = run([ask(new=4)], model=Tied(("a", "b", "1"), spelling=""))
    assert completion.candidates[0].token_ids == (1, 1, 1, 1)
    assert completion.candidates[0].near_ties == 4


def test_traces_describe_every_token(run: Any, lm: ToyModel) -> None:
    [completion] = run([ask(k=2)], Sample(1.0), NOISY, trace=True)
    for found in completion.candidates:
        assert found.trace is not None
        assert found.trace.rows == (4,) * len(found.token_ids)
        assert all(0 < e <= math.log(4) + 1e-6 for e in found.trace.entropy)
        assert all(d >= 0 for d in found.trace.disagreement)
        assert max(found.trace.disagreement) > 1e-3
        assert all(2 <= n <= 4 for n in found.trace.distinct_experts)
        total = sum(found.trace.distinct_experts) * lm.shape.moe_layers
        assert found.routing.distinct_experts == round(total)
        assert found.routing.choices == 3 * 3 * len(found.token_ids)
        assert found.routing.changed > 0
        assert found.routing.expert_sets == 3 * len(found.token_ids)
    [plain] = run([ask()], trace=True)
    trace = plain.candidates[0].trace
    exact = lm.exact_log_probs((1, 2, 3))
    assert trace.entropy[0] == pytest.approx(-(np.exp(exact) * exact).sum(), abs=1e-6)
    assert trace.disagreement == pytest.approx([0.0] * len(trace.rows), abs=1e-6)
    assert run([ask()])[0].candidates[0].trace is None


def test_padding_rows_count_for_nothing(run: Any) -> None:
    """Four rows of which the last is padding are the three rows of a smaller n."""

    class Padded(Samples):
        """The last row is not valid, and not a number."""

        def valid(self, fresh: Any) -> torch.Tensor:
            return (torch.arange(4) < 3).expand(len(fresh), 4)

        def rows(self, logits: torch.Tensor, valid: torch.Tensor | None) -> Rows:
            logits[:, -1] = float("nan")
            return super().rows(logits, valid)

    @dataclass(frozen=True, repr=False)
    class PaddedRoE(RoE):
        """RoE with a row too many."""

        def start(self, lm: Any, prompts: Any, streams: Any) -> OneCacheProposals:
            noise = self.routing_noise(lm)
            return OneCacheProposals(lm, Padded(noise), *start_all(lm, prompts), [noise.reader(s) for s in streams])

    [few] = run([ask(k=3)], Sample(1.0), replace(NOISY, n=3), trace=True, batch_size=3)
    [padded] = run([ask(k=3)], Sample(1.0), PaddedRoE(4, NOISY.tau, NOISY.clean_layers), trace=True, batch_size=3)
    for one, other in zip(few.candidates, padded.candidates, strict=True):
        assert (one.token_ids, one.log_probs, one.cost) == (other.token_ids, other.log_probs, other.cost)
        assert one.trace == other.trace
        assert one.routing.changed == other.routing.changed


def test_a_dense_model_has_no_expert_counts(run: Any) -> None:
    dense = ToyModel(("a", "b", "1"), spelling="", moe_layers=0)
    [completion] = run([ask()], model=dense, trace=True)
    [found] = completion.candidates
    assert all(math.isnan(n) for n in found.trace.distinct_experts)
    assert found.cost.expert_loads == 0
    assert math.isnan(found.routing.mean_distinct_experts)


def test_usage_says_what_ran(run: Any, lm: ToyModel) -> None:
    """Experts of the clean rows, recorded again by stepping the model by hand."""
    [completion] = run([ask()])
    [found], [usage] = completion.candidates, completion.usages
    state = lm.prefill([()])
    ran = []
    for token in (1, 2, 3, *found.token_ids)[:-1]:
        step = lm.step(state, torch.tensor([token]))
        assert step.experts is not None
        ran.append(np.packbits(step.experts[0, 0].numpy(), axis=-1))
    [lane] = usage.lanes
    np.testing.assert_array_equal(lane.cached.prefill.experts, ran[0] | ran[1])
    np.testing.assert_array_equal(lane.experts, np.stack(ran[2:]))
    assert lane.cached.prompt == (1, 2, 3)
    assert lane.rows == lane.heads == (1,) * len(found.token_ids)
    per_row = lm.shape.moe_layers * lm.shape.top_k
    assert lane.runs == (per_row,) * len(found.token_ids)
    assert lane.cached.prefill.runs == 2 * per_row
    assert found.cost == decode_cost(usage)


def test_rows_and_beams_are_billed(run: Any, lm: ToyModel, beams: Any) -> None:
    [noisy] = run([ask(new=4)], Greedy(), NOISY)
    [found] = noisy.candidates
    assert (found.cost.rows, found.cost.new_tokens) == (4 * len(found.token_ids), len(found.token_ids))
    [wide] = run([ask(new=3)], beams(3), NOISY)
    usage = wide.usages[0].lanes[0]
    assert usage.beams[0] == 1
    assert max(usage.beams) > 1
    assert usage.rows == tuple(4 * b for b in usage.beams)
    assert wide.candidates[0].cost.new_tokens == sum(usage.beams)
    ledger = Ledger()
    ledger.add(wide.usages, 0)
    assert ledger.bill().prompt_tokens == 3


def test_equal_prompts_are_prefilled_once(run: Any, lm: ToyModel) -> None:
    calls: list[int] = []

    class Counting(ToyModel):
        """Counts the prompts it prefills."""

        def prefill(self, prompts: Any, routing: Any = None) -> Any:
            calls.append(len(prompts))
            return super().prefill(prompts)

    run([ask(k=5), ask((1, 2))], model=Counting(("a", "b", "1"), spelling=""))
    assert calls == [2]
