"""The parts of the benchmark on the models of docs/benchmarks.md, each into a result file of its own.

    python -m benchmarks.run steps --out benchmarks/results/steps.json
    python -m benchmarks.run all

`all` runs every part but `large`, a process each, into benchmarks/results/. Needs an otherwise idle machine, about
ten minutes on two cores. `large` takes 16 GB of memory and runs alone.
"""

from __future__ import annotations

import argparse
import gc
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from benchmarks.common import RESULTS, finish
from tokenscale.bench import suite
from tokenscale.bench.part import QUICK, Sizes
from tokenscale.bench.subject import Subject

LARGE = "random-olmoe-1b-7b"


class Job(NamedTuple):
    """Parts of the suite on one model, in one type, on so many threads."""

    parts: tuple[str, ...]
    model: str
    dtype: str
    threads: int


def random_olmoe(part: str, *threads: int, dtypes: tuple[str, ...] = ("float32",)) -> list[Job]:
    return [Job((part,), "random-olmoe", dtype, count) for dtype in dtypes for count in threads]


PLANS: Mapping[str, list[Job]] = {
    "greedy": [Job(("greedy",), "demo", "float32", 1), *random_olmoe("greedy", 1, 2)],
    "vote": random_olmoe("vote", 2),
    "prompts": [Job(("prompts",), "demo", "float32", 1), *random_olmoe("prompts", 2)],
    "steps": random_olmoe("steps", 1, 2, dtypes=("float32", "bfloat16")),
    "memory": random_olmoe("memory", 1),
    "scoring": [Job(("scoring",), "demo", "float32", 1)],
    "roofline": random_olmoe("roofline", 2, dtypes=("float32", "bfloat16")),
    "profile": random_olmoe("profile", 1),
    "large": [Job(("steps", "roofline"), LARGE, "bfloat16", 2)],
}
LARGE_SIZES = replace(Sizes(), ns=(8, 32), roofline_rows=(1, 8, 32), taus=(1.0,), steps=5, guard=False)
OTHERS = ("llama_cpp", "kernels", "beams", "constraint_masks")  # scripts of their own


def run(plan: str, quick: bool, rounds: int | None, model: str | None, out: Path | None) -> None:
    """One plan: opens each of its models in turn. `model` stands in for the plan's own."""
    sizes = QUICK if quick else LARGE_SIZES if plan == "large" else Sizes()
    if rounds is not None:
        sizes = replace(sizes, rounds=rounds, steps=rounds)
    found = []
    for job in PLANS[plan]:
        subject = Subject.open(model or job.model, job.dtype, job.threads)
        found += suite.runs(subject, job.parts, sizes, quick)
        del subject  # before the next model is made
        gc.collect()
    finish(found, out, f"python -m benchmarks.run {plan}")


def run_all(quick: bool, results: Path) -> None:
    """Every part in a process of its own, then the scripts of their own."""
    given = ["--quick"] if quick else []
    commands = {plan: ["benchmarks.run", plan] for plan in PLANS if plan != "large"}
    commands |= {name: [f"benchmarks.{name}"] for name in OTHERS}
    for name, command in commands.items():
        print(f"== {name}", flush=True)
        if name == "llama_cpp" and not all(map(find_spec, ("llama_cpp", "gguf"))):
            print("left out: it needs llama-cpp-python and gguf, the extra `bench`")
            continue
        target = str(results / f"{name}.json")
        subprocess.run([sys.executable, "-m", *command, *given, "--out", target], check=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", choices=["all", *PLANS])
    parser.add_argument("--quick", action="store_true", help="one round of little work: to see that it runs")
    parser.add_argument("--rounds", type=int, help="rounds that count")
    parser.add_argument("--model", help="a model in place of the plan's own, such as random-olmoe-tiny")
    parser.add_argument("--out", type=Path, help="the result file (of `all`: the folder)")
    options = parser.parse_args()
    if options.plan == "all":
        run_all(options.quick, options.out or RESULTS)
    else:
        run(options.plan, options.quick, options.rounds, options.model, options.out)


if __name__ == "__main__":
    main()
