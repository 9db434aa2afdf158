"""Beam search by its definition, over sets of token ids in float64: what the decoders are compared with."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Ids = tuple[int, ...]
LogProbs = Callable[[Ids], Any]
"""From the generated ids to the natural log-probabilities of the next token."""


@dataclass
class Search:
    """What a search found: `ended` texts with their ranks, best first, and the `beams` that each step fed."""

    ended: list[tuple[Ids, float]] = field(default_factory=list)
    beams: list[list[Ids]] = field(default_factory=list)


@dataclass(frozen=True)
class Rules:
    """The parameters of a search in groups; one group at `diversity` 0 is plain beam search."""

    width: int
    length_penalty: float = 1.0
    early_stopping: Any = False
    groups: int = 1
    diversity: float = 0.0

    @property
    def share(self) -> int:
        return self.width // self.groups

    def rank(self, score: float, length: int) -> float:
        return score / length**self.length_penalty

    def over(self, ended: Sequence[tuple[Ids, float]], best: float, length: int, limit: int) -> bool:
        if len(ended) < self.share:
            return False
        if self.share == 1 or self.early_stopping is True:
            return True
        lengths = range(length, limit + 1) if self.early_stopping == "never" else [length]
        return max(self.rank(best, one) for one in lengths) <= min(rank for _, rank in ended)


def search(log_probs: LogProbs, ends: set[int], limit: int, rules: Rules) -> Search:
    """Algorithm 1 of Vijayakumar et al. with the Hamming diversity, group by group in every step.

    A group's beams are {ids: score}. A finished text of a group is one of its `share` best continuations.
    """
    found = Search()
    live: list[dict[Ids, float]] = [{(): 0.0} for _ in range(rules.groups)]
    ended: list[list[tuple[Ids, float]]] = [[] for _ in live]
    for length in range(1, limit + 1):
        found.beams.append(sorted(set(itertools.chain(*live))) if length == 1 else [i for g in live for i in g])
        taken: list[int] = []
        for group, beams in enumerate(live):
            grown = {
                (*ids, token): score + lp - rules.diversity * taken.count(token)
                for ids, score in beams.items()
                for token, lp in enumerate(log_probs(ids))
                if lp > -np.inf
            }
            order = sorted(grown, key=lambda ids: -grown[ids])
            over = {ids for ids in order if ids[-1] in ends or length == limit}
            best = order[: rules.share]
            taken += [ids[-1] for ids in best]
            ended[group] += [(ids, rules.rank(grown[ids], length)) for ids in best if ids in over]
            ended[group] = sorted(ended[group], key=lambda one: -one[1])[: rules.share]
            going = [ids for ids in order if ids not in over][: rules.share]
            if rules.share == 1:
                going = [ids for ids in going if ids in best]
            if going and rules.over(ended[group], grown[going[0]], length, limit):
                going = []
            live[group] = {ids: grown[ids] for ids in going}
        if not any(live):
            break
    found.ended = sorted(itertools.chain(*ended), key=lambda one: -one[1])
    return found
