"""What the writers of pages share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Results = Mapping[str, dict[str, Any]]


def entries(results: Results, name: str, part: str | None = None) -> list[dict[str, Any]]:
    return [entry for entry in results.get(name, {}).get("runs", ()) if part in (None, entry["part"])]


def not_measured(command: str) -> str:
    return f"Not measured yet: `python -m benchmarks.{command}`.\n"


def subject(entry: dict[str, Any]) -> str:
    subject = entry["subject"]
    return f"{subject['model']}, {subject['dtype']}, {threads(subject['threads'])}"


def threads(count: int) -> str:
    return f"{count} thread{'s' if count != 1 else ''}"


def markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"
