"""A toy model that counts what it runs, and whose memory runs out where a test says so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch

from tokenscale.core.model import State
from tokenscale.core.step import Step
from tokenscale.models.toy import ToyModel
from tokenscale.models.toy_parts import ToyState

ERRORS = (
    lambda: MemoryError(),
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:113] DefaultCPUAllocator: can't allocate memory"),
)


class ScarceModel(ToyModel):
    """`fails(event, sequences)` says whether memory runs out at a prefill, step, select or join.

    It runs out behind the work, so that caches are left half changed. `ran` counts forwards and joins,
    `prefilled` the tokens of prompts, `stepped` the sequences of all steps, `held` the most tokens that the
    states of a step stored, `failed` how often memory ran out at each event.
    """

    fails: Callable[[str, int], bool] = staticmethod(lambda event, sequences: False)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.ran: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.prefilled = self.stepped = self.held = 0

    @property
    def failures(self) -> int:
        return self.failed.total()

    def event(self, name: str, sequences: int) -> None:
        self.ran[name] += 1
        if self.fails(name, sequences):
            self.failed[name] += 1
            raise ERRORS[self.failures % len(ERRORS)]()

    def prefill(self, prompts: Sequence[Sequence[int]], routing: Any = None) -> ToyState:
        state = super().prefill(prompts, routing)
        self.prefilled += sum(map(len, prompts))
        self.event("prefill", len(prompts))
        return ScarceState(state.sequences, self)

    def step(self, state: State, tokens: Any, *plan: Any) -> Step:
        step = super().step(state, tokens, *plan)
        self.stepped += len(tokens)
        self.held = max(self.held, sum(state.lengths))
        self.event("step", len(tokens))
        return step


class ScarceState(ToyState):
    """A state that tells its model of every select and join."""

    def __init__(self, sequences: list[Any], lm: ScarceModel) -> None:
        super().__init__(sequences)
        self.lm = lm

    def select(self, index: Sequence[int]) -> ToyState:
        state = super().select(index)
        self.lm.event("select", len(index))
        return ScarceState(state.sequences, self.lm)

    def join(self, other: State) -> ToyState:
        state = super().join(other)
        self.lm.event("join", len(state.sequences))
        return ScarceState(state.sequences, self.lm)
