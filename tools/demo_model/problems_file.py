"""Writes the held-out problems that the package carries: one JSON object a line.

python -m tools.demo_model.problems_file --out src/tokenscale/experiments/data/arithmetic
"""

import argparse
import json
from pathlib import Path

from tools.demo_model.problems import held_out

COUNTS = {"validation": 2000, "test": 2000}


def lines(split: str) -> list[str]:
    """The problems of a split as JSON texts with id, question and answer."""
    problems = held_out(split, COUNTS[split])
    return [
        json.dumps({"id": f"{split}-{number:04}", "question": problem.question, "answer": str(problem.answer)})
        for number, problem in enumerate(problems, start=1)
    ]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for split in COUNTS:
        (out / f"{split}.jsonl").write_text("\n".join(lines(split)) + "\n")


if __name__ == "__main__":
    main()
