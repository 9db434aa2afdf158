"""The command `bench`: tables, the file, and bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from tokenscale import cli


def run(*arguments: str, code: int = 0) -> Any:
    threads = torch.get_num_threads()
    try:
        result = CliRunner().invoke(cli.app, ["bench", *arguments], env={"COLUMNS": "160"})
    finally:
        torch.set_num_threads(threads)
    assert result.exit_code == code, (result.output, result.exception)
    assert "Traceback" not in result.output
    return result


def test_tables_and_the_file_say_the_same(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    given = ("--quick", "--threads", "1", "--dtype", "bfloat16", "--parts", "roofline, greedy")
    shown = run("random-olmoe-tiny", *given, "--out", str(out)).stdout
    data = json.loads(out.read_text())
    assert [entry["part"] for entry in data["runs"]] == ["greedy", "roofline"]
    assert (
        data["command"]
        == "tokenscale bench random-olmoe-tiny --parts 'roofline, greedy' --threads 1 --dtype bfloat16 --quick"
    )
    assert data["runs"][0]["subject"]["dtype"] == "bfloat16"
    for text in (
        "random-olmoe-tiny, bfloat16, 1 thread",
        "GB/s read by 1 thread",
        "transformers generate",
        "in limits",
    ):
        assert text in shown
    assert f"written: {out}" in shown.replace("\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["random-olmoe-tiny", "--parts", "gredy"], "did you mean 'greedy'"),
        (["random-olmoe-tiny", "--parts", ","], "--parts names none"),
        (["random-olmoe-tiny", "--dtype", "float31"], "no such type of numbers"),
        (["random-olmoe-tiny", "--threads", "0"], "--threads"),
        (["random-olmoe-tiny", "--out", "nowhere/bench.json"], "lies in a folder that is not there"),
        (["random-olmoe-tiny", "--out", "."], "is a folder"),
        (["demoo"], "demo"),
        ([], "MODEL"),
    ],
)
def test_bad_input_is_one_message(arguments: list[str], message: str) -> None:
    assert message in run(*arguments, code=2).output
