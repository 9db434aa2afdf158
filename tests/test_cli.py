"""The command line: what it prints, its exit codes, and that no error is a traceback."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.comparison import RECIPE, small_toy
from tokenscale import cli
from tokenscale.core import memory
from tokenscale.core.errors import RoutingError
from tokenscale.experiments import execute as execute_module
from tokenscale.experiments.tables import amount
from tokenscale.models import hf
from tokenscale.models.toy import ToyModel
from tokenscale.pipeline import Pipeline

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))


@pytest.fixture
def tokenscale(tmp_path, monkeypatch):
    """Runs the program in an empty folder with the toy model for every path; `recipe.yaml` is there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(execute_module, "load", small_toy)
    monkeypatch.setattr(hf, "load", small_toy)
    (tmp_path / "recipe.yaml").write_text(RECIPE)

    def tokenscale(*arguments, code=0, **keywords):
        result = CliRunner().invoke(cli.app, list(arguments), **keywords)
        assert result.exit_code == code, (result.output, result.exception)
        assert "Traceback" not in result.output
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result

    return tokenscale


def test_run_prints_the_table_and_writes_the_report(tokenscale):
    result = tokenscale("run", "recipe.yaml", "contrasts=[[vote, greedy], [vote, roe]]", "--out", "out")
    for word in ("arm", "accuracy", "interval", "diff", "p", "FLOPs", "cost", "expert", "seconds", "greedy", "vote"):
        assert word in result.stdout
    assert "vote: Sample(temperature=0.7) | SelfConsistency(k=2)" in result.stdout
    assert "\nvote - roe (arithmetic, toy): " in result.stdout
    assert "\nvote - greedy" not in result.stdout
    assert "are too few to show any difference." in result.stdout
    assert "The task is synthetic arithmetic" in result.stdout
    assert "The whole report: out/report.md" in result.stdout
    assert Path("out/report.md").is_file()


def test_pipelines_stand_once_below_the_tables_of_several_models(tokenscale, monkeypatch):
    arguments = ("run", "recipe.yaml", "models.other.path=toy", "--out", "out")
    shown = tokenscale(*arguments).stdout
    pipeline = "vote: Sample(temperature=0.7) | SelfConsistency(k=2)"
    assert shown.count(pipeline) == 1
    assert shown.index("toy on 5 problems") < shown.index("other on 5 problems") < shown.index(pipeline)
    monkeypatch.setenv("COLUMNS", "200")
    wide = tokenscale(*arguments).stdout
    assert pipeline not in wide
    assert wide.count("Sample(temperature=0.7) | SelfConsistency(k=2)") == 2


def test_run_as_json_is_the_report(tokenscale):
    result = tokenscale("run", "recipe.yaml", "--out", "out", "--json")
    assert json.loads(result.stdout) == json.loads(Path("out/report.json").read_text())


def test_arguments_change_the_recipe(tokenscale):
    result = tokenscale("run", "recipe.yaml", "tasks.arithmetic.limit=1", "seeds=[3]", "--out", "out", "--json")
    report = json.loads(result.stdout)
    assert report["arms"][0]["problems"] == 1
    assert report["run"]["recipe"]["seeds"] == [3]


