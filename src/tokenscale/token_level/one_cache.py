"""One cache per sequence, and a rule that says in which rows every token is run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from jaxtyping import Bool, Int
from torch import Tensor

from tokenscale.core.cost import Cached
from tokenscale.core.errors import ModelError
from tokenscale.core.model import LanguageModel, State
from tokenscale.core.noise import RowNoiseReader
from tokenscale.core.plan import PLAIN, RowPlan
from tokenscale.core.starting import all_valid
from tokenscale.core.step import Work
from tokenscale.core.strategy import Proposals, Rows
from tokenscale.core.unread import Logits

T = TypeVar("T")


class RowRule(ABC):
    """How a proposer runs one token over one cache. Frozen: what changes lives in `OneCacheProposals`."""

    @abstractmethod
    def plan(self, readers: Sequence[RowNoiseReader], positions: Sequence[int]) -> RowPlan:
        """The rows of one step, for sequences that are fed the token at `positions`."""

    def valid(self, fresh: Sequence[bool]) -> Bool[Tensor, "batch rows"] | None:
        """Which rows of the plan count; None for all. `fresh`: who is fed the last token of the prompt."""
        return None

    def rows(self, logits: Logits, valid: Bool[Tensor, "batch rows"] | None) -> Rows:
        """The proposals that a step's logits make."""
        return all_valid(logits) if valid is None else Rows.of(logits, valid.to(logits.device))


@dataclass(frozen=True)
class SameRows(RowRule):
    """The same rows for every token, without chance."""

    fixed: RowPlan = PLAIN

    def plan(self, readers: Sequence[RowNoiseReader], positions: Sequence[int]) -> RowPlan:
        return self.fixed


def forced_plan(
    rule: RowRule, reader: RowNoiseReader | None, prompt_tokens: int, positions: range
) -> tuple[RowPlan, Bool[Tensor, "positions rows"] | None]:
    """What `OneCacheProposals` runs for the tokens at `positions` of one text; see `TokenProposer.row_plan`."""
    readers = [] if reader is None else [reader] * len(positions)
    return rule.plan(readers, positions), rule.valid([position == prompt_tokens - 1 for position in positions])


class OneCacheProposals(Proposals):
    """A cache, a rule, and a source of noise per sequence (forks of a sequence share theirs).

    `readers` is empty where the rule draws nothing.
    """

    def __init__(
        self,
        lm: LanguageModel,
        rule: RowRule,
        state: State,
        cached: Sequence[Cached],
        readers: Sequence[RowNoiseReader] = (),
    ) -> None:
        self._lm, self._rule, self._state = lm, rule, state
        self._cached, self._readers = list(cached), list(readers)

    def propose(self, tokens: Int[Tensor, " batch"]) -> tuple[Rows, tuple[Work, ...]]:
        positions = self._state.lengths
        check_room(self._lm, positions)
        valid = self._rule.valid(fresh(positions, self._cached))
        step = self._lm.step(self._state, tokens, self._rule.plan(self._readers, positions))
        return self._rule.rows(step.held, valid), (step.work(self._lm.shape, valid),)

    @property
    def cached(self) -> list[tuple[Cached, ...]]:
        return [(one,) for one in self._cached]

    @property
    def lengths(self) -> list[int]:
        return self._state.lengths

    def select(self, index: Sequence[int]) -> OneCacheProposals:
        state, readers = self._state.select(index), picked(self._readers, index)
        return OneCacheProposals(self._lm, self._rule, state, picked(self._cached, index), readers)

    def join(self, other: Proposals) -> OneCacheProposals:
        assert isinstance(other, OneCacheProposals)
        state, cached = self._state.join(other._state), self._cached + other._cached
        return OneCacheProposals(self._lm, self._rule, state, cached, self._readers + other._readers)


def check_room(lm: LanguageModel, positions: Sequence[int]) -> None:
    """Refuses a token more than a model's context holds: a second model's, or a longer variant's of the prompt."""
    if max(positions, default=0) >= lm.context_length:
        raise ModelError(f"{lm.name} holds {lm.context_length} tokens", "ask for fewer new tokens")


def fresh(positions: Sequence[int], cached: Sequence[Cached]) -> list[bool]:
    """Whether a sequence's next token is the last one of its prompt."""
    return [position == len(one.prompt) - 1 for position, one in zip(positions, cached, strict=True)]


def picked(values: Sequence[T], index: Sequence[int]) -> list[T]:
    """The values at `index`; none where there are none."""
    return [values[i] for i in index] if values else []
