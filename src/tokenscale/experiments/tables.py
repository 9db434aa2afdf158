"""A report as tables of text, for the terminal and for report.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

Entry = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """A titled table; every row has one cell a header."""

    title: str
    headers: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def markdown(self) -> str:
        lines = [self.headers, ("---",) * len(self.headers), *self.rows]
        body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        return f"### {self.title}\n\n{body}"


ARM_COLUMNS: dict[str, Callable[[Entry, Entry | None], str]] = {
    "arm": lambda arm, _: arm["name"],
    "pipeline": lambda arm, _: arm["brief"],
    "accuracy": lambda arm, _: percent(arm["accuracy"]),
    "interval": lambda arm, _: interval(arm["interval"]),
    "diff": lambda _, pair: signed(pair["difference"]) if pair else "",
    "p": lambda _, pair: p_value(pair["p"]) if pair else "",
    "FLOPs": lambda arm, _: amount(arm["cost"]["flops"]),
    "cost": lambda arm, _: "-" if arm["relative_flops"] is None else f"x{arm['relative_flops']:.2f}",
    "new tokens": lambda arm, _: f"{arm['cost']['new_tokens']:.1f}",
    "expert loads": lambda arm, _: f"{arm['cost']['expert_loads']:.0f}",
    "seconds": lambda arm, _: f"{arm['seconds']:.1f}",
}


def arm_tables(report: Entry) -> list[Table]:
    """Per model and task: accuracy with interval, difference to the baseline with p, cost per problem."""
    tables = []
    for (task, model), arms in _grouped(report["arms"]):
        pairs = [pair for pair in report["pairs"] if (pair["task"], pair["model"]) == (task, model)]
        rows = []
        for arm in arms:
            pair = _against(pairs, arm["name"], report["baseline"])
            rows.append(tuple(cell(arm, pair) for cell in ARM_COLUMNS.values()))
        title = f"{model} on {counted(arms[0]['problems'], 'problem')} of {task}"
        tables.append(Table(title, tuple(ARM_COLUMNS), rows))
    return tables


def legend(report: Entry) -> str:
    """What the columns of the arms' table mean."""
    tests = sorted({pair["test"] for pair in report["pairs"]})
    test = f"diff: points against {report['baseline']}; p: {', '.join(tests)}, not adjusted. " if tests else ""
    cost = f"FLOPs, tokens and expert loads per problem; cost: FLOPs relative to {report['baseline']}"
    methods = ", ".join(dict.fromkeys(arm["interval_method"] for arm in report["arms"]))
    return f"interval: {report['level']:.0%} ({methods}); {test}{cost}; seconds: this run."


def claims(report: Entry) -> list[str]:
    """One line for each declared pair of which the arms' table does not say all.

    It has only pairs with the baseline, and nothing of the recipe's margin, if there is one.
    """
    margin = report["margin"]
    told = [report["baseline"]] if margin is None else []
    return [
        _claim(pair, margin)
        for pair in report["pairs"]
        if pair["declared"] and pair["first"] not in told and pair["second"] not in told
    ]


def _claim(pair: Entry, margin: float | None) -> str:
    where = f"{pair['first']} - {pair['second']} ({pair['task']}, {pair['model']})"
    found = f"{where}: {signed(pair['difference'])} points {interval(pair['interval'])}, p {p_value(pair['p'])}"
    if margin is None:
        return found
    return (
        f"{found}; {'equal' if pair['within_margin'] else 'not shown to be equal'} within the margin of {margin} points"
    )


def _against(pairs: Iterable[Entry], name: str, reference: str) -> Entry | None:
    """The pair of an arm with the baseline, as arm minus baseline."""
    for pair in pairs:
        if (pair["first"], pair["second"]) == (name, reference):
            return pair
        if (pair["first"], pair["second"]) == (reference, name):
            return pair | {"difference": -pair["difference"]}
    return None