def test_dry_run_loads_no_model_and_writes_nothing(tokenscale, monkeypatch):
    monkeypatch.setattr(execute_module, "load", lambda *_: pytest.fail("loaded"))
    result = tokenscale("run", "recipe.yaml", "--dry-run")
    assert "vote: Plain() | MeanProbability() | Sample(" in result.stdout
    assert "15 answers: problems x arms x seeds x models = 5 x 3 x 1 x 1." in result.stdout
    one = ["arms={greedy: Greedy()}", "contrasts=[]", "tasks.arithmetic.limit=1"]
    assert "\n1 answer: problems x arms" in tokenscale("run", "recipe.yaml", *one, "--dry-run").stdout
    plan = json.loads(tokenscale("run", "recipe.yaml", "--dry-run", "--json").stdout)
    assert list(plan["arms"]) == ["greedy", "roe", "vote"]
    assert (plan["problems"], plan["answers"]) == ({"arithmetic": 5}, 15)
    assert sorted(p.name for p in Path().iterdir()) == ["recipe.yaml"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_dry_run(tokenscale, path):
    assert RECIPES
    plan = json.loads(tokenscale("run", str(path), "--dry-run", "--json").stdout)
    assert plan["answers"] > 0


def test_a_wrong_recipe_gives_its_errors_and_nothing_else(tokenscale):
    Path("recipe.yaml").write_text(RECIPE.replace("limit: 5", "limt: 5").replace("k=2", "k=0"))
    result = tokenscale("run", "recipe.yaml", "--out", "out", code=2)
    assert result.stdout == ""
    assert result.stderr.startswith("error: 2 errors\n")
    assert "recipe.yaml, line 4, column 22: unknown key 'limt'" in result.stderr
    assert "did you mean 'limit'?" in result.stderr
    assert "recipe.yaml, line 10, column 9: arms.vote.pipeline:" in result.stderr
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "none.yaml", "--out", "out"], "cannot be read"),
        (["run", "recipe.yaml"], "--out"),
        (["run", "recipe.yaml", "limit", "--out", "out"], "not key=value"),
        (["run", "recipe.yaml", "sedes=[1]", "--out", "out"], "did you mean 'seeds'?"),
        (
            ["run", "recipe.yaml", "tasks.arithmetic.limit=99999", "--out", "out"],
            "the test split of arithmetic has 2000 problems",
        ),
        (["run", "recipe.yaml", "arms.roe=RoE(n=2, tau=(0.1, 0.2))", "--out", "out"], "tau"),
        (["run", "recipe.yaml", "--out", "recipe.yaml"], "cannot be a folder"),
        (["generate", "-p", "RoE(n=0)", "x"], "n must be at least 1"),
        (["generate", "-p", "Roe(n=2)", "x"], "did you mean 'RoE'?"),
        (["generate", "-p", "SelfConsistency(k=5) | ChainOfThought()", "x"], "cannot stand around"),
        (["generate", "-p", "Greedy() | SelfConsistency(k=5)", "x"], "no randomness"),
        (["generate", "--max-new-tokens", "0", "x"], "--max-new-tokens"),
        (["generate", "--seed", "-1", "x"], "seed must be at least 0"),
        (["generate", "--batch-size", "many", "x"], 'batch_size must be an integer or "auto"'),
        (["generate", "--max-batch-tokens", "0", "x"], "max_batch_tokens must be at least 1"),
        (["run", "recipe.yaml", "run.max_batch_tokens=0", "--out", "out"], "run.max_batch_tokens: must be auto or"),
        (["generate", "1" * 600], "600 tokens"),
        (["generate", "caf\udce9"], "half a character"),
        (["generate"], "prompt"),
        (["generat", "x"], "generat"),
        (["run", "recipe.yaml", "--outt", "x"], "--outt"),
        (["demo", "extra"], "extra"),
    ],
)
def test_bad_input_is_exit_code_2_with_one_message(tokenscale, arguments, message):
    result = tokenscale(*arguments, code=2)
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert result.stdout == ""
    assert sorted(p.name for p in Path().rglob("*.jsonl")) == []


def test_a_model_that_is_not_there_is_bad_input(tokenscale, monkeypatch):
    monkeypatch.undo()
    result = CliRunner().invoke(cli.app, ["generate", "--model", "no/such folder", "x"])
    assert result.exit_code == 2
    assert "no/such folder" in result.stderr


