"""The search of one arm's parameters: Optuna's TPE, trial by trial, over chunks of the validation data.

Killed at any trial and begun again, a study has the same trials as one that was never stopped: each
trial has a sampler of its own, seeded by how many have ended, and what was cut off counts for nothing
but its cost.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from tokenscale.core.cost import Cost

ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
COST = "cost"
# Five trials, then whoever is worse than the median after the second part of the data is dropped.
BEFORE_PRUNING, WARM_UP = 5, 1


@dataclass(frozen=True)
class Dimension:
    """One number (or choice) to find: low..high, whole where both are integers, or one of `choices`."""

    name: str
    low: float | int = 0
    high: float | int = 0
    log: bool = False
    choices: tuple[Any, ...] | None = None

    def suggest(self, trial: Trial) -> Any:
        if self.choices is not None:
            return trial.suggest_categorical(self.name, list(self.choices))
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(self.name, self.low, self.high, log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)

    def holds(self, value: Any) -> bool:
        """Whether a value could have been suggested."""
        if self.choices is not None:
            return any(value == choice and type(value) is type(choice) for choice in self.choices)
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high


@dataclass(frozen=True)
class Found:
    """What a search ended with. `values` gave the least loss, in trial number `trial`, counted from 0.

    `own_loss` is the loss of the arm as written, None where it lies outside the bounds. `cost` is that
    of all trials, `interrupted` ones included.
    """

    values: dict[str, Any]
    loss: float
    trial: int
    own_loss: float | None
    complete: int
    pruned: int
    interrupted: int
    cost: Cost


# (values, number of the chunk) -> (summed loss, summed weight, cost)
Evaluate = Callable[[Mapping[str, Any], int], tuple[float, float, Cost]]


def search(
    study: optuna.Study,
    space: Sequence[Dimension],
    evaluate: Evaluate,
    *,
    chunks: int,
    trials: int,
    seed: int,
    own: Mapping[str, Any],
    progress: Callable[[int, float | None, Cost], None] = lambda done, best, cost: None,
) -> Found:
    """Goes on with a study until `trials` trials have ended. The first one is the arm's `own` values.

    A trial whose mean loss over the chunks so far is above the median of the earlier ones is pruned.
    `progress(ended, least loss, cost)` is called at the start, and after each trial.
    """
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
    inside = all(d.holds(own[d.name]) for d in space)
    study.pruner = optuna.pruners.MedianPruner(n_startup_trials=BEFORE_PRUNING, n_warmup_steps=WARM_UP)
    while (ended := len(study.get_trials(deepcopy=False, states=ENDED))) < trials:
        progress(ended, *_so_far(study))
        if ended == 0 and inside:
            _enqueue(study, own)
        study.sampler = optuna.samplers.TPESampler(seed=_seed(seed, ended))
        _run(study, space, evaluate, chunks)
    progress(ended, *_so_far(study))
    return _found(study, own if inside else None)


def _enqueue(study: optuna.Study, own: Mapping[str, Any]) -> None:
    """Makes `own` the next trial. Optuna's skip_if_exists would count those that were cut off."""
    if not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        study.enqueue_trial(dict(own))


def _seed(seed: int, ended: int) -> int:
    return int(np.random.SeedSequence([seed, ended]).generate_state(1)[0])


def _run(study: optuna.Study, space: Sequence[Dimension], evaluate: Evaluate, chunks: int) -> None:
    """One trial. What ends it early leaves its cost and no loss."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        trial = study.ask()
        values = {dimension.name: dimension.suggest(trial) for dimension in space}
    total, weight, cost = 0.0, 0.0, Cost()
    for chunk in range(chunks):
        try:
            lost, weighed, billed = evaluate(values, chunk)
        except BaseException:
            study.tell(trial, state=TrialState.FAIL)
            raise
        total, weight, cost = total + lost, weight + weighed, cost + billed
        trial.set_user_attr(COST, cost.to_dict())
        trial.report(total / weight, chunk)
        if chunk + 1 < chunks and trial.should_prune():
            study.tell(trial, state=TrialState.PRUNED)
            return
    study.tell(trial, total / weight)


def _cost(trial: FrozenTrial) -> Cost:
    return Cost(**trial.user_attrs[COST]) if COST in trial.user_attrs else Cost()


def _so_far(study: optuna.Study) -> tuple[float | None, Cost]:
    trials = study.get_trials(deepcopy=False)
    losses = [t.value for t in trials if t.state is TrialState.COMPLETE and t.value is not None]
    return min(losses, default=None), Cost.total(_cost(t) for t in trials)


def _found(study: optuna.Study, own: Mapping[str, Any] | None) -> Found:
    trials = study.get_trials(deepcopy=False)
    complete = [t for t in trials if t.state is TrialState.COMPLETE]
    ended = [t for t in trials if t.state in ENDED]
    # min takes the first of equals, so the arm as written wins a tie.
    best = min(complete, key=lambda t: t.value if t.value is not None else float("inf"))
    assert best.value is not None
    return Found(
        values=dict(best.params),
        loss=best.value,
        trial=ended.index(best),
        own_loss=next((t.value for t in complete if own is not None and t.params == own), None),
        complete=len(complete),
        pruned=len(ended) - len(complete),
        interrupted=len(trials) - len(ended),
        cost=Cost.total(_cost(t) for t in trials),
    )
