"""Gathers training and evaluation into results.json: losses, and changes against the clean row with intervals.

python -m tools.demo_text.results --runs build/demo_text
"""

import argparse
import json
import math
from pathlib import Path

from tools.demo_model.results import machine

RESULTS = Path(__file__).parent / "results.json"
NAMES = ("demo-text", "demo-text-noisy")
PARTS = ("summary", "float16", "temperature", "reference", "library")
CONFIDENCE_95 = 1.959964  # standard errors


def change(losses: list[float], clean: list[float], tokens: list[int]) -> tuple[float, float]:
    """(mean change in nats per token, half width of its 95% interval), paired by document.

    The mean is a ratio, sum d_i / sum m_i over documents of m_i tokens; its variance is that of the
    linearised ratio, B/(B-1) sum (d_i - mean m_i)^2 / (sum m_i)^2 (Cochran, Sampling Techniques, 6.4).
    """
    differences = [a - b for a, b in zip(losses, clean, strict=True)]
    total, count = sum(tokens), len(tokens)
    mean = math.fsum(differences) / total
    squares = math.fsum((d - mean * m) ** 2 for d, m in zip(differences, tokens, strict=True))
    return mean, CONFIDENCE_95 * math.sqrt(count / (count - 1) * squares) / total


def clean_losses(report: dict) -> list[float]:
    """Those of the clean model, by document."""
    return next(row["losses"] for row in report["rows"] if row["n"] == 1)


def table(report: dict) -> dict:
    """The rows of an evaluation with loss and change instead of losses by document."""
    tokens, rows = report["tokens"], []
    clean = clean_losses(report)
    for row in report["rows"]:
        mean, half = change(row["losses"], clean, tokens)
        kept = {key: value for key, value in row.items() if key not in ("losses", "seconds")}
        rows.append({**kept, "loss": sum(row["losses"]) / sum(tokens), "change": mean, "half_width": half})
    found = {"data_sha256": report["data_sha256"], "seed": report["seed"], "documents": len(tokens)}
    found |= {"tokens": sum(tokens), "rows": rows}
    if "one_expert_more" in report:
        mean, half = change(report["one_expert_more"], clean, tokens)
        found["one_expert_more"] = {"change": mean, "half_width": half}
    return found


def temperature(report: dict, tokens: list[int]) -> dict:
    """A temperature's change of the test loss."""
    mean, half = change(report["losses"], report["clean_losses"], tokens)
    kept = {key: report[key] for key in ("data_sha256", "temperature")}
    return {**kept, "change": mean, "half_width": half}


def gather(runs: Path) -> dict[str, dict]:
    """Per model: how it was trained, what storage changed, what was measured on the test split, in both ways."""
    found: dict[str, dict] = {}
    parts = {
        name: {part: json.loads(path.read_text()) for part in PARTS if (path := runs / name / f"{part}.json").exists()}
        for name in NAMES
    }
    for name, read in parts.items():
        tables = {part: table(read[part]) for part in ("reference", "library") if part in read}
        warm = temperature(read["temperature"], read["reference"]["tokens"])
        found[name] = {"training": read["summary"], "float16": read["float16"], "temperature": warm, **tables}
    plain, noisy = (parts[name]["reference"] for name in NAMES)
    mean, half = change(clean_losses(noisy), clean_losses(plain), plain["tokens"])
    found[NAMES[1]]["clean_loss_above_twin"] = {"change": mean, "half_width": half}
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("build/demo_text"))
    results = {"machine": machine(), "models": gather(parser.parse_args().runs)}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(f"{', '.join(results['models'])} -> {RESULTS}")


if __name__ == "__main__":
    main()
