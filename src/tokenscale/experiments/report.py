"""What a run shows: per arm its accuracy and cost, per pair of arms the difference, with intervals.

The unit is the problem: scores are averaged over seeds first, and inferred from over problems.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenscale.core.cost import Cost
from tokenscale.core.data import RoutingStats
from tokenscale.dsl import to_text
from tokenscale.experiments.statistics import (
    ALPHA,
    LEVEL,
    POWER,
    Interval,
    bonett_price,
    detectable,
    detectable_mean,
    mcnemar,
    mean_difference,
    mean_interval,
    sign_flip,
    wilson,
)
from tokenscale.experiments.store import Row, Slot, Store
from tokenscale.models.source import PACKAGED
from tokenscale.pipeline import Pipeline
from tokenscale.recipe import Recipe
from tokenscale.token_level.aggregators import MeanProbability
from tokenscale.token_level.plain import Plain

BASELINE = "greedy"
PLANNED_DISCORDANCE = 0.2
TINY = (
    "A tiny model on synthetic arithmetic shows that the machinery is right, not which strategy wins on "
    "your model and task."
)
SYNTHETIC = "The task is synthetic arithmetic, which does not show which strategy wins on yours."


@dataclass(frozen=True)
class Arm:
    """One arm's rows: per problem (in the order of the task's sample) one row a seed."""

    name: str
    rows: list[list[Row]]

    @property
    def scores(self) -> NDArray[np.float64]:
        """Per problem the mean score over seeds."""
        scores = np.array([[row["score"] for row in rows] for rows in self.rows], dtype=np.float64)
        return np.asarray(scores.mean(1))

    @property
    def single(self) -> bool:
        """Whether there is one seed, so that scores are 0 or 1."""
        return len(self.rows[0]) == 1

    def all_rows(self) -> list[Row]:
        return [row for rows in self.rows for row in rows]


def baseline(recipe: Recipe) -> str:
    """The arm that others are set against: the one called greedy, else the first."""
    return BASELINE if BASELINE in recipe.arms else next(iter(recipe.arms))


def build(recipe: Recipe, store: Store) -> dict[str, Any]:
    """The report of a complete run as plain JSON values: `arms` and `pairs` of every model and task."""
    arms: list[dict[str, Any]] = []
    pairs: list[dict[str, Any]] = []
    smallest: list[dict[str, Any]] = []
    for task, model in itertools.product(recipe.tasks, recipe.models):
        found = [_arm(recipe, store, task, model, name) for name in recipe.arms]
        reference = next(a for a in found if a.name == baseline(recipe))
        where = {"task": task, "model": model}
        arms += [where | _describe(arm, recipe, reference) for arm in found]
        compared = [where | _compare(first, second, recipe) for first, second in _pairs(found, recipe)]
        pairs += compared
        smallest += [where | _smallest_shown(compared, reference)] if compared else []
    return {
        "question": recipe.question,
        "baseline": baseline(recipe),
        "arms": arms,
        "pairs": pairs,
        "smallest_shown": smallest,
        "margin": recipe.margin,
        "level": LEVEL,
        "caveat": TINY if all(model.path in PACKAGED for model in recipe.models.values()) else SYNTHETIC,
        "fingerprint": store.fingerprint,
        "run": store.facts,
    }


def _arm(recipe: Recipe, store: Store, task: str, model: str, name: str) -> Arm:
    per_seed = [store.rows(Slot(task, model, name, seed)) for seed in recipe.seeds]
    return Arm(name, [[rows[problem] for rows in per_seed] for problem in sorted(per_seed[0])])


def _pairs(arms: Sequence[Arm], recipe: Recipe) -> list[tuple[Arm, Arm]]:
    """Declared contrasts as declared; then every other pair, the later arm minus the earlier."""
    named = {arm.name: arm for arm in arms}
    declared = [(named[first], named[second]) for first, second in recipe.contrasts]
    known = {frozenset(pair) for pair in recipe.contrasts}
    rest = [(b, a) for a, b in itertools.combinations(arms, 2) if frozenset((a.name, b.name)) not in known]
    return declared + rest


def _describe(arm: Arm, recipe: Recipe, reference: Arm) -> dict[str, Any]:
    rows, scores = arm.all_rows(), arm.scores
    candidates = sum(len(row["candidates"]) for row in rows)
    routing = sum((RoutingStats(**row["routing"]) for row in rows), RoutingStats())
    cost, base = _mean_cost(rows), _mean_cost(reference.all_rows())
    pipeline = recipe.arms[arm.name].pipeline.resolved()
    if arm.single:
        interval, method = wilson(int(scores.sum()), len(scores)), "Wilson"
    else:
        interval, method = mean_interval(scores.tolist()), "t, four pseudo-problems added"
    return {
        "name": arm.name,
        "pipeline": str(pipeline),
        "brief": brief(pipeline),
        "problems": len(arm.rows),
        "accuracy": float(scores.mean()),
        "interval": _ends(interval),
        "interval_method": method,
        "accuracy_per_seed": [_mean([r[i]["score"] for r in arm.rows]) for i in range(len(recipe.seeds))],
        "cost": cost,
        "relative_flops": cost["flops"] / base["flops"] if base["flops"] else None,
        "truncated": sum(row["truncated"] for row in rows) / candidates,
        "unparsable": sum(row["unparsable"] for row in rows) / candidates,
        "router_choices": routing.choices,
        "router_choices_changed": routing.changed_share,
        "distinct_experts": _finite(routing.mean_distinct_experts),
        "near_ties": sum(row["near_ties"] for row in rows),
        "notes": _notes(rows),
        "seconds": sum(row["seconds"] for row in rows),
    }


def _compare(first: Arm, second: Arm, recipe: Recipe) -> dict[str, Any]:
    """The difference first - second, with its interval and test.

    `within_margin`: whether the whole interval lies within plus or minus the recipe's margin (at the
    level of 95% that is stricter than two one-sided tests at 5%, whose interval is of 90%).
    """
    differences = first.scores - second.scores
    wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
    pairs, discordance = len(differences), (wins + losses) / len(differences)
    if first.single:
        interval, method = bonett_price(wins, losses, pairs), "Bonett-Price"
        p, test, least = mcnemar(wins, losses), "exact McNemar", detectable(pairs, discordance)
    else:
        values = differences.tolist()
        interval, method = mean_difference(values), "t, two pseudo-problems added"
        p, test, least = sign_flip(values), "sign-flip permutation", detectable_mean(values)
    return {
        "first": first.name,
        "second": second.name,
        "declared": (first.name, second.name) in recipe.contrasts,
        "difference": float(differences.mean()),
        "interval": _ends(interval),
        "interval_method": method,
        "within_margin": None if recipe.margin is None else _within(interval, recipe.margin / 100),
        "p": p,
        "test": test,
        "first_only": wins,
        "second_only": losses,
        "discordance": discordance,
        "detectable": _finite(least),
    }


def _smallest_shown(compared: Sequence[dict[str, Any]], reference: Arm) -> dict[str, Any]:
    """The smallest difference from the baseline that this number of problems can show, for the arm hardest to tell.

    Assumes the share of discordant problems that was observed, or as many as the difference itself needs.
    """
    with_reference = [pair for pair in compared if reference.name in (pair["first"], pair["second"])]
    hardest = max(with_reference, key=lambda pair: pair["detectable"] or math.inf)
    seeds = len(reference.rows[0])
    return _assumptions(len(reference.rows), seeds, hardest["detectable"], hardest["discordance"])


def planned(recipe: Recipe, problems: Mapping[str, int]) -> list[dict[str, Any]]:
    """The same before a run, for one seed and arms that are assumed to differ on 20% of the problems."""
    return [
        {"task": task, "model": model}
        | _assumptions(count, 1, _finite(detectable(count, PLANNED_DISCORDANCE)), PLANNED_DISCORDANCE)
        for task, count in problems.items()
        for model in recipe.models
    ]


def _assumptions(problems: int, seeds: int, difference: float | None, discordance: float) -> dict[str, Any]:
    assumed = max(discordance, difference or 0.0)
    counts = {"problems": problems, "seeds": seeds}
    return counts | {"difference": difference, "discordance": assumed, "alpha": ALPHA, "power": POWER}


def brief(pipeline: Pipeline) -> str:
    """A pipeline for tables: its text, but for the model's own rows and their mean, which go without saying."""
    silent = (Plain(), MeanProbability())
    return " | ".join(to_text(stage) for stage in pipeline.stages if stage not in silent)


def _notes(rows: Sequence[Row]) -> list[str]:
    """One line for each sort of note, numbers aside: the first of its sort, and how many there are."""
    sorts: dict[str, list[str]] = {}
    for note in (note for row in rows for note in row["notes"]):
        sorts.setdefault(re.sub(r"\d+", "#", note), []).append(note)
    return [f"{found[0]} ({len(found)} of {len(rows)} answer{'s'[: len(rows) > 1]})" for found in sorts.values()]


def _mean_cost(rows: Sequence[Row]) -> dict[str, float]:
    total = sum((Cost(**row["cost"]) for row in rows), Cost())
    return {name: value / len(rows) for name, value in asdict(total).items()}


def _ends(interval: Interval) -> list[float]:
    return [interval.low, interval.high]


def _within(interval: Interval, margin: float) -> bool:
    return -margin <= interval.low and interval.high <= margin


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
