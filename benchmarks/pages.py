"""Writes the figures of benchmarks/results/ into docs/benchmarks.md and docs/roofline.md, between markers.

    python -m benchmarks.pages

Nothing is measured: pages are functions of the result files and of benchmarks/reasons.yaml alone, and a test
compares the committed ones. A block whose file is not there says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks import figures
from benchmarks.common import RESULTS
from benchmarks.kernel_tables import kernels
from benchmarks.page_text import Results, entries, markdown, not_measured, subject, threads
from benchmarks.shortfalls import targets, unexplained
from tokenscale.bench import tables

ROOT = Path(__file__).parent.parent
PAGES = ("docs/benchmarks.md", "docs/roofline.md")
PICTURE = "docs/pictures/roofline.svg"
CAPTION = "Milliseconds of a step over the number of rows, measured and at the byte limit, and the experts of the rows"
REASONS = Path(__file__).parent / "reasons.yaml"
BLOCK = re.compile(r"(?P<open><!-- generated: (?P<name>[\w ]+) -->\n)(?P<body>.*?)(?P<close><!-- end -->)", re.DOTALL)

PROFILED = {
    "experts": "the gate, up and down products of every expert that some row chose: nearly all bytes of the step",
    "attention projections": "the query, key, value and output matrices, read once for all rows",
    "attention to the cache": "scores and values of the rows over one sequence's keys, with rotary embedding, "
    "masks and the write of row 0",
    "router": "logits, noise and top-k of every row in every layer, and the record of the choice",
    "norms": "the norms of the residual stream, of queries and of keys",
    "lm_head": "the logits of every row over the vocabulary",
    "embed_tokens": "one line of the input table a row",
    "rotary embedding": "sines and cosines of the position",
    "the rest of the step": "the draw of the noise, residual sums, the aggregate over rows, the record for the bill, "
    "and the Python between all of them",
}


def read(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """The result files of a folder, by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def compared(name: str, results: Results) -> str:
    """A table a part: comparisons of all its models, with the subject in front."""
    found = entries(results, name)
    if not found:
        return not_measured(name if name == "llama_cpp" else f"run {name}")
    rows = [
        (subject(entry), *tables.comparison(one))
        for entry in found
        for one in sorted(entry["comparisons"], key=lambda one: one["against"] == "the byte limit")
    ]
    left_out = [f"Left out: {reason}." for reason in tables.omissions(found)]
    return "\n".join([markdown(("model", *tables.HEADERS), rows), *left_out]) + "\n"


def machines(results: Results) -> str:
    """Where the figures come from, a line for each place and day, and what it can do at most."""
    places: dict[tuple[str, ...], list[str]] = {}
    speeds: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for name, data in results.items():
        if "runs" in data:
            places.setdefault(_where(data["machine"]), []).append(f"`{name}.json`")
            for entry in data["runs"]:
                speeds.setdefault((entry["subject"]["dtype"], entry["limits"]["threads"]), []).append(entry["limits"])
    if not places:
        return not_measured("run all")
    headers = ("date", "machine", "GPU", "versions", "compiler", "files in `benchmarks/results`")
    table = markdown(headers, [(*place, ", ".join(names)) for place, names in places.items()])
    lines = [f"- {dtype}: {_speed(limits)}" for (dtype, _), limits in sorted(speeds.items())]
    return table + "\nWhat the machine can do at most, measured in the same runs:\n\n" + "\n".join(lines) + "\n"


def _where(machine: Mapping[str, Any]) -> tuple[str, ...]:
    versions = ("torch", "transformers", "tokenscale")
    return (
        machine["date"],
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gb']:g} GB",
        machine["gpu"] or "none",
        ", ".join(f"{name} {machine[name]}" for name in versions) + f", Python {machine['python']}",
        machine["compiler"] or "none",
    )


