"""Entries of a result file as tables of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenscale.experiments.tables import Table

Entry = dict[str, Any]
HEADERS = ("work", "against", "ours", "theirs", "ratio", "quartiles", "wanted", "of the limit")
ROOFLINE_HEADERS = ("n", "tau", "experts a layer", "MB to read", "limit", "measured", "in limits")
OUTSIDE = 0.25  # share of a part's time in torch's operations, below which none of them says what it does
PROFILE_HEADERS = ("part", "ms", "share", "in operations", "largest operation")


def compared(entry: Entry) -> Table | None:
    """The comparisons of one part on one subject; None where there are none."""
    rows = [comparison(one) for one in entry["comparisons"]]
    return Table(title(entry), HEADERS, rows) if rows else None


def title(entry: Entry) -> str:
    subject = entry["subject"]
    return f"{entry['part']}: {subject_text(subject)}"


def subject_text(subject: Entry) -> str:
    threads = f"{subject['threads']} thread{'s' if subject['threads'] != 1 else ''}"
    experts = "" if subject["experts"] == "none" else f", experts: {subject['experts']}"
    return f"{subject['model']}, {subject['dtype']}, {threads}{experts}"


def comparison(one: Entry) -> tuple[str, ...]:
    """The cells of a comparison."""
    ratio, unit = one["ratio"], one["unit"]
    share = "" if one["share_of_limit"] is None else f"{100 * one['share_of_limit']:.0f}%"
    quartiles = f"[{number(ratio['lower_quartile'])}, {number(ratio['upper_quartile'])}]"
    return (
        one["work"],
        one["against"],
        f"{number(one['ours'])} {unit}",
        f"{number(one['theirs'])} {unit}",
        f"{number(ratio['median'])}x",
        quartiles if ratio["lower_quartile"] != ratio["upper_quartile"] else "",
        wanted(one),
        share,
    )


def wanted(one: Entry) -> str:
    """What the ratio should be, and whether it is; empty where nothing is wanted."""
    return f"{text}: {'met' if one['met'] else 'NOT met'}" if (text := bound(one["target"])) else ""


def bound(target: Entry) -> str:
    """A target in words; empty where there is none."""
    if target["least"] is None and target["most"] is None:
        return ""
    least = f"at least {target['least']:g}x" if target["least"] is not None else f"at most {target['most']:.3g}x"
    return least + (f", aim {target['aim']:g}x" if target["aim"] is not None else "")


def number(value: float) -> str:
    """Three significant digits, no exponents for what tables hold."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def roofline(entry: Entry) -> Table:
    rows = [
        (
            str(point["n"]),
            f"{point['tau']:g}" if point["n"] > 1 else "-",
            f"{point['experts_per_layer']:.1f}",
            number(point["megabytes"]),
            f"{number(point['limit_ms'])} ms",
            f"{number(point['ms'])} ms",
            f"{point['times_limit']:.2f}",
        )
        for point in entry["facts"]["points"]
    ]
    return Table(title(entry), ROOFLINE_HEADERS, rows)


def profiled(entry: Entry, most: int = 5) -> Table:
    rows = [
        (
            part["part"],
            number(part["ms"]),
            f"{100 * part['share']:.0f}%",
            f"{100 * part['share_in_operations']:.0f}%",
            part["largest_operation"] if part["share_in_operations"] >= OUTSIDE else "(outside of torch)",
        )
        for part in entry["facts"]["parts"][:most]
    ]
    return Table(title(entry), PROFILE_HEADERS, rows)


def tables(entries: Sequence[Entry]) -> list[Table]:
    """All tables of a result file, in order."""
    found = []
    for entry in entries:
        if table := compared(entry):
            found.append(table)
        if "points" in entry["facts"]:
            found.append(roofline(entry))
        if "parts" in entry["facts"]:
            found.append(profiled(entry))
    return found


def omissions(entries: Sequence[Entry]) -> list[str]:
    """What was left out, with the reason."""
    return [f"{entry['part']}: {reason}" for entry in entries for reason in entry["left_out"]]


def bandwidth_text(limits: Entry) -> str:
    gigabytes, gigaflops = limits["bytes_per_second"] / 1e9, limits["flops_per_second"] / 1e9
    threads = f"{limits['threads']} thread{'s' if limits['threads'] != 1 else ''}"
    return f"{gigabytes:.1f} GB/s read by {threads} ({limits['way']}), products of {gigaflops:.0f} GFLOP/s"
