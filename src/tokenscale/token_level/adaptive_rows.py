"""Rows of one token run in several forwards, until a rule says that no more are needed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokenscale.core.cost import Cached
from tokenscale.core.model import LanguageModel, State
from tokenscale.core.noise import RowNoiseReader
from tokenscale.core.plan import Routing, RowPlan
from tokenscale.core.step import Work
from tokenscale.core.strategy import Proposals, Rows
from tokenscale.token_level.one_cache import check_room, fresh, picked
from tokenscale.token_level.roe import Samples
from tokenscale.token_level.roe_noise import rows_of

MARGIN = 1e-5  # per row: what float32 sums of probabilities may be off


class Stop(ABC):
    """When a token has enough of its n rows: `first` rows are always run, then `chunk` at a time."""

    n: int

    @property
    @abstractmethod
    def first(self) -> int:
        """Rows of the first forward, which stores the token."""

    @property
    @abstractmethod
    def rest(self) -> int:
        """Rows of each later forward."""

    @abstractmethod
    def more(self, total: Float[Tensor, "batch vocab"], ran: int) -> Bool[Tensor, " batch"]:
        """Who needs more rows after `ran`, whose probabilities sum to `total` (0 for tokens never generated)."""

    def audited(self, checks: Sequence[RowNoiseReader], positions: Sequence[int]) -> Bool[Tensor, " batch"]:
        """Who gets all rows whether it needs them or not."""
        return torch.zeros(len(positions), dtype=torch.bool)


@dataclass(frozen=True)
class EarlyExit(Stop):
    """Until the largest sum leads by more than the other rows could make up."""

    n: int
    chunk: int

    @property
    def first(self) -> int:
        return self.n // 2 + 1

    @property
    def rest(self) -> int:
        return self.chunk

    def more(self, total: Float[Tensor, "batch vocab"], ran: int) -> Bool[Tensor, " batch"]:
        top, second = total.topk(2, -1).values.unbind(-1)
        return ~(top - second > self.n - ran + MARGIN * self.n)


@dataclass(frozen=True)
class Gate(Stop):
    """All rows where the clean row is not sure: a lead below the threshold, or an entropy above it."""

    n: int
    kind: str
    threshold: float
    audit: float

    @property
    def first(self) -> int:
        return 1

    @property
    def rest(self) -> int:
        return self.n - 1

    def more(self, total: Float[Tensor, "batch vocab"], ran: int) -> Bool[Tensor, " batch"]:
        if self.kind == "entropy":
            entropy: Tensor = torch.special.entr(total).sum(-1)
            return entropy > self.threshold
        top, second = total.topk(2, -1).values.unbind(-1)
        return top - second < self.threshold

    def audited(self, checks: Sequence[RowNoiseReader], positions: Sequence[int]) -> Bool[Tensor, " batch"]:
        drawn = [float(reader.at(p)[0, 0, 0]) for reader, p in zip(checks, positions, strict=True)]
        return torch.tensor(drawn) < self.audit


class AdaptiveProposals(Proposals):
    """RoE's samples over the clean cache, in as many forwards as `stop` asks for.

    `readers` have the noise of every sequence, `checks` the numbers that say which tokens are audited.
    """

    def __init__(
        self,
        lm: LanguageModel,
        samples: Samples,
        stop: Stop,
        state: State,
        cached: Sequence[Cached],
        readers: Sequence[RowNoiseReader],
        checks: Sequence[RowNoiseReader] = (),
    ) -> None:
        self._lm, self._samples, self._stop, self._state = lm, samples, stop, state
        self._cached, self._readers, self._checks = list(cached), list(readers), list(checks)
        self._suppressed = torch.tensor(sorted(lm.suppressed_ids), dtype=torch.long)

    def propose(self, tokens: Int[Tensor, " batch"]) -> tuple[Rows, tuple[Work, ...]]:
        positions, stop = self._state.lengths, self._stop
        check_room(self._lm, positions)
        routing = self._samples.noise.step(self._readers, positions)
        alone = torch.tensor(fresh(positions, self._cached)) & self._samples.clean_first
        counted = torch.arange(stop.first) < torch.where(alone, 1, stop.first)[:, None]
        rows, work = self._run(tokens, routing, 0, stop.first, counted)
        total, ran = self._sum(rows), stop.first
        clean = total if ran == 1 else self._sum(Rows(rows.logits[:, :1], rows.valid[:, :1]))
        called = stop.more(total, ran).cpu() & ~alone
        checked = stop.audited(self._checks, positions) & ~called & ~alone
        wanted = called | checked
        while ran < stop.n and wanted.any():
            end = min(ran + stop.rest, stop.n)
            others, more = self._run(tokens, routing, ran, end, wanted[:, None].expand(-1, end - ran))
            rows = Rows(torch.cat([rows.logits, others.logits], 1), torch.cat([rows.valid, others.valid], 1))
            work, total, ran = work.plus(more), total + self._sum(others), end
            wanted = wanted & stop.more(total, ran).cpu()
        differed = checked & (total.argmax(-1) != clean.argmax(-1)).cpu()
        return rows, (replace(work, checked=checked, differed=differed),)

    def _run(
        self,
        tokens: Int[Tensor, " batch"],
        routing: Routing,
        start: int,
        end: int,
        valid: Bool[Tensor, "batch rows"],
    ) -> tuple[Rows, Work]:
        """The rows from `start` to `end`; the first ones store the token."""
        some = rows_of(routing, start, end)
        plan = RowPlan(end - start, some, current_kv=self._samples.current_kv, commit=start == 0)
        step = self._lm.step(self._state, tokens, plan)
        return Rows.of(step.held, valid.to(step.held.device)), step.work(self._lm.shape, valid)

    def _sum(self, rows: Rows) -> Float[Tensor, "batch vocab"]:
        """The rows' probabilities of tokens that may be generated, summed."""
        probs = torch.softmax(rows.logits, -1).masked_fill(~rows.valid[..., None], 0.0).sum(1)
        return probs.index_fill(-1, self._suppressed.to(probs.device), 0.0)

    @property
    def cached(self) -> list[tuple[Cached, ...]]:
        return [(one,) for one in self._cached]

    @property
    def lengths(self) -> list[int]:
        return self._state.lengths

    def select(self, index: Sequence[int]) -> AdaptiveProposals:
        state, caches = self._state.select(index), picked(self._cached, index)
        readers, checks = picked(self._readers, index), picked(self._checks, index)
        return AdaptiveProposals(self._lm, self._samples, self._stop, state, caches, readers, checks)

    def join(self, other: Proposals) -> AdaptiveProposals:
        assert isinstance(other, AdaptiveProposals)
        state, caches = self._state.join(other._state), self._cached + other._cached
        readers, checks = self._readers + other._readers, self._checks + other._checks
        return AdaptiveProposals(self._lm, self._samples, self._stop, state, caches, readers, checks)
