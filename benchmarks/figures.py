"""The picture of docs/roofline.md."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

COLOURS = ("#4C72B0", "#DD8452", "#55A868", "#8172B3")
MARKERS = ("o", "s", "^", "D")


def digest(entries: Sequence[dict[str, Any]]) -> str:
    """Of the points alone: what the picture shows."""
    points = [[entry["subject"]["dtype"], entry["subject"]["threads"], entry["facts"]["points"]] for entry in entries]
    return hashlib.sha256(json.dumps(points, sort_keys=True).encode()).hexdigest()[:16]


def roofline(entries: Sequence[dict[str, Any]], path: Path) -> None:
    """Milliseconds of a step over n, measured and at the limit, a panel for each type of numbers; experts below."""
    with matplotlib.rc_context({"svg.hashsalt": "tokenscale", "font.size": 9, "svg.fonttype": "none"}):
        figure = Figure(figsize=(4.4 * len(entries), 6), layout="constrained")
        axes = figure.subplots(2, len(entries), squeeze=False, sharex=True, height_ratios=(3, 2))
        for column, entry in enumerate(entries):
            subject = entry["subject"]
            threads = f"{subject['threads']} thread{'s' if subject['threads'] != 1 else ''}"
            axes[0][column].set_title(f"{subject['model']}, {subject['dtype']}, {threads}", fontsize=9)
            _panel(axes[0][column], axes[1][column], entry["facts"]["points"])
        axes[0][0].set_ylabel("milliseconds a step")
        axes[1][0].set_ylabel("distinct experts a layer")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None, "Description": digest(entries)})


def _panel(times: Any, experts: Any, points: Sequence[dict[str, Any]]) -> None:
    taus = sorted({point["tau"] for point in points if point["n"] > 1})
    single = [point for point in points if point["n"] == 1]
    for tau, colour, marker in zip(taus, COLOURS, MARKERS, strict=False):
        line = [*single, *(point for point in points if point["n"] > 1 and point["tau"] == tau)]
        rows = [point["n"] for point in line]
        measured, limits = ([point[key] for point in line] for key in ("ms", "limit_ms"))
        times.plot(rows, measured, color=colour, marker=marker, markersize=4, label=f"tau {tau:g}, measured")
        times.plot(rows, limits, color=colour, linestyle="--", linewidth=1, label=f"tau {tau:g}, byte limit")
        experts.plot(rows, [point["experts_per_layer"] for point in line], color=colour, marker=marker, markersize=4)
    rows = sorted({point["n"] for point in points})
    times.set_xscale("log", base=2)
    times.set_yscale("log")
    times.set_xticks(rows, [str(n) for n in rows])
    times.set_ylim(bottom=0.8 * min(point["limit_ms"] for point in points))
    times.grid(alpha=0.3)
    times.legend(fontsize=7, frameon=False)
    experts.set_xlabel("rows n")
    experts.set_ylim(bottom=0)
    experts.grid(alpha=0.3)
