"""The command `score`: what it prints, its exit codes, and that no error is a traceback."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import tokenscale as ts
from tokenscale import cli
from tokenscale.models import hf

LM = ts.ToyModel(spelling="XY", moe_layers=3, experts=5, width=4)


@pytest.fixture
def score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs `tokenscale score` in an empty folder with the toy model for every path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hf, "load", lambda path: LM)

    def score(*arguments: str, code: int = 0, **keywords: Any) -> Any:
        result = CliRunner().invoke(cli.app, ["score", *arguments], **keywords)
        assert result.exit_code == code, (result.output, result.exception)
        assert "Traceback" not in result.output
        return result

    return score


def test_it_prints_the_figures_of_all_texts(score: Any) -> None:
    out = score("-p", "RoE(n=3, tau=1.0)", "12+3=15", "4+4=8").output
    found = LM.score(["12+3=15", "4+4=8"], ts.RoE(n=3, tau=1.0))
    mean = sum(s.total for s in found) / 10
    assert "2 texts, 10 tokens, demo: RoE(n=3, tau=1.0, clean_layers=1) | MeanProbability()" in out
    assert f"perplexity       {math.exp(-mean):.4f}" in out
    assert f"log-probability  {mean:.4f} nats per token" in out
    gain = sum(s.gain * len(s.log_probs) for s in found if s.gain is not None) / 10
    assert f"gain             {gain:+.4f} nats per token over the clean row, 95% interval over texts" in out
    assert "30 rows" in out


def test_one_text_has_no_interval_and_the_model_itself_no_gain(score: Any) -> None:
    assert "interval" not in score("-p", "RoE(n=3, tau=1.0)", "12+3=15").output
    out = score("12").output
    assert "1 text, 1 token, demo: Plain()" in out
    assert "gain" not in out


def test_json_holds_every_text(score: Any) -> None:
    data = json.loads(score("--json", "-p", "RoE(n=3, tau=1.0) | MinProbability()", "12+3", "1X", "--seed", "4").output)
    one, two = LM.score(["12+3", "1X"], ts.RoE(n=3, tau=1.0), ts.MinProbability(), seed=4)
    assert data["texts"] == [one.to_dict(), two.to_dict()]
    assert (data["seed"], data["tokens"], data["mean"], data["gain"], data["gain_interval"]) == (4, 4, None, None, None)
    assert data["cost"] == (one.cost + two.cost).to_dict()


def test_impossible_texts_are_said_to_be(score: Any) -> None:
    assert "perplexity       infinite: a token is impossible" in score("1X").output


def test_texts_come_from_a_file_or_the_input_behind_a_prompt(score: Any, tmp_path: Path) -> None:
    (tmp_path / "texts").write_text("12\n\n4+4\n")
    data = json.loads(score("--json", "--file", "texts", "--prompt", "1+", "-", input="7=").output)
    wanted = LM.score(["7=", "12", "4+4"], prompts=["1+"] * 3)
    assert data["texts"] == [s.to_dict() for s in wanted]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the command has no text to score"),
        (["--file", "empty"], "empty has no text to score"),
        (["1"], "text 0 has no token that could be scored"),
        (["-p", "SelfConsistency(k=2)", "12"], "chooses tokens or answers, and a text"),
        (["-p", "Roe(n=2)", "12"], "did you mean 'RoE'"),
        (["-p", "RoE(n=2, tau=(1, 2))", "12"], "tau has 2 entries"),
        (["-p", "AdaptiveRoE(n=4)", "12"], "settle the greedy token"),
        (["--file", "bytes"], "bytes is no text in UTF-8"),
        (["--seed", "-1", "12"], "--seed"),
    ],
)
def test_bad_input_exits_with_2_and_one_message(score: Any, tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\xfa")
    assert message in score(*arguments, code=2).output


def test_a_file_that_is_not_there_fails(score: Any) -> None:
    assert "No such file" in score("--file", "nowhere", code=1).output
