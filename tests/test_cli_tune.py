"""`tokenscale tune`: what it prints, its exit codes, and that no error is a traceback."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.comparison import RECIPE, small_toy
from tokenscale import cli
from tokenscale.experiments import execute as execute_module
from tokenscale.experiments.tuning_objective import Perplexity

TUNE = """\
tune:
  budget: {trials: 3}
  objective: perplexity
  text_files: {validation: validation.jsonl, test: test.jsonl}
  parameters: {roe: {tau: {low: 0.0, high: 2.0}}}
"""


@pytest.fixture
def tokenscale(tmp_path, monkeypatch):
    """Runs the program in a folder with a recipe and texts, with the toy model for every path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(execute_module, "load", small_toy)
    Path("recipe.yaml").write_text(RECIPE + TUNE)
    Path("validation.jsonl").write_text('{"text": "1+2=3. so 4"}\n{"text": "5+5=10."}\n')
    Path("test.jsonl").write_text('{"text": "2+2=4."}\n{"text": "7 and 8."}\n')

    def tokenscale(*arguments, code=0):
        result = CliRunner().invoke(cli.app, list(arguments))
        assert result.exit_code == code, (result.output, result.exception)
        assert "Traceback" not in result.output
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result

    return tokenscale


def test_tune_prints_both_arms_and_what_is_kept(tokenscale, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Perplexity, "measure", interrupt)
        result = tokenscale("tune", "recipe.yaml", "--out", "out", code=130)
    assert "interrupted: ended trials are kept; run the same command again to go on" in result.stderr
    assert sorted(p.name for p in Path("out").iterdir()) == [".lock", "study.db", "tune.json"]
    result = tokenscale("tune", "recipe.yaml", "--out", "out")
    words = " ".join(result.stdout.split())
    for word in (
        "untuned",
        "tuned",
        "change",
        "ppl",
        "search",
        "not tuned: greedy, vote",
        "The search cost",
    ):
        assert word in words
    assert "profile of roe: out/roe.profile.yaml" in result.stdout
    assert "The whole report: out/tuning.md" in result.stdout
    assert result.stderr.strip() == ""  # Optuna says nothing
    as_json = tokenscale("tune", "recipe.yaml", "--out", "out", "--json")
    assert json.loads(as_json.stdout) == json.loads(Path("out/tuning.json").read_text())


def test_a_dry_run_reads_no_text_and_loads_no_model(tokenscale, monkeypatch):
    monkeypatch.setattr(execute_module, "load", lambda *_: pytest.fail("loaded"))
    Path("test.jsonl").unlink()
    result = tokenscale("tune", "recipe.yaml", "--dry-run")
    assert "roe: tau of RoE(n=2, tau=1.0, clean_layers=0)" in result.stdout
    assert "3 trials: 1 arms x 3, by perplexity. Nothing ran." in result.stdout
    plan = json.loads(tokenscale("tune", "recipe.yaml", "tune.budget.trials=9", "--dry-run", "--json").stdout)
    assert plan["trials"] == plan["tune"]["budget"]["trials"] == 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tune", "none.yaml", "--out", "out"], "cannot be read"),
        (["tune", "recipe.yaml"], "--out"),
        (["tune", "recipe.yaml", "tune=", "--out", "out"], "the recipe has no `tune:`"),
        (["tune", "recipe.yaml", "tune=", "--dry-run"], "the recipe has no `tune:`"),
        (["tune", "recipe.yaml", "tune.budget.trails=3", "--out", "out"], "did you mean 'trials'?"),
        (["tune", "recipe.yaml", "tune.data.split=test", "--out", "out"], "tunes on the split 'test'"),
        (["tune", "recipe.yaml", "tune.text_files.test=validation.jsonl", "--out", "out"], "2 of the 2 test samples"),
        (["tune", "recipe.yaml", "tune.text_files.test=gone", "--out", "out"], "'gone' cannot be read"),
        (["tune", "recipe.yaml", "--out", "recipe.yaml"], "cannot be a folder"),
        (["tune", "recipe.yaml", "--outt", "x"], "--outt"),
    ],
)
def test_bad_input_is_exit_code_2_with_one_message(tokenscale, arguments, message):
    result = tokenscale(*arguments, code=2)
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert result.stdout == ""
    assert not Path("out").exists()


def test_help(tokenscale):
    assert "Usage" in tokenscale("tune", "--help").stdout
