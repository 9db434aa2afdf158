"""`tokenscale inspect`: what it prints, its JSON, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, OlmoeConfig
from typer.testing import CliRunner

from tests.models.tiny import SIZES
from tokenscale import cli
from tokenscale.models.inspection import ROWS, inspect_model

OLMOE = {**SIZES, "intermediate_size": 16, "num_experts": 8}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder without weights and tokenizer."""
    monkeypatch.setenv("COLUMNS", "80")
    OlmoeConfig(**OLMOE).save_pretrained(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]
    return tmp_path


def run(*arguments: str, code: int = 0) -> Any:
    result = CliRunner().invoke(cli.app, ["inspect", *arguments])
    assert result.exit_code == code, (result.output, result.exception)
    assert "Traceback" not in result.output
    return result


def test_text_shows_the_model_and_the_cost_of_rows(folder: Path) -> None:
    printed = " ".join(run(str(folder), "--context", "40").stdout.split())
    for text in (
        "OlmoeForCausalLM, float32), read from its configuration",
        "layers 3, of which MoE: 3",
        "router softmax, top-k (3 layers)",
        "experts 8 a layer; a token runs 3",
        "parameters 53.7 k, active per token: 30.6 k",
        "KV bytes 384 per token, 15.4 k for a sequence of 40",
        "cache form shared: all its layers store plain keys and values, and attend by a function of ours",
        "compiled steps on a GPU, or with compile=True",
        "RoE offered",
        "A token under RoE(n) at 40 keys",
        "E (1 - (1 - k/E)^n)",
        "real routing overlaps more",
    ):
        assert text in printed
    lines = [line.split() for line in run(str(folder)).stdout.splitlines()]
    assert [int(line[0]) for line in lines if line and line[0].isdigit()] == list(ROWS)


def test_json_is_the_whole_inspection(folder: Path) -> None:
    printed = json.loads(run(str(folder), "--context", "40", "--json").stdout)
    found = inspect_model(folder, 40).to_dict()
    assert printed == json.loads(json.dumps(found))
    assert [line["n"] for line in printed["costs"]] == list(ROWS)


def test_the_demo_model_is_inspected_without_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors

    monkeypatch.setattr(safetensors, "safe_open", lambda *_, **__: pytest.fail("weights were opened"))
    printed = json.loads(run("demo", "--json").stdout)
    assert (printed["experts"], printed["top_k"], printed["moe_layers"]) == (64, 8, 4)
    assert printed["dtype"] == "float32"


def test_a_dense_model_is_no_error(tmp_path: Path) -> None:
    sizes = {key: value for key, value in SIZES.items() if key != "num_experts_per_tok"}
    LlamaConfig(**sizes, intermediate_size=24).save_pretrained(tmp_path)
    printed = run(str(tmp_path)).stdout
    assert "not offered: it is a dense model, without routers" in " ".join(printed.split())
    assert "experts/layer" not in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dmeo"], "did you mean 'demo'?"),
        (["no/such/folder"], "no such folder"),
        (["."], "holds no config.json"),
        (["broken"], "cannot be read"),
        (["demo", "--context", "0"], "context must be at least 1"),
        (["demo", "--context", "many"], "--context"),
        (["demo", "--contxt", "3"], "--contxt"),
        ([], "MODEL"),
    ],
)
def test_bad_input_is_exit_code_2_with_the_fix(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken").mkdir()
    Path("broken/config.json").write_text("{")
    result = run(*arguments, code=2)
    assert message in result.stderr
    assert result.stdout == ""
    if result.stderr.startswith("error:"):
        assert "fix:" in result.stderr
