"""What one step of the decode loop leaves of every beam: token records, and what ran."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokenscale.core.cost import Cached, Packed, Ran
from tokenscale.core.data import RoutingStats
from tokenscale.core.errors import ModelError
from tokenscale.core.folding import chunks, whole
from tokenscale.core.record import TokenRecord
from tokenscale.core.signals import SIGNALS
from tokenscale.core.step import Work, pack_experts
from tokenscale.core.strategy import Rows
from tokenscale.core.unread import ALL

Counts = tuple[list[int], list[int], list[int], Packed]


class StepRecords:
    """Makes the token records of one step, with what is vectorised over the batch done once.

    `cached` are the caches of one sequence of the batch: those of the first one's model show its experts.
    """

    def __init__(
        self,
        rows: Rows,
        works: Sequence[Work],
        cached: Sequence[Cached],
        log_probs: Float[Tensor, "beams vocab"],
        fell_back: list[bool],
        trace: bool,
        signals: Sequence[str] = (),
    ) -> None:
        self._log_probs, self._fell_back = log_probs, fell_back
        self._routing: dict[int, RoutingStats] = {}
        recorded = [SIGNALS[name](log_probs).tolist() for name in signals]
        self._signals: list[tuple[float, ...]] = list(zip(*recorded, strict=True)) or [()] * len(log_probs)
        self._rows: list[int] = rows.valid.sum(-1).tolist()
        own = [work.experts for work, cache in zip(works, cached, strict=True) if cache.model == cached[0].model]
        self._layers = own[0].shape[1]
        self._distinct = (own[0] if len(own) == 1 else torch.stack(own).any(0)).sum((-1, -2)).tolist()
        self._choices: list[int] = _sums([work.choices for work in works])
        self._changed: list[int] = _sums([work.changed for work in works])
        self._checked = _any([work.checked for work in works], len(log_probs))
        self._differed = _any([work.differed for work in works], len(log_probs))
        self._ran = [[_counts(forward) for forward in work.forwards or (work,)] for work in works]
        self._trace: list[tuple[float, float]] | None = None
        if trace:
            entropy, disagreement = entropy_and_disagreement(rows, log_probs)
            self._trace = list(zip(entropy.tolist(), disagreement.tolist(), strict=True))

    def ran(self, start: int, end: int) -> tuple[int, list[Ran]]:
        """Number of the beams at the places from `start` to `end`, and what they ran over each cache."""
        return end - start, [_ran(forwards, start, end) for forwards in self._ran]

    def token(self, place: int, token: int, near_tie: bool, log_prob: float | None = None) -> TokenRecord:
        """Of a token that the beam at `place` takes; `log_prob` where it was read before, for all beams together."""
        distinct = self._distinct[place]
        routing = self._routing.get(place) or self._routing_of(place)
        trace = None
        if self._trace is not None:
            trace = (*self._trace[place], distinct / self._layers if self._layers else float("nan"))
        if log_prob is None:
            log_prob = float(self._log_probs[place, token])
        if math.isnan(log_prob):
            raise ModelError("the model's logits are not numbers (NaN)", "check the weights, or use a wider dtype")
        return TokenRecord(
            token, log_prob, near_tie, self._fell_back[place], self._rows[place], routing, trace, self._signals[place]
        )

    def _routing_of(self, place: int) -> RoutingStats:
        """The same for all tokens that may follow a beam."""
        checked, differed = self._checked[place], self._differed[place]
        self._routing[place] = stats = RoutingStats(
            self._choices[place], self._changed[place], self._distinct[place], self._layers, int(checked), int(differed)
        )
        return stats


def _sums(counts: Sequence[Int[Tensor, " beams"]]) -> list[int]:
    total = counts[0] if len(counts) == 1 else torch.stack(list(counts)).sum(0)
    found: list[int] = total.tolist()
    return found


def _any(marks: Sequence[Bool[Tensor, " beams"] | None], beams: int) -> list[bool]:
    given = [m for m in marks if m is not None]
    found: list[bool] = (
        (given[0] if len(given) == 1 else torch.stack(given).any(0)).tolist() if given else [False] * beams
    )
    return found


def _counts(work: Work) -> Counts:
    return work.rows.tolist(), work.heads.tolist(), work.runs.tolist(), pack_experts(work.experts)


def _ran(forwards: Sequence[Counts], start: int, end: int) -> Ran:
    first, *others = (_ran_once(counts, start, end) for counts in forwards)
    later = tuple(other for other in others if other.rows)
    return replace(first, later=later) if later else first


def _ran_once(counts: Counts, start: int, end: int) -> Ran:
    rows, heads, runs, experts = counts
    if end == start + 1:
        return Ran(rows[start], heads[start], runs[start], experts[start])
    union = np.bitwise_or.reduce(experts[start:end])
    beams = sum(count > 0 for count in rows[start:end])
    return Ran(sum(rows[start:end]), sum(heads[start:end]), sum(runs[start:end]), union, beams=beams)


def entropy_and_disagreement(
    rows: Rows, log_probs: Float[Tensor, "batch vocab"]
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Entropy of the aggregate, and of the rows' mean minus the mean of the rows' (both in nats).

    Unread logits are computed for it once more.
    """
    spread = torch.cat([_disagreement(rows.part(sequences, ALL)) for sequences in whole(rows)])
    return _entropy(log_probs.exp()), spread.clamp_min(0.0)


def _disagreement(rows: Rows) -> Float[Tensor, " batch"]:
    """Summed over chunks of rows, where there are too many to be read at once."""
    mean: Tensor | float = 0.0
    own: Tensor | float = 0.0
    count = rows.valid.sum(-1, keepdim=True)
    for chunk in chunks(rows):
        weight = chunk.valid / count
        probs = torch.softmax(chunk.logits.masked_fill(~chunk.valid[..., None], 0.0), -1)
        mean, own = mean + (probs * weight[..., None]).sum(1), own + (_entropy(probs) * weight).sum(-1)
    return _entropy(torch.as_tensor(mean)) - torch.as_tensor(own)


def _entropy(probs: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch"]:
    entropies: Tensor = torch.special.entr(probs).sum(-1)
    return entropies
