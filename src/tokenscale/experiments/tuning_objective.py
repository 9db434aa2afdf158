"""What a search makes small: nats per token, or the share of wrong answers; and how two of them differ."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from tokenscale.core.cost import Cost
from tokenscale.core.model import LanguageModel
from tokenscale.experiments.statistics import LEVEL, Interval, bonett_price, mean_difference
from tokenscale.experiments.tasks import Task
from tokenscale.experiments.tuning_data import Item
from tokenscale.pipeline import Pipeline
from tokenscale.recipe_sections import GenerationSection, RunSection


@dataclass(frozen=True)
class Part:
    """One item's share of a loss: `total` over `weight` tokens (of a perplexity) or problems (of an accuracy).

    `clean` is the same of the model itself, where the pipeline's first row is it.
    """

    unit: str
    total: float
    weight: int
    clean: float | None = None


@dataclass(frozen=True)
class Measured:
    """The parts of some items, and the bill."""

    parts: tuple[Part, ...]
    cost: Cost

    @property
    def loss(self) -> float:
        """The mean over tokens or problems."""
        return math.fsum(p.total for p in self.parts) / sum(p.weight for p in self.parts)


@dataclass(frozen=True)
class Difference:
    """The mean of first - second over tokens or problems, with its interval over units."""

    mean: float
    interval: Interval | None
    units: int


class Objective(ABC):
    """A loss of a pipeline on items. Equal seeds give equal draws, so pipelines are compared in pairs."""

    unit: str

    @abstractmethod
    def measure(self, pipeline: Pipeline, lm: LanguageModel, items: Sequence[Item], seed: int) -> Measured:
        """The loss of each item. Costs what scoring or answering them does."""

    @abstractmethod
    def compare(self, first: Sequence[float], second: Sequence[float], parts: Sequence[Part]) -> Difference:
        """The paired difference of two lists of totals on the same parts, over their weight."""


@dataclass(frozen=True)
class Perplexity(Objective):
    """Minus the log-probability of given tokens in nats, under the pipeline's proposer and aggregator."""

    unit = "nats per token"

    def measure(self, pipeline: Pipeline, lm: LanguageModel, items: Sequence[Item], seed: int) -> Measured:
        behind = [item.prompt for item in items if item.prompt is not None]
        texts = [item.text for item in items]
        scores = lm.score(texts, pipeline.proposer, pipeline.aggregator, prompts=behind or None, seed=seed)
        parts = [
            Part(
                item.unit,
                -score.total,
                len(score.log_probs),
                None if score.clean_log_probs is None else -math.fsum(score.clean_log_probs),
            )
            for item, score in zip(items, scores, strict=True)
        ]
        return Measured(tuple(parts), Cost.total(score.cost for score in scores))

    def compare(self, first: Sequence[float], second: Sequence[float], parts: Sequence[Part]) -> Difference:
        return ratio_difference(first, second, parts)


@dataclass(frozen=True)
class WrongAnswers(Objective):
    """One minus the score of the pipeline's answer to a problem."""

    task: Task
    generation: GenerationSection
    bounds: RunSection
    unit = "share of wrong answers"

    def measure(self, pipeline: Pipeline, lm: LanguageModel, items: Sequence[Item], seed: int) -> Measured:
        results = pipeline.run(
            lm,
            [item.prompt for item in items if item.prompt is not None],
            seed=seed,
            max_new_tokens=self.generation.max_new_tokens,
            stop_strings=self.generation.stop_strings,
            batch_size=self.bounds.batch_size,
            max_batch_tokens=self.bounds.max_batch_tokens,
        )
        parts = [
            Part(item.unit, 1.0 - self.task.grade(item.problem, result.text), 1)
            for item, result in zip(items, results, strict=True)
            if item.problem is not None
        ]
        return Measured(tuple(parts), Cost.total(result.cost for result in results))

    def compare(self, first: Sequence[float], second: Sequence[float], parts: Sequence[Part]) -> Difference:
        """As reports compare arms: Bonett and Price's interval of 0/1 losses, of means over seeds t."""
        differences = [one - other for one, other in zip(first, second, strict=True)]
        mean = math.fsum(differences) / len(differences)
        if all(loss in (0.0, 1.0) for loss in (*first, *second)):
            worse, better = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
            return Difference(mean, bonett_price(worse, better, len(differences)), len(differences))
        return Difference(mean, mean_difference(differences), len(differences))


def ratio_difference(first: Sequence[float], second: Sequence[float], parts: Sequence[Part]) -> Difference:
    """The paired difference of two losses on the same parts; `first` and `second` hold their totals.

    d = sum_u d_u / sum_u w_u over units u (documents or problems), d_u the unit's difference and w_u its
    weight. The interval is Student's t with G - 1 degrees of freedom on the linearised ratio: variance
    G / (G - 1) sum_u (d_u - d w_u)^2 / (sum_u w_u)^2 for G units (Cochran 1977, section 6.4). With
    equal weights it is the paired t interval of the units' means. None for one unit, and where a loss
    is infinite.
    """
    units: dict[str, list[float]] = {}
    for one, other, part in zip(first, second, parts, strict=True):
        held = units.setdefault(part.unit, [0.0, 0.0])
        held[0] += one - other if math.isfinite(one) or math.isfinite(other) else 0.0
        held[1] += part.weight
    table = np.array(list(units.values()))
    weight = float(table[:, 1].sum())
    mean = float(table[:, 0].sum()) / weight
    if len(units) < 2 or not math.isfinite(mean):
        return Difference(mean, None, len(units))
    rest = table[:, 0] - mean * table[:, 1]
    error = math.sqrt(len(units) / (len(units) - 1) * float(rest @ rest)) / weight
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(units) - 1)) * error
    return Difference(mean, Interval(mean - half, mean + half), len(units))
