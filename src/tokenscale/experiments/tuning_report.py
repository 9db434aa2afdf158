"""What a search found, as plain values, as a page, as profiles, and as arms for another recipe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tokenscale.core.cost import Cost
from tokenscale.core.model import LanguageModel
from tokenscale.experiments.statistics import LEVEL
from tokenscale.experiments.tables import Table, amount
from tokenscale.experiments.tuning_data import Data
from tokenscale.experiments.tuning_objective import Difference, Measured, Objective
from tokenscale.experiments.tuning_search import Found
from tokenscale.experiments.tuning_space import Space
from tokenscale.pipeline import Pipeline
from tokenscale.recipe import Recipe
from tokenscale.recipe_tune import TuneSection, place_of, with_values
from tokenscale.token_level.roe_options import NoisyRows

Entry = dict[str, Any]
MOST_NATS = 700  # exp of more is no float


@dataclass(frozen=True)
class Tuned:
    """One arm after its search; `before` and `after` are its losses on the test data, `cost` their bill."""

    arm: str
    space: Space
    found: Found
    pipeline: Pipeline
    before: Measured
    after: Measured
    cost: Cost
    profile: str | None


def build(
    recipe: Recipe,
    tune: TuneSection,
    lm: LanguageModel,
    objective: Objective,
    data: Data,
    tuned: Sequence[Tuned],
) -> Entry:
    """The report as plain JSON values. Losses are in `unit`: less is better."""
    source = "stdlib_docs" if tune.texts else "text_files" if tune.text_files else tune.task or next(iter(recipe.tasks))
    described = {
        split: {
            "source": source,
            "split": section.split,
            "samples": len(getattr(data, split)),
            "digest": data.digests[split],
        }
        for split, section in (("validation", tune.data), ("test", tune.test))
    }
    searched, tested = Cost.total(t.found.cost for t in tuned), Cost.total(t.cost for t in tuned)
    return {
        "question": recipe.question,
        "model": lm.name,
        "fingerprint": lm.fingerprint,
        "objective": tune.objective,
        "unit": objective.unit,
        "trials": tune.budget.trials,
        "level": LEVEL,
        "data": described,
        "arms": [_arm(one, objective) for one in tuned],
        "not_tuned": [name for name in recipe.arms if name not in tune.parameters],
        "cost": {
            "search": searched.to_dict(),
            "test": tested.to_dict(),
            "total": (searched + tested).to_dict(),
        },
    }


def _arm(one: Tuned, objective: Objective) -> Entry:
    after, before = one.after, one.before
    changed = one.pipeline != one.space.pipeline
    gain = objective.compare([p.total for p in after.parts], [p.total for p in before.parts], after.parts)
    clean = [p.clean for p in after.parts if p.clean is not None]
    against = None
    if len(clean) == len(after.parts):
        against = objective.compare([p.total for p in after.parts], clean, after.parts)
    values = {name: list(v) if isinstance(v, tuple) else v for name, v in one.space.arguments(one.found.values).items()}
    return {
        "name": one.arm,
        "pipeline": str(one.space.pipeline),
        "tuned": str(one.pipeline),
        "values": values,
        "profile": one.profile,
        "trials": {
            "best": one.found.trial,
            "complete": one.found.complete,
            "pruned": one.found.pruned,
            "interrupted": one.found.interrupted,
        },
        "validation": {"untuned": _finite(one.found.own_loss), "tuned": _finite(one.found.loss)},
        "test": {
            "untuned": _finite(before.loss),
            "tuned": _finite(after.loss),
            "difference": _described(gain),
            "clean": _finite(math.fsum(clean) / sum(p.weight for p in after.parts)) if against else None,
            "against_clean": None if against is None else _described(against),
        },
        "verdict": _verdict(gain, against, changed),
        "cost": {"search": one.found.cost.to_dict(), "test": one.cost.to_dict()},
    }


def _verdict(gain: Difference, clean: Difference | None, changed: bool) -> str:
    """What the test data say about tuning, and about the tuned arm beside the model itself."""
    said = _gain(gain) if changed else "The search found nothing better than the arm as written."
    if clean is None or (clean.interval is not None and clean.interval.high < 0):
        return said
    worse = clean.interval is not None and clean.interval.low > 0
    return f"{said} The tuned arm is {'worse than' if worse else 'not shown to be better than'} its clean row alone."


def _gain(gain: Difference) -> str:
    if gain.interval is None:
        return "Tuning gains nothing that can be shown: there is no interval for these test data."
    if gain.interval.high < 0:
        return "Tuning gains on the test data."
    if gain.interval.low > 0:
        return "Tuning made the arm worse on the test data."
    return f"Tuning gains nothing that {gain.units} documents or problems can show."


def _described(gain: Difference) -> Entry:
    ends = None if gain.interval is None else [gain.interval.low, gain.interval.high]
    return {"mean": _finite(gain.mean), "interval": ends, "units": gain.units}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def profile(report: Entry, one: Tuned, lm: LanguageModel, studies: str) -> str:
    """The YAML text of an arm's profile: tau of every MoE layer of one model, and how it was found."""
    assert one.space.noise is not None
    index, _ = place_of(one.pipeline, one.space.noise)
    stage = one.pipeline[index]
    assert isinstance(stage, NoisyRows)
    entry = next(arm for arm in report["arms"] if arm["name"] == one.arm)
    described = {
        "fingerprint": lm.fingerprint,
        "model": lm.name,
        "layers": lm.inspect_layers(),
        "tau": list(stage.taus(lm.shape.moe_layers)),
        "arm": one.arm,
        "pipeline": str(one.pipeline),
        "objective": {"name": report["objective"], "unit": report["unit"]},
        "validation": report["data"]["validation"] | entry["validation"],
        "test": report["data"]["test"] | entry["test"],
        "verdict": entry["verdict"],
        "cost": {name: dict(bill) for name, bill in entry["cost"].items()},
        "study": {"file": studies, "name": one.arm, **entry["trials"]},
    }
    return yaml.safe_dump(described, sort_keys=False, allow_unicode=True, width=110)