def test_a_run_that_fails_is_exit_code_1(tokenscale, monkeypatch):
    def fail(*_, **__):
        raise RoutingError("layer 3 drew no noise", "report it")

    monkeypatch.setattr(Pipeline, "run", fail)
    result = tokenscale("run", "recipe.yaml", "--out", "out", code=1)
    assert result.stderr.strip().endswith("error: layer 3 drew no noise\n  fix: report it")
    monkeypatch.setattr(Pipeline, "run", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    assert "No space left on device" in tokenscale("run", "recipe.yaml", "--out", "out", code=1).stderr


def test_one_recipe_at_three_batch_sizes_gives_the_same_bill(tokenscale):
    """The bill is *alone*: of the problem by itself, whatever shared its batch. So is all else of the answers."""
    answers = {}
    for size, tokens in ((1, "auto"), (3, 40), (16, 100)):
        changes = [
            f"run.batch_size={size}",
            f"run.max_batch_tokens={tokens}",
            "arms.roe=RoE(n=3, tau=1.0, clean_layers=0)|SelfConsistency(k=3)",
        ]
        tokenscale("run", "recipe.yaml", *changes, "arms.beams=BeamSearch(width=2)", "--out", f"out{size}", "--json")
        for path in sorted(Path(f"out{size}/answers").iterdir()):
            rows = [json.loads(line)["row"] for line in path.read_text().splitlines()]
            found = [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
            assert all(row["cost"]["flops"] > 0 and row["cost"]["bytes"] > 0 for row in found)
            answers.setdefault(path.name, []).append(found)
    assert len(answers) == 4
    for runs in answers.values():
        assert len(runs) == 3
        assert runs[0] == runs[1] == runs[2]


def test_generate_takes_bounds_of_the_batch(tokenscale):
    options = ["-p", "SelfConsistency(k=3)", "--max-new-tokens", "4", "--json", "1+1="]
    wanted = tokenscale("generate", *options).stdout
    for bounds in (["--batch-size", "1"], ["--batch-size", "auto", "--max-batch-tokens", "9"]):
        assert tokenscale("generate", *bounds, *options).stdout == wanted


def test_want_of_memory_is_said_and_one_that_helps_nothing_is_exit_code_1(tokenscale, monkeypatch):
    """Two searches do not fit: a note, and the same report. Where one does not fit either, the run has failed."""
    monkeypatch.setattr(memory, "release", lambda: None)  # collecting a test process takes longer than the test
    tokenscale("run", "recipe.yaml", "--out", "whole")
    step = ToyModel.step

    def scarce(most):
        def small(self, state, tokens, *plan):
            if len(tokens) > most:
                raise MemoryError
            return step(self, state, tokens, *plan)

        return small

    monkeypatch.setattr(ToyModel, "step", scarce(1))
    shown = tokenscale("run", "recipe.yaml", "--out", "out").stderr
    assert "note: memory ran out for 5 searches at once (MemoryError): at most 2 at once go on" in shown
    whole, found = (json.loads(Path(name, "report.json").read_text()) for name in ("whole", "out"))
    for report in (whole, found):
        for arm in report["arms"]:
            del arm["seconds"]
    assert found == whole
    monkeypatch.setattr(ToyModel, "step", scarce(0))
    result = tokenscale("run", "recipe.yaml", "--out", "none", code=1)
    assert "do not fit in memory by themselves (MemoryError)" in result.stderr
    assert "fix: lower max_new_tokens" in result.stderr
    assert not Path("none").exists()


def test_an_interrupt_says_how_to_go_on(tokenscale, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "run", interrupt)
        patch.setattr(Pipeline, "stream", interrupt)
        result = tokenscale("run", "recipe.yaml", "--out", "out", code=130)
        assert "interrupted: what is answered is kept; run the same command again to go on" in result.stderr
        assert "interrupted" in tokenscale("generate", "x", code=130).stderr
    tokenscale("run", "recipe.yaml", "--out", "out")


def test_generate_prints_the_text(tokenscale):
    expected = Pipeline.parse("Greedy()").run(small_toy(), ["1+1="], max_new_tokens=4)[0]
    result = tokenscale("generate", "--max-new-tokens", "4", "1+1=")
    assert result.stdout == expected.text + "\n"
    assert tokenscale("generate", "--max-new-tokens", "4", "-", input="1+1=").stdout == result.stdout


def test_a_prompt_that_is_no_utf_8_is_bad_input(tokenscale):
    assert "the standard input is no UTF-8" in tokenscale("generate", "-", input=b"caf\xe9", code=2).stderr


def test_generate_as_json_is_the_result(tokenscale):
    text = "RoE(n=2, clean_layers=0) | SelfConsistency(k=3)"
    [expected] = Pipeline.parse(text).run(small_toy(), ["1+1="], seed=7, max_new_tokens=4)
    result = tokenscale("generate", "-p", text, "--seed", "7", "--max-new-tokens", "4", "--json", "1+1=")
    assert json.loads(result.stdout) == json.loads(json.dumps(expected.to_dict()))


def test_generate_shows_candidates_votes_and_cost_beside_the_text(tokenscale):
    """The text alone is on the standard output; every candidate, vote and axis of the bill beside it."""
    text = "Sample(temperature=1.0) | SelfConsistency(k=3)"
    [expected] = Pipeline.parse(text).run(small_toy(), ["1+1="], max_new_tokens=6)
    result = tokenscale("generate", "-p", text, "--max-new-tokens", "6", "1+1=")
    assert result.stdout == expected.text + "\n"
    lines = [line.split() for line in result.stderr.splitlines()]
    rows = {words[0].strip("*"): words for words in lines if words and words[0].strip("*").isdigit() and len(words) > 4}
    for number, candidate in enumerate(expected.candidates, 1):
        answer = "-" if candidate.answer is None else candidate.answer
        wanted = [answer, f"{candidate.log_prob:.2f}", str(len(candidate.token_ids)), candidate.finish_reason]
        assert rows[str(number)][1:5] == wanted
    assert sum(words[0].startswith("*") for words in lines if words) == 1
    votes = [words for words in lines if len(words) == 2 and words[1].isdigit()]
    assert votes == [["-" if answer is None else answer, f"{weight:g}"] for answer, weight in expected.votes]
    for name, value in expected.cost.to_dict().items():
        assert f"{name} {amount(value)}" in " ".join(result.stderr.split())


def test_generate_takes_stop_strings_and_chats(tokenscale):
    [expected] = Pipeline.parse("Greedy()").run(small_toy(), ["1+1="], max_new_tokens=9)
    stop = expected.text[2:4]
    result = tokenscale("generate", "--max-new-tokens", "9", "--stop", stop, "1+1=")
    assert result.stdout == expected.text[: expected.text.index(stop)] + "\n"
    [said] = Pipeline.parse("Greedy()").run(small_toy(), [[{"role": "user", "content": "1+1="}]], max_new_tokens=4)
    assert said.text != expected.text[: len(said.text)]
    assert tokenscale("generate", "--max-new-tokens", "4", "--chat", "1+1=").stdout == said.text + "\n"


def test_notes_go_to_the_error_output(tokenscale):
    result = tokenscale("generate", "-p", "RoE(n=2, tau=1e-9, clean_layers=0)", "--max-new-tokens", "3", "1+1=")
    assert "note: " in result.stderr
    assert "tau" in result.stderr


def test_list_names_what_there_is(tokenscale):
    shown = tokenscale("list").stdout
    for word in ("RoE", "SelfConsistency", "demo-noisy", "demo-verifier", "arithmetic", "quickstart"):
        assert word in shown
    listed = json.loads(tokenscale("list", "--json").stdout)
    assert {"name", "kind", "summary"} == set(listed["strategies"][0])
    assert Path(listed["recipes"]["quickstart"]).is_file()


def test_version(tokenscale):
    assert tokenscale("--version").stdout == f"tokenscale {version('tokenscale')}\n"
    help_text = " ".join(tokenscale("--help").stdout.split())
    assert "compared at stated costs" in help_text
    assert "--version" in help_text


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["run", "--help"]])
def test_help(tokenscale, arguments):
    assert "Usage" in tokenscale(*arguments).stdout


