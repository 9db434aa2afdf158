"""The pages are what the result files give: the committed ones, and made-up ones line by line."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import figures, pages, shortfalls
from benchmarks.page_text import Results, entries
from benchmarks.run import PLANS
from tokenscale.bench import suite
from tokenscale.bench.bandwidth import Limits
from tokenscale.bench.clock import Ratio
from tokenscale.bench.comparison import Comparison, Target
from tokenscale.bench.machine import machine
from tokenscale.bench.part import QUICK, Outcome
from tokenscale.bench.subject import Subject

ROOT = Path(__file__).parent.parent.parent
POINTS = [
    {
        "n": n,
        "tau": tau,
        "ms": 2.0 * n,
        "limit_ms": 1.0 * n,
        "times_limit": 2.0,
        "megabytes": 9.0,
        "experts_per_layer": 8.0 + tau,
    }
    for n, tau in ((1, 0.0), (2, 0.0), (2, 1.0))
]


def made_up(tiny: Subject, limits: Limits) -> dict[str, dict[str, Any]]:
    """Result files of two parts, one comparison met and one not."""
    fast = Comparison("greedy, batch 1", "transformers generate", 10.0, 20.0, Ratio(2.0, 1.9, 2.1), Target(least=1.5))
    slow = Comparison("greedy, batch 16", "transformers generate", 10.0, 12.0, Ratio(1.2, 1.1, 1.3), Target(least=1.5))
    parts = {"share": 0.6, "ms": 3.0, "share_in_operations": 0.9, "largest_operation": "aten::mm"}
    outcomes = {
        "greedy": Outcome("greedy", [fast.with_limit(0.005), slow], left_out=["why not"]),
        "roofline": Outcome("roofline", facts={"points": POINTS}),
        "profile": Outcome("profile", facts={"n": 8, "tau": 1.0, "parts": [{"part": "experts", **parts}]}),
    }
    made = {n: {"machine": machine(), "runs": [o.to_dict(tiny, limits, QUICK)]} for n, o in outcomes.items()}
    return json.loads(json.dumps(made))


@pytest.fixture
def results(tiny: Subject, limits: Limits) -> Results:
    return made_up(tiny, limits)


@pytest.mark.parametrize("name", pages.PAGES)
def test_the_committed_pages_are_what_the_committed_files_give(name: str) -> None:
    text = (ROOT / name).read_text()
    assert pages.filled(text, pages.read(), yaml.safe_load(pages.REASONS.read_text())) == text


def test_the_committed_picture_shows_the_committed_points() -> None:
    points = entries(pages.read(), "roofline", "roofline")
    if points:
        assert figures.digest(points) in (ROOT / pages.PICTURE).read_text()


def test_what_falls_short_in_the_committed_files_has_its_reason() -> None:
    assert shortfalls.unexplained(pages.read(), yaml.safe_load(pages.REASONS.read_text())) == []


def test_every_block_of_the_pages_is_known_and_used_once() -> None:
    named = [found["name"] for page in pages.PAGES for found in pages.BLOCK.finditer((ROOT / page).read_text())]
    assert sorted(named) == sorted(pages.blocks({}, []))


def test_a_block_is_replaced_and_the_rest_is_kept(results: Results) -> None:
    page = "before\n\n<!-- generated: greedy -->\nold\n<!-- end -->\n\nafter\n"
    text = pages.filled(page, results, [])
    assert text.startswith("before\n\n<!-- generated: greedy -->\n\n| model |")
    assert text.endswith("\n<!-- end -->\n\nafter\n")
    assert (
        "| random-olmoe-tiny, float32, 1 thread | greedy, batch 1 | transformers generate | 10.0 ms | 20.0 ms | 2.00x |"
        in text
    )
    assert "Left out: greedy: why not." in text
    assert "old" not in text
    assert pages.filled(text, results, []) == text


def test_without_files_pages_say_so() -> None:
    made = pages.blocks({}, [])
    assert all(text().startswith("Not measured yet: `python -m benchmarks.") for text in made.values())


def test_targets_and_reasons(results: Results) -> None:
    reason = {"part": "greedy", "work": "batch 16", "model": "random-olmoe-tiny", "why": "It is small."}
    text = shortfalls.targets(results, [reason])
    assert "1 of 2 are met" in text
    assert (
        "- random-olmoe-tiny, float32, 1 thread, greedy, batch 16, against transformers generate: It is small." in text
    )
    assert "| at least 1.5x | 50% | met |" in text
    assert shortfalls.unexplained(results, [reason]) == []
    assert "no reason is written down" in shortfalls.targets(results, [])
    assert len(shortfalls.unexplained(results, [])) == 1
    assert len(shortfalls.unexplained(results, [reason, {**reason, "work": "batch 1", "threads": 2}])) == 1


def test_all_met(results: Results) -> None:
    better = copy.deepcopy(results)
    better["greedy"]["runs"][0]["comparisons"][1]["met"] = True
    assert "All 2 are met." in shortfalls.targets(better, [])


def test_profile_and_roofline_blocks(results: Results) -> None:
    assert "- **experts**: the gate, up and down products" in pages.profile(results)
    text = pages.roofline(results)
    assert "| 2 | 1 | 9.0 | 9.00 | 2.00 ms | 4.00 ms | 2.00 |" in text
    assert "(pictures/roofline.svg)" in text


def test_the_picture_is_a_function_of_the_points(results: Results, tmp_path: Path) -> None:
    found = entries(results, "roofline")
    for name in ("one.svg", "two.svg"):
        figures.roofline(found, tmp_path / name)
    text = (tmp_path / "one.svg").read_text()
    assert text == (tmp_path / "two.svg").read_text()
    assert figures.digest(found) in text
    assert "tau 1, measured" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(2.012, "2 s"), (0.2492, "249 ms"), (0.0096, "9.6 ms"), (7.0e-4, "700 us"), (1.1e-6, "1.1 us"), (5e-7, "0.5 us")],
)
def test_times_are_read_easily(seconds: float, text: str) -> None:
    assert pages._time(seconds) == text


def test_every_plan_has_parts_of_the_suite() -> None:
    assert {part for jobs in PLANS.values() for job in jobs for part in job.parts} == set(suite.PARTS)
    parts = {name: {part for job in jobs for part in job.parts} for name, jobs in PLANS.items() if name != "large"}
    assert parts == {name: {name} for name in suite.PARTS}
