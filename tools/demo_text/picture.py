"""Draws the held-out loss of both text models against tau, from results.json.

python -m tools.demo_text.picture --out docs/pictures/text-models.svg
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

from tools.demo_text.results import NAMES, RESULTS

COLOURS = {1: "#444444", 2: "#9ecae1", 4: "#4292c6", 8: "#08519c", 16: "#d95f0e"}


def line(test: dict, n: int, current_kv: str) -> tuple[list[float], list[float], list[float]]:
    """(taus, losses, half widths) of one n, from tau = 0, where every n is the clean model."""
    clean = next(row["loss"] for row in test["rows"] if row["n"] == 1)
    keys = {"n": n, "current_kv": current_kv, "clean_layers": 0}
    rows = sorted((r for r in test["rows"] if keys.items() <= r.items()), key=lambda row: row["tau"])
    return (
        [0.0, *(row["tau"] for row in rows)],
        [clean, *(row["loss"] for row in rows)],
        [0.0, *(row["half_width"] for row in rows)],
    )


def panel(axes: Axes, name: str, test: dict, current_kv: str) -> None:
    """One model: a line and a band for each n."""
    clean = next(row["loss"] for row in test["rows"] if row["n"] == 1)
    axes.axhline(clean, color=COLOURS[1], linestyle="--", linewidth=1.2, label="n = 1 (no noise)")
    for n, colour in COLOURS.items():
        if n > 1:
            taus, losses, halves = line(test, n, current_kv)
            low, high = ([x + s * h for x, h in zip(losses, halves, strict=True)] for s in (-1, 1))
            axes.fill_between(taus, low, high, color=colour, alpha=0.15, linewidth=0)
            axes.plot(taus, losses, color=colour, marker="o", markersize=3.5, linewidth=1.5, label=f"n = {n}")
    axes.set_title(name)
    axes.set_xlabel("tau")
    axes.grid(alpha=0.25)
    axes.ticklabel_format(useOffset=False)


def draw(models: dict[str, dict], out: Path, current_kv: str = "own") -> None:
    """Two panels, each with its own scale; the same file from the same figures."""
    pyplot.rcParams.update({"svg.hashsalt": "tokenscale", "svg.fonttype": "none", "font.size": 10})
    figure, both = pyplot.subplots(1, 2, figsize=(9.5, 4.2), layout="constrained")
    titles = {"demo-text": "demo-text: trained without noise", "demo-text-noisy": "demo-text-noisy: trained with noise"}
    for axes, name in zip(both, NAMES, strict=True):
        panel(axes, titles[name], models[name]["reference"], current_kv)
    both[0].set_ylabel("held-out loss, nats per token")
    both[0].legend(frameon=False, fontsize=9, title="bands: 95%, change against n = 1", title_fontsize=8)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None, dpi=150)
    pyplot.close(figure)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/pictures/text-models.svg"))
    draw(json.loads(RESULTS.read_text())["models"], parser.parse_args().out)


if __name__ == "__main__":
    main()