def test_demo_keeps_nothing_unless_asked(tokenscale, monkeypatch):
    monkeypatch.setattr(cli, "RECIPES", Path.cwd())
    Path("recipe.yaml").rename("quickstart.yaml")
    result = tokenscale("demo")
    assert "The whole report" not in result.stdout
    assert sorted(p.name for p in Path().iterdir()) == ["quickstart.yaml"]
    assert "out/report.md" in tokenscale("demo", "--out", "out").stdout


def program(code, *arguments, **keywords):
    """The program in a process of its own; `code` runs first."""
    script = f"{textwrap.dedent(code)}\nfrom tokenscale.cli import main\nmain()"
    places = [Path(cli.__file__).parents[1], Path(__file__).parents[1]]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, places)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **keywords
    )


def test_ctrl_c_ends_a_run_with_130_and_keeps_its_answers(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("limit: 5", "limit: 500"))
    # A shell's background job ignores SIGINT, and so would what it starts.
    code = """
        import signal
        signal.signal(signal.SIGINT, signal.default_int_handler)
        from tests.comparison import small_toy
        from tokenscale.experiments import execute
        execute.load = small_toy
    """
    running = program(code, "run", "recipe.yaml", "--out", "out", cwd=tmp_path)
    answers = tmp_path / "out" / "answers" / "arithmetic.toy.greedy.seed0.jsonl"
    end = time.monotonic() + 60
    while not (answers.exists() and answers.read_bytes().count(b"\n") >= 2):
        assert time.monotonic() < end
        assert running.poll() is None, running.communicate()
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    output, errors = running.communicate(timeout=60)
    assert running.returncode == 130, errors
    assert output == ""
    assert errors.strip().endswith("interrupted: what is answered is kept; run the same command again to go on")
    assert "Traceback" not in errors
    assert not (tmp_path / "out" / "report.json").exists()
    assert answers.read_bytes().endswith(b"\n")


def test_bad_input_in_a_process_of_its_own(tmp_path):
    running = program("", "run", "none.yaml", "--out", "out", cwd=tmp_path)
    output, errors = running.communicate(timeout=120)
    assert (running.returncode, output) == (2, "")
    message = "error: the recipe 'none.yaml' cannot be read: No such file or directory"
    assert errors.splitlines() == [message, "  fix: give the path of a YAML file"]
    assert list(tmp_path.iterdir()) == []