def pair_tables(report: Entry) -> list[Table]:
    """Per model and task: every pair of arms."""
    headers = ("first - second", "declared", "difference", "interval", "p", "only first right", "only second right")
    tables = []
    for (task, model), pairs in _grouped(report["pairs"]):
        rows = [
            (
                f"{pair['first']} - {pair['second']}",
                "yes" if pair["declared"] else "no",
                signed(pair["difference"]),
                interval(pair["interval"]),
                p_value(pair["p"]),
                str(pair["first_only"]),
                str(pair["second_only"]),
                "-" if pair["detectable"] is None else f"{100 * pair['detectable']:.1f}",
            )
            for pair in pairs
        ]
        title = f"Differences on {task}, {model} ({pairs[0]['interval_method']}; {pairs[0]['test']})"
        tables.append(Table(title, (*headers, "smallest shown"), rows))
    return tables


def behaviour_tables(report: Entry) -> list[Table]:
    """Per model and task: how the answers ended and what noise did to the routing."""
    headers = ("arm", "truncated", "unparsable", "router choices changed", "experts per token and layer", "near ties")
    tables = []
    for (task, model), arms in _grouped(report["arms"]):
        rows = [
            (
                arm["name"],
                percent(arm["truncated"]),
                percent(arm["unparsable"]),
                percent(arm["router_choices_changed"]) if arm["router_choices"] else "-",
                "-" if arm["distinct_experts"] is None else f"{arm['distinct_experts']:.2f}",
                str(arm["near_ties"]),
            )
            for arm in arms
        ]
        tables.append(Table(f"Answers of {model} on {task}", headers, rows))
    return tables


def smallest_shown(report: Entry) -> list[str]:
    """One line per model and task: the smallest difference that its number of problems can show."""
    return [_smallest(entry) for entry in report["smallest_shown"]]


def _smallest(entry: Entry) -> str:
    where = f"{counted(entry['problems'], 'problem')} ({entry['task']}, {entry['model']})"
    if entry["difference"] is None:
        return f"{where} {'is' if entry['problems'] == 1 else 'are'} too few to show any difference."
    shown = (
        f"{where} can show a paired difference of {100 * entry['difference']:.1f} points or more (power "
        f"{entry['power']:.2f}, two-sided alpha {entry['alpha']:.2f}), if "
    )
    if entry["seeds"] > 1:
        return shown + f"differences averaged over {entry['seeds']} seeds spread as they do here."
    return shown + f"two arms differ on {100 * entry['discordance']:.0f}% of the problems."


def notes(report: Entry) -> list[str]:
    """What arms want the user to know, each with its arm."""
    return [f"{arm['name']} ({arm['model']}): {note}" for arm in report["arms"] for note in arm["notes"]]


def markdown(report: Entry) -> str:
    """The whole page."""
    recipe = report["run"]["recipe"]
    versions = ", ".join(f"{name} {value}" for name, value in report["run"]["versions"].items())
    text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None)
    parts = [
        f"# {report['question']}",
        report["caveat"],
        *(table.markdown() for table in arm_tables(report)),
        f"{legend(report)} Costs are for the scenario *alone*: the problem by itself, one prefill shared by its "
        "candidates. Seconds depend on the machine and the batch, and are no measurement of speed.",
        "\n".join(f"- {line}" for line in [*claims(report), *smallest_shown(report), *notes(report)]),
        *(table.markdown() for table in pair_tables(report)),
        *(table.markdown() for table in behaviour_tables(report)),
        "Truncated and unparsable are shares of all sampled answers; near ties are tokens that another order "
        "of floating-point sums could have changed.",
        f"## How it was run\n\n{versions}; fingerprint `{report['fingerprint']}`; seeds {recipe['seeds']}.",
        "Pipelines with every default written out:",
        "\n".join(f"- {arm['name']}: `{arm['pipeline']}`" for arm in report["arms"][: len(recipe["arms"])]),
        f"```yaml\n{text}```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _grouped(entries: Sequence[Entry]) -> list[tuple[tuple[str, str], list[Entry]]]:
    """Entries by task and model, in order of appearance."""
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry["task"], entry["model"]), []).append(entry)
    return list(groups.items())


def counted(number: int, thing: str) -> str:
    """ "1 problem", "2 problems"."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def signed(difference: float) -> str:
    return f"{100 * difference:+.1f}"


def interval(ends: Sequence[float]) -> str:
    low, high = (100 * end for end in ends)
    return f"[{low:.1f}, {high:.1f}]"


def p_value(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else f"{p:.0e}"


def amount(value: float) -> str:
    """Three digits and a unit: 41.2 M."""
    for size, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"