def _speed(limits: Sequence[dict[str, Any]]) -> str:
    """The median of several runs, and how far they lie apart."""
    ordered = sorted(limits, key=lambda one: one["bytes_per_second"])
    low, high = (ordered[i]["bytes_per_second"] / 1e9 for i in (0, -1))
    runs = f"; {len(ordered)} runs, {low:.1f} to {high:.1f} GB/s" if len(ordered) > 1 else ""
    return tables.bandwidth_text(ordered[len(ordered) // 2]) + runs


def llama(results: Results) -> str:
    """llama.cpp: the comparison, milliseconds a token, and how far logits agree."""
    found = entries(results, "llama_cpp")
    if not found:
        return not_measured("llama_cpp")
    names = list(found[0]["facts"]["ms per token"])
    headers = (
        "model",
        *(f"{'tokenscale' if n == names[0] else n}, ms per token" for n in names),
        "byte limit, ms per token",
        "logits differ by",
        "transformers from its float32 by",
    )
    rows = []
    for entry in found:
        facts = entry["facts"]
        times = [tables.number(facts["ms per token"][name]) for name in names]
        differ = min(facts["largest difference of a logit"].values())
        rows.append(
            (
                subject(entry),
                *times,
                tables.number(facts["limit, ms per token"]),
                f"{differ:.1e}",
                f"{facts['rounding']:.1e}",
            )
        )
    lines = [f"- {subject(entry)}: {_alone(entry['facts']['alone, ms per token'])}." for entry in found]
    peer = f"The peer is llama-cpp-python {found[0]['facts']['llama-cpp-python']}, built on this machine."
    turns = "Arms take turns in one process; by themselves, milliseconds per token:"
    return f"{markdown(headers, rows)}\n{compared('llama_cpp', results)}\n{peer} {turns}\n\n" + "\n".join(lines) + "\n"


def _alone(times: Mapping[str, float]) -> str:
    ours, (name, theirs) = next(iter(times.values())), list(times.items())[-1]
    return f"tokenscale {tables.number(ours)}, {name} {tables.number(theirs)}"


def profile(results: Results) -> str:
    """The five largest parts of a step, with a sentence on each."""
    found = entries(results, "profile", "profile")
    if not found or not found[0]["facts"]:
        return not_measured("run profile")
    table = tables.profiled(found[0])
    names = [row[0] for row in table.rows]
    lines = [f"- **{name}**: {PROFILED.get(name, 'a part of the model')}." for name in names]
    text = f"{subject(found[0])}, n = {found[0]['facts']['n']}, tau = {found[0]['facts']['tau']:g}."
    return f"{text}\n\n{markdown(table.headers, table.rows)}\n" + "\n".join(lines) + "\n"


def roofline(results: Results) -> str:
    """A table for each type of numbers."""
    found = entries(results, "roofline", "roofline")
    if not found:
        return not_measured("run roofline")
    parts = [f"![{CAPTION}](pictures/roofline.svg)\n"]
    for entry in found:
        table = tables.roofline(entry)
        limit = tables.bandwidth_text(entry["limits"])
        parts.append(f"**{subject(entry)}** ({limit}):\n\n{markdown(table.headers, table.rows)}")
    return "\n".join(parts)


def large(results: Results) -> str:
    """The real shape of OLMoE-1B-7B."""
    found = entries(results, "large", "roofline")
    if not found:
        return not_measured("run large")
    table = tables.roofline(found[0])
    text = f"**{subject(found[0])}** ({tables.bandwidth_text(found[0]['limits'])}):\n\n"
    return text + markdown(table.headers, table.rows) + "\n" + compared("large", results)


def beams(results: Results) -> str:
    """Beam search."""
    data = results.get("beams")
    if data is None:
        return not_measured("beams")
    rows = []
    for batch in (key for key in data if key.startswith("batch ")):
        found = data[batch]
        faster, same = found["times faster than generate"], "same" if found["same sequences"] else "other"
        quartiles = f"[{faster['lower_quartile']:.2f}, {faster['upper_quartile']:.2f}]"
        rows.append((batch, f"{faster['median']:.2f}x {quartiles}", f"{same} sequences", _seconds(found["seconds"])))
    return markdown(("", "times faster than generate", "", "seconds, ours and theirs"), rows) + _place(data)


def _seconds(seconds: Mapping[str, float]) -> str:
    return " and ".join(f"{value:.3f}" for value in seconds.values())


def _place(data: Mapping[str, Any]) -> str:
    where = data["machine"]
    versions = f"torch {where['torch']}, transformers {where['transformers']}"
    return f"\n{where['processor']}, {threads(where['threads'])}, {versions}.\n"


def masks(results: Results) -> str:
    """Masks of constraints: both vocabularies side by side."""
    data = results.get("constraint_masks")
    if data is None:
        return not_measured("constraint_masks")
    sizes = list(data["sizes"].values())
    rows = []
    for same in zip(*(size["patterns"] for size in sizes), strict=True):
        cells = [" / ".join(_time(one[key] * scale) for one in same) for key, scale in MASK_COLUMNS]
        rows.append((f"`{same[0]['pattern']}`", *cells))
    counts = ", ".join(f"{int(size):,}" for size in data["sizes"])
    headers = (
        "pattern",
        "compile",
        "first visit to a state (median)",
        "later visits",
        "compile by outlines_core's `Index`",
    )
    return f"Vocabularies of {counts} tokens, in this order:\n\n{markdown(headers, rows)}{_place(data)}"


MASK_COLUMNS = (("compile_s", 1.0), ("first_us", 1e-6), ("again_us", 1e-6), ("outlines_index_s", 1.0))
UNITS = (("s", 1.0), ("ms", 1e-3), ("us", 1e-6))


def _time(seconds: float) -> str:
    unit, scale = next(((u, s) for u, s in UNITS if seconds >= s), UNITS[-1])
    value = seconds / scale
    return f"{value:.0f} {unit}" if value >= 100 else f"{value:.2g} {unit}"


def blocks(results: Results, reasons: Sequence[Mapping[str, Any]]) -> dict[str, Callable[[], str]]:
    """What stands in a page's blocks, by name."""
    parts = ("greedy", "vote", "prompts", "steps", "memory", "scoring")
    return {
        "machines": lambda: machines(results),
        "targets": lambda: targets(results, reasons),
        "llama": lambda: llama(results),
        **{name: (lambda name=name: compared(name, results)) for name in parts},
        "profile": lambda: profile(results),
        "roofline": lambda: roofline(results),
        "large": lambda: large(results),
        "beams": lambda: beams(results),
        "masks": lambda: masks(results),
        "kernels": lambda: kernels(results),
    }


def filled(page: str, results: Results, reasons: Sequence[Mapping[str, Any]]) -> str:
    """A page with its blocks made anew. Raises KeyError for a block that is not known."""
    made = blocks(results, reasons)
    return BLOCK.sub(lambda found: f"{found['open']}\n{made[found['name']]()}\n{found['close']}", page)


def main() -> None:
    """Writes both pages and the picture."""
    results, reasons = read(), yaml.safe_load(REASONS.read_text())
    for name in PAGES:
        path = ROOT / name
        path.write_text(filled(path.read_text(), results, reasons))
    points = entries(results, "roofline", "roofline")
    if points:
        figures.roofline(points, ROOT / PICTURE)
    for line in unexplained(results, reasons):
        print(f"reasons.yaml: {line}")


if __name__ == "__main__":
    main()
