"""What a model is asked to run, counted: forwards, rows, tokens, and the bytes that must be read for them.

For the limits of the tables, and for tests that guard them without a clock.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
from jaxtyping import Bool
from torch import Tensor

from tokenscale.bench.bandwidth import Limits
from tokenscale.core.cost import popcount
from tokenscale.core.model import LanguageModel, State
from tokenscale.core.plan import PLAIN, RowPlan
from tokenscale.core.shape import ModelShape
from tokenscale.core.step import Step


@dataclass
class Tally:
    """Counts of a model's calls.

    `rows` are those of decoding steps, `prefill_tokens` those that prefills were asked for; `step_bytes` and
    `prefill_bytes` what an ideal kernel reads: per forward the weights once (of experts the union over the
    batch), per step every sequence's keys and values. `prefill_flops` are its matrix products.
    """

    steps: int = 0
    sequences: int = 0
    rows: int = 0
    prefills: int = 0
    prefill_tokens: int = 0
    expert_loads: int = 0
    step_bytes: float = 0.0
    prefill_bytes: float = 0.0
    prefill_flops: float = 0.0

    def seconds(self, limits: Limits) -> float:
        """The least time for it: steps at the speed of memory, prefills at that or at the speed of products."""
        return limits.seconds(self.step_bytes) + limits.seconds(self.prefill_bytes, self.prefill_flops)


@contextmanager
def counted(lm: LanguageModel) -> Iterator[Tally]:
    """Counts a model's `prefill` and `step` calls. What is counted is slower: never count what is timed."""
    tally, prefill, step = Tally(), lm.prefill, lm.step

    def counting_prefill(prompts: Sequence[Sequence[int]], *rest: Any, **more: Any) -> State:
        state = prefill(prompts, *rest, **more)
        tokens = sum(map(len, prompts))
        if tokens:
            _add_prefill(tally, lm.shape, [len(p) for p in prompts], state)
        return state

    def counting_step(state: State, tokens: Any, plan: RowPlan = PLAIN) -> Step:
        lengths = [length + 1 for length in state.lengths]
        done = step(state, tokens, plan)
        loads = expert_loads(done.experts)
        tally.steps += 1
        tally.sequences += len(lengths)
        tally.rows += len(lengths) * plan.n
        tally.expert_loads += loads
        tally.step_bytes += step_bytes(lm.shape, loads, lengths)
        return done

    with patch.object(lm, "prefill", counting_prefill), patch.object(lm, "step", counting_step):
        yield tally


def _add_prefill(tally: Tally, shape: ModelShape, lengths: Sequence[int], state: State) -> None:
    loads = popcount(np.bitwise_or.reduce([prefill.experts for prefill in state.prefills]))
    tally.prefills += 1
    tally.prefill_tokens += sum(lengths)
    tally.expert_loads += loads
    tally.prefill_bytes += shape.dense_bytes + loads * shape.expert_bytes
    tally.prefill_flops += sum(shape.prefill_flops(tokens) for tokens in lengths)


def expert_loads(experts: Bool[Tensor, "batch rows moe_layers experts"] | None) -> int:
    """Distinct experts that a forward ran, summed over MoE layers."""
    return 0 if experts is None else int(experts.flatten(0, 1).any(0).sum())


def step_bytes(shape: ModelShape, loads: float, lengths: Sequence[int]) -> float:
    """What a decoding step must read: all weights but unused experts, and the keys and values of its sequences."""
    keys = sum(shape.cached_bytes(length) for length in lengths)
    return shape.dense_bytes + shape.head_bytes + loads * shape.expert_bytes + keys
