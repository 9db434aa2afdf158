"""All parts on a tiny model: what a result file holds, what is left out, and the tables of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from tests.models.tiny import SIZES
from tokenscale.bench import memory, suite, tables
from tokenscale.bench.bandwidth import Limits
from tokenscale.bench.clock import Ratio
from tokenscale.bench.comparison import Comparison, Target, faster, rounded, within, within_limit
from tokenscale.bench.part import QUICK, Outcome, Sizes
from tokenscale.bench.random_models import numbers_tokenizer
from tokenscale.bench.subject import Subject, twin
from tokenscale.core.errors import ModelError, UnknownNameError
from tokenscale.models.hf import wrap

SECONDS = {"ours": [1.0, 2.0, 4.0], "theirs": [3.0, 4.0, 20.0]}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory of a process in this one."""
    monkeypatch.setattr(
        memory, "_of_process", lambda subject, n, context: memory.main(subject.name, n, context, 1, "float32", 1)
    )


@pytest.fixture
def entries(tiny: Subject, measured: None) -> list[dict[str, Any]]:
    return suite.runs(tiny, list(suite.PARTS), QUICK, quick=True)


def test_every_part_says_something_of_a_moe_model(entries: list[dict[str, Any]], tmp_path: Path) -> None:
    assert [entry["part"] for entry in entries] == list(suite.PARTS)
    assert tables.omissions(entries) == []
    suite.write(tmp_path / "made" / "bench.json", entries, "a command")
    data = json.loads((tmp_path / "made" / "bench.json").read_text())
    assert data["command"] == "a command"
    by_part = {entry["part"]: entry for entry in data["runs"]}
    compared = {part: [one["against"] for one in entry["comparisons"]] for part, entry in by_part.items()}
    assert compared["greedy"] == ["transformers generate"] * 2
    assert compared["steps"][:2] == ["transformers: one forward", "the byte limit"]
    assert compared["steps"][-1] == "4 unrelated rows, no past, same routes"
    assert compared["memory"] == ["n = 1", "n = 1"]
    assert by_part["scoring"]["facts"]["largest difference at n = 1"] < 1e-4
    assert by_part["greedy"]["comparisons"][1]["details"]["equal_sequences"] == "16 of 16"
    assert sum(part["share"] for part in by_part["profile"]["facts"]["parts"]) == pytest.approx(1, abs=1e-2)
    points = by_part["roofline"]["facts"]["points"]
    assert [(p["n"], p["tau"]) for p in points] == [(1, 0.0), *((n, tau) for n in (2, 4) for tau in (0.0, 0.3, 1.0))]
    assert [p["experts_per_layer"] for p in points if p["tau"] == 0] == [8, 8, 8]
    text = "\n".join(table.markdown() for table in tables.tables(data["runs"]))
    assert "RoE step, n = 4" in text
    assert "(outside of torch)" in text or "aten::" in text
    named = {part["part"] for part in by_part["profile"]["facts"]["parts"]}
    assert {"experts", "router", "norms", "lm_head", "attention projections", "attention to the cache"} <= named


def test_a_dense_model_is_measured_as_far_as_it_goes(limits: Limits) -> None:
    model = LlamaForCausalLM(LlamaConfig(**{**SIZES, "num_experts_per_tok": None}, intermediate_size=24))
    model.generation_config.pad_token_id = 0
    subject = Subject("dense", wrap(model.eval(), numbers_tokenizer(101)), twin(model), 1, 1)
    found = {
        entry["part"]: entry for entry in suite.runs(subject, ["greedy", "steps", "memory", "roofline"], QUICK, True)
    }
    assert "RoE does not run on it" in found["steps"]["left_out"][0]
    assert "RoE does not run on it" in found["memory"]["left_out"][0]
    assert [p["tau"] for p in found["roofline"]["facts"]["points"]] == [0.0] * 3
    assert len(found["greedy"]["comparisons"]) == 2
    assert found["greedy"]["subject"]["experts"] == "none"


def test_sizes_fit_the_context() -> None:
    small = Sizes().within(100)
    assert max(small.context + small.steps, small.prompt + small.new_tokens, small.scored + 1) < 100
    assert Sizes().within(10**6) == Sizes()


def test_an_unknown_part_is_refused_before_anything_runs(tiny: Subject) -> None:
    with pytest.raises(UnknownNameError, match="gredy"):
        suite.runs(tiny, ["greedy", "gredy"], QUICK, quick=True)


@pytest.mark.slow
def test_a_process_that_fails_says_why(tiny: Subject) -> None:
    lost = Subject("no-such-model-folder/x/y", tiny.lm, tiny.peer, 1, 1)
    with pytest.raises(ModelError, match="the process that measures the memory of no-such-model-folder"):
        memory._of_process(lost, 1, 8)


@pytest.mark.slow
def test_memory_is_measured_in_a_process_of_its_own(tiny: Subject) -> None:
    found = memory._of_process(tiny, 4, 40)
    assert found["peak"] > found["loaded"] / 2 > 0
    assert found["stored"] > 0


def test_comparisons_pair_rounds_and_know_their_target() -> None:
    one = faster(SECONDS, "ours", "theirs", "work", least=2.5, aim=4.0).with_limit(0.5)
    assert (one.ours, one.theirs, one.unit) == (2000.0, 4000.0, "ms")
    assert one.ratio == Ratio.of([3.0, 2.0, 5.0])
    assert one.to_dict()["met"] is True
    assert one.share_of_limit == 0.25
    other = within(SECONDS, "ours", "theirs", "work", most=0.3)
    assert other.ratio.median == pytest.approx(1 / 3)
    assert other.to_dict()["met"] is False
    limited = within_limit(SECONDS, "ours", 1.0, "work", 2.0, 1.5)
    assert (limited.ratio.median, limited.theirs, limited.to_dict()["met"]) == (2.0, 1000.0, True)
    assert Target().met(0.0)


def test_cells_say_what_was_wanted() -> None:
    one = Comparison("w", "a", 12.34, 5.0, Ratio(1.5, 1.4, 1.6), Target(least=2.0, aim=3.0), limit=1.234).to_dict()
    assert tables.comparison(one) == (
        "w", "a", "12.3 ms", "5.00 ms", "1.50x", "[1.40, 1.60]", "at least 2x, aim 3x: NOT met", "10%",
    )  # fmt: skip
    same = Comparison("w", "a", 1234.5, 5.0, Ratio(1, 1, 1), Target(most=1.1), unit="MB").to_dict()
    assert tables.comparison(same)[2:] == ("1,234 MB", "5.00 MB", "1.00x", "", "at most 1.1x: met", "")


def test_numbers_keep_four_digits() -> None:
    assert rounded({"a": [1.234567, True, 3, "x"], "b": (0.000123456,)}) == {
        "a": [1.235, True, 3, "x"],
        "b": [0.0001235],
    }


def test_an_outcome_without_a_line_has_its_reason(tiny: Subject, limits: Limits) -> None:
    entry = Outcome("steps", left_out=["why"]).to_dict(tiny, limits, QUICK)
    assert tables.omissions([entry]) == ["steps: why"]
    assert tables.tables([entry]) == []
