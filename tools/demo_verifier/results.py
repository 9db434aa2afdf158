"""Gathers what training and evaluation wrote into results.json, the source of every number in the model card.

python -m tools.demo_verifier.results --run build/demo_verifier/run --samples build/demo_verifier/samples
"""

import argparse
import json
from pathlib import Path

from tools.demo_model.results import machine
from tools.demo_model.solutions import read_answer
from tools.demo_verifier.samples import read

RESULTS = Path(__file__).parent / "results.json"
PARTS = {
    "training": "summary",
    "validation": "validation",
    "validation_with_trigger": "validation-trigger",
    "test": "test",
    "float16": "float16",
}


def gather(run: Path, samples: Path) -> dict:
    """What the JSON files of a run say, and how many samples there were."""
    rows = read(samples)
    right = sum(read_answer(row.text) == row.answer for row in rows)
    found = {part: json.loads((run / f"{name}.json").read_text()) for part, name in PARTS.items()}
    return {"samples": {"count": len(rows), "right": round(100 * right / len(rows), 2)}, **found}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("build/demo_verifier/run"))
    parser.add_argument("--samples", type=Path, default=Path("build/demo_verifier/samples"))
    options = parser.parse_args()
    results = {"machine": machine(), **gather(options.run, options.samples)}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(f"{options.run} -> {RESULTS}")


if __name__ == "__main__":
    main()