def tuned_arms(tuned: Sequence[Tuned], folder: Path) -> str:
    """Arms that another recipe can include, as tuned; those with a profile name it, which must be there."""
    arms = {}
    for one in tuned:
        pipeline = one.pipeline
        if one.profile is not None and one.space.noise is not None:
            pipeline = with_values(pipeline, {one.space.noise: str(folder / one.profile)})
        arms[one.arm] = str(pipeline)
    return yaml.safe_dump({"arms": arms}, sort_keys=False, allow_unicode=True, width=1000)


def table(report: Entry) -> Table:
    """One row an arm: what it loses on the test data as written and as tuned, and what the search cost."""
    rows = [
        (
            arm["name"],
            number(arm["test"]["untuned"], report["objective"]),
            number(arm["test"]["tuned"], report["objective"]),
            signed(arm["test"]["difference"]),
            signed(arm["test"]["against_clean"]),
            f"{arm['trials']['complete']} + {arm['trials']['pruned']} pruned",
            f"{amount(arm['cost']['search']['flops'])}FLOP",
        )
        for arm in report["arms"]
    ]
    headers = ("arm", "untuned", "tuned", "change", "against clean", "trials", "search")
    samples = report["data"]["test"]["samples"]
    return Table(f"{report['model']} on {samples} test samples, {report['unit']}", headers, rows)


def lines(report: Entry) -> list[str]:
    """What the table does not say."""
    found = [f"{arm['name']}: {arm['verdict']} {_values(arm['values'])}" for arm in report["arms"]]
    if report["not_tuned"]:
        found.append(f"not tuned: {', '.join(report['not_tuned'])}")
    bill = {name: f"{amount(cost['flops'])}FLOP" for name, cost in report["cost"].items()}
    found.append(f"The search cost {bill['search']}, the test {bill['test']}; intervals are {report['level']:.0%}.")
    return found


def _values(values: Entry) -> str:
    """Found values in four digits."""
    shown = {name: value if isinstance(value, list) else [value] for name, value in values.items()}
    texts = {name: " ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in vs) for name, vs in shown.items()}
    return "; ".join(f"{name}: {text}" for name, text in texts.items())


def markdown(report: Entry) -> str:
    """The whole page."""
    bill = [(name, *(amount(v) for v in cost.values())) for name, cost in report["cost"].items()]
    costs = Table("Cost", ("", *report["cost"]["total"]), bill)
    arms = [f"- {arm['name']}: `{arm['pipeline']}` became `{arm['tuned']}`" for arm in report["arms"]]
    parts = [
        f"# {report['question']}",
        table(report).markdown(),
        "\n".join(f"- {line}" for line in lines(report)),
        costs.markdown(),
        "Pipelines with every default written out:",
        "\n".join(arms),
    ]
    return "\n\n".join(parts) + "\n"


def number(loss: float | None, objective: str) -> str:
    """A loss; of a perplexity with exp(loss) behind it."""
    if loss is None:
        return "infinite"
    if objective != "perplexity" or loss > MOST_NATS:
        return f"{loss:.4f}"
    return f"{loss:.4f} (ppl {math.exp(loss):.2f})"


def signed(gain: Entry | None) -> str:
    if gain is None:
        return ""
    if gain["mean"] is None or gain["interval"] is None:
        return "no interval"
    low, high = gain["interval"]
    return f"{gain['mean']:+.4f} [{low:+.4f}, {high:+.4f}]"
