"""DeepConf: a vote of the candidates that the model was most confident of, and those that it is not end early."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tokenscale.core.data import Ask, Candidate
from tokenscale.core.errors import ArgumentError, at_least, finite, unknown
from tokenscale.core.signals import StopRule
from tokenscale.core.stage import Kind
from tokenscale.core.strategy import Asks, SequenceStrategy
from tokenscale.sequence_level.traces import signal
from tokenscale.sequence_level.voting import answered, check_kind, vote

BOTTOM_SHARE = 0.1
ROUNDING = 1e-5  # a text equal to the one that gave the threshold goes on, in whatever batch it is decoded


@dataclass(frozen=True)
class DeepConf(SequenceStrategy):
    """A vote of the most confident of k candidates, weighed by confidence.

    A token's confidence C_t is minus the mean log-probability of the 20 most likely tokens, in nats (see
    `core.signals`). Groups are all runs of `window` tokens; their confidence is the mean of their C_t. A
    candidate shorter than the window is one group. `score` of a candidate:
    - "lowest_group": the least of its groups' confidences;
    - "bottom_10": the mean of the lowest tenth of them (one at least);
    - "tail": the mean of the last `window` tokens;
    - "mean": the mean of all tokens.

    Offline, all k are decoded; those with an answer vote whose score is at least the (1 - keep) quantile
    (interpolated) of such candidates' scores. `online`, the first `warmup` are decoded and give the quantile
    s of their scores; the others end (finish reason "stop_rule") at the token whose last `window` tokens
    have a mean confidence below s, and vote only if their score is at least s, as those of the warm-up. A
    vote weighs its candidate's score; votes, ties and the result are as for SelfConsistency.

    keep = 0.1 is the paper's DeepConf-low, 0.9 its DeepConf-high. Use it for long answers; a window beyond
    their length makes all scores the mean, and stops nothing. Costs k continuations of one shared prompt at
    most, online less, and one top-20 per token. Raises ArgumentError and UnknownNameError; PipelineError
    where a strategy inside has dropped the signals.

    Source: Fu et al., arXiv 2508.15260, section 3, and for the windows of short
    candidates, the quantile and who votes, the authors' code. Their online sampling also ends when the vote
    is settled; this one draws all k.
    """

    kind = Kind.CHOOSING
    reads_text = True

    k: int
    keep: float = 0.1
    window: int = 2048
    score: str = "lowest_group"
    online: bool = False
    warmup: int = 16
    answers: str = "number"

    def __post_init__(self) -> None:
        for name in ("k", "window", "warmup"):
            at_least("DeepConf", name, getattr(self, name), 1)
        if not 0 < finite("DeepConf", "keep", self.keep, 0.1) <= 1:
            message = f"DeepConf(keep={self.keep!r}): keep must be above 0 and at most 1"
            raise ArgumentError(message, "write keep=0.1 for the most confident tenth")
        object.__setattr__(self, "keep", float(self.keep))
        if not isinstance(self.score, str) or self.score not in SCORES:
            raise unknown("score", str(self.score), SCORES, "DeepConf")
        check_kind("DeepConf", self.answers)
        if not isinstance(self.online, bool):
            message = f"DeepConf(online={self.online!r:.80}): online must be True or False"
            raise ArgumentError(message, "write online=True to end candidates early")
        if self.online:
            self._check_online()

    def _check_online(self) -> None:
        if self.warmup >= self.k:
            message = f"DeepConf(k={self.k}, online=True, warmup={self.warmup}): no candidate is left to end early"
            raise ArgumentError(message, f"write warmup={max(1, self.k // 4)}, or a larger k")
        if self.score != "lowest_group":
            message = f"DeepConf(online=True, score={self.score!r}): candidates are ended by their lowest group"
            raise ArgumentError(message, 'write score="lowest_group", or online=False')

    @property
    def signals(self) -> frozenset[str]:
        return frozenset({"confidence"})

    @property
    def in_rounds(self) -> bool:
        return self.online

    def solve(self, ask: Ask) -> Asks:
        first = self.warmup if self.online else self.k
        [candidates] = yield [replace(ask, k=first)]
        members = self._scored(candidates)
        threshold = self._threshold(members)
        if self.online:
            rule = LowConfidence(threshold, self.window)
            [found] = yield [replace(ask, k=self.k - first, first=first, stop_rule=rule)]
            members += self._scored(found)
        return [self._vote(members, threshold)]

    def _scored(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        scores = (SCORES[self.score](signal(c, "confidence", "DeepConf"), self.window) for c in candidates)
        return [replace(c, score=score) for c, score in zip(answered(candidates, self.answers), scores, strict=True)]

    def _threshold(self, members: Sequence[Candidate]) -> float:
        voters = members if self.online else [c for c in members if c.answer is not None]
        return quantile([c.score for c in voters or members if c.score is not None], 1 - self.keep)

    def _vote(self, members: Sequence[Candidate], threshold: float) -> Candidate:
        whole = [c.finish_reason != "stop_rule" for c in members]
        kept = [w and c.score is not None and c.score >= threshold for w, c in zip(whole, members, strict=True)]
        if any(k and c.answer is not None for k, c in zip(kept, members, strict=True)):
            return self._weighed(members, kept)
        # Nothing that was kept has an answer, so what the threshold left out may speak, where anything is whole.
        winner = self._weighed(members, whole if any(whole) else [True] * len(members))
        note = f"no candidate of the most confident {self.keep:.0%} has an answer, so the others voted too"
        return replace(winner, notes=(*winner.notes, note))

    def _weighed(self, members: Sequence[Candidate], voting: Sequence[bool]) -> Candidate:
        weights = [c.score if votes else None for c, votes in zip(members, voting, strict=True)]
        return vote(members, self.answers, weights, self.k)


@dataclass(frozen=True)
class LowConfidence(StopRule):
    """Ends a candidate when its last `window` tokens have a mean confidence below `threshold`; none before that."""

    threshold: float
    window: int
    signal = "confidence"

    def stops(self, values: Sequence[float]) -> bool:
        if len(values) < self.window:
            return False
        return sum(values[-self.window :]) / self.window < self.threshold - ROUNDING


def group_means(values: Sequence[float], window: int) -> list[float]:
    """The mean of every run of `window` values, in order; that of all values where there are fewer, 0 of none.

    Costs one pass, in float64.
    """
    width = min(window, len(values))
    if not width:
        return [0.0]
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=np.float64))])
    means: list[float] = ((sums[width:] - sums[:-width]) / width).tolist()
    return means


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the values lie, linearly interpolated between the two next to it."""
    ordered = sorted(values)
    place = round(share * (len(ordered) - 1), 9)  # so that a share that is met exactly keeps its value
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def _bottom(values: Sequence[float], window: int) -> float:
    means = sorted(group_means(values, window))
    lowest = means[: max(1, int(BOTTOM_SHARE * len(means)))]
    return math.fsum(lowest) / len(lowest)


SCORES: Mapping[str, Callable[[Sequence[float], int], float]] = {
    "lowest_group": lambda values, window: min(group_means(values, window)),
    "bottom_10": _bottom,
    "mean": lambda values, window: group_means(values, len(values))[0],
    "tail": lambda values, window: group_means(values[-window:], window)[0],
}
