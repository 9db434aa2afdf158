"""The scripts of benchmarks/ run, and `all` runs every one of them."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import beams, constraint_masks, pages, run
from tokenscale.bench import steps
from tokenscale.bench.bandwidth import Limits
from tokenscale.bench.comparison import Target
from tokenscale.bench.part import QUICK
from tokenscale.bench.subject import Subject
from tokenscale.core.errors import ModelError


def test_a_plan_writes_what_its_page_shows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [job for job in run.PLANS["steps"] if job.threads == 1]
    monkeypatch.setattr(run, "PLANS", {**run.PLANS, "steps": jobs})
    out = tmp_path / "results" / "steps.json"
    run.run("steps", quick=True, rounds=1, model="random-olmoe-tiny", out=out)
    data = json.loads(out.read_text())
    assert data["command"] == "python -m benchmarks.run steps"
    assert [entry["subject"]["dtype"] for entry in data["runs"]] == ["float32", "bfloat16"]
    assert "RoE step, n = 4" in capsys.readouterr().out
    text = pages.compared("steps", pages.read(out.parent))
    assert "| random-olmoe-tiny, bfloat16, 1 thread | RoE step, n = 4 | transformers: 4 forwards in turn |" in text


@pytest.mark.parametrize(("threads", "wanted"), [(1, Target()), (2, Target(most=2.0, aim=1.5))])
def test_the_byte_limit_is_a_target_on_two_threads(tiny: Subject, limits: Limits, threads: int, wanted: Target) -> None:
    outcome = steps.measure(replace(tiny, threads=threads), QUICK, limits)
    assert [one.target for one in outcome.comparisons if one.against == "the byte limit"] == [wanted]


@pytest.mark.parametrize("peer", [True, False])
def test_all_runs_every_part_but_the_large_one(peer: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(run.subprocess, "run", lambda command, check: ran.append(command))
    monkeypatch.setattr(run, "find_spec", lambda name: object() if peer else None)
    run.run_all(quick=True, results=tmp_path)
    assert all(command[-3:-1] == ["--quick", "--out"] for command in ran)
    names = [Path(command[-1]).stem for command in ran]
    others = [name for name in run.OTHERS if peer or name != "llama_cpp"]
    assert names == [*(plan for plan in run.PLANS if plan != "large"), *others]


def test_the_large_model_runs_little() -> None:
    assert not run.LARGE_SIZES.guard
    assert run.LARGE_SIZES.roofline_rows == (1, 8, 32)


@pytest.mark.parametrize(("script", "block"), [(beams, "beams"), (constraint_masks, "masks")])
def test_scripts_of_their_own_run(script: Any, block: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = tmp_path / f"{script.__name__.rpartition('.')[2]}.json"
    monkeypatch.setattr(sys, "argv", ["script", "--quick", "--out", str(out)])
    script.main()
    text = pages.blocks(pages.read(tmp_path), [])[block]()
    assert "1 thread, torch" in text
    assert not text.startswith("Not measured")


def test_a_model_that_is_not_there_ends_a_plan(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        run.run("greedy", quick=True, rounds=None, model=str(tmp_path / "nowhere"), out=None)
