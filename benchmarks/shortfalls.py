"""The table of targets, and why those fall short that do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.page_text import Results, entries, markdown, not_measured, subject
from tokenscale.bench import tables

KEYS = ("part", "model", "dtype", "threads")


def targets(results: Results, reasons: Sequence[Mapping[str, Any]]) -> str:
    """Every comparison with a target, and why those fall short that do."""
    found = _aimed(results)
    if not found:
        return not_measured("run all")
    rows = [
        (subject(entry), one["work"], one["against"], f"{tables.number(one['ratio']['median'])}x", *_wanted(one))
        for entry, one in found
    ]
    missed = [(entry, one) for entry, one in found if not one["met"]]
    text = markdown(("model", "work", "against", "reached", "wanted", "of the limit", ""), rows)
    if not missed:
        return f"{text}\nAll {len(found)} are met.\n"
    lines = [
        f"- {subject(entry)}, {one['work']}, against {one['against']}: {why(entry, one, reasons)}"
        for entry, one in missed
    ]
    return (
        f"{text}\n{len(found) - len(missed)} of {len(found)} are met. What falls short, and why:\n\n"
        + "\n".join(lines)
        + "\n"
    )


def _aimed(results: Results) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return [
        (entry, one)
        for name in results
        for entry in entries(results, name)
        for one in entry["comparisons"]
        if tables.bound(one["target"])
    ]


def _wanted(one: dict[str, Any]) -> tuple[str, str, str]:
    share = one["share_of_limit"]
    met = "met" if one["met"] else "**not met**"
    return tables.bound(one["target"]), "" if share is None else f"{100 * share:.0f}%", met


def why(entry: dict[str, Any], one: dict[str, Any], reasons: Sequence[Mapping[str, Any]]) -> str:
    """The reasons that are written down for a comparison; "no reason is written down" where there is none."""
    found = [str(reason["why"]).strip() for reason in reasons if matches(reason, entry, one)]
    return " ".join(found) or "no reason is written down."


def matches(reason: Mapping[str, Any], entry: dict[str, Any], one: dict[str, Any]) -> bool:
    facts = {"part": entry["part"], **entry["subject"]}
    texts = all(reason[key] in one[key] for key in ("work", "against") if key in reason)
    return texts and all(reason[key] == facts[key] for key in KEYS if key in reason)


def unexplained(results: Results, reasons: Sequence[Mapping[str, Any]]) -> list[str]:
    """Comparisons that fall short without a reason, and reasons that match none."""
    missed = [(entry, one) for entry, one in _aimed(results) if not one["met"]]
    bare = [
        f"{subject(entry)}, {one['work']}, against {one['against']}"
        for entry, one in missed
        if not any(matches(reason, entry, one) for reason in reasons)
    ]
    idle = [f"a reason for none: {r}" for r in reasons if not any(matches(r, entry, one) for entry, one in missed)]
    return bare + idle
