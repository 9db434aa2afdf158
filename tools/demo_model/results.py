"""Gathers what training and evaluation wrote into results.json, the source of every number in model cards.

python -m tools.demo_model.results --runs build/demo_model
"""

import argparse
import json
from pathlib import Path

RESULTS = Path(__file__).parent / "results.json"
PARTS = {"training": "summary", "validation": "validation", "test": "test", "float16": "float16"}


def gather(runs: Path) -> dict[str, dict]:
    """Per run (a folder with summary.json): what its JSON files say, absent ones left out."""
    found = {}
    for folder in sorted(path.parent for path in runs.glob("*/summary.json")):
        files = {part: folder / f"{name}.json" for part, name in PARTS.items()}
        found[folder.name] = {part: json.loads(path.read_text()) for part, path in files.items() if path.exists()}
    return found


def machine() -> str:
    """The processor's name as Linux gives it, and how many it has."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} processors"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("build/demo_model"))
    results = {"machine": machine(), "runs": gather(parser.parse_args().runs)}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(f"{', '.join(results['runs'])} -> {RESULTS}")


if __name__ == "__main__":
    main()
