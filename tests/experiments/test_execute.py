"""Runs of a recipe: what is kept, what a resumed run adds, and what is refused."""

import gc
import itertools
import json
import random
import weakref

import pytest

from tokenscale.core import memory
from tokenscale.core.errors import CapabilityError, ModelError, PromptError, RecipeError, TokenscaleWarning
from tokenscale.experiments import execute as module
from tokenscale.experiments.execute import execute
from tokenscale.experiments.store import Slot, Store
from tokenscale.models.toy import ToyModel
from tokenscale.pipeline import Pipeline

pytestmark = pytest.mark.usefixtures("tiny_task")


def still():
    """A clock that stands still, since seconds are the only thing that two runs may differ in."""
    return 0.0


def contents(folder):
    """Every file of a run but the lock, and what the machine did."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.name not in (".lock", "machine.json")]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def test_a_run_answers_every_problem_and_writes_both_reports(load, toy, tmp_path):
    seen = []
    report = execute(load("seeds=[0, 4]"), tmp_path / "out", open_model=toy, progress=seen.append, clock=still)
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    assert (tmp_path / "out" / "report.md").read_text().startswith("# Does it run?\n")
    assert [arm["name"] for arm in report["arms"]] == ["greedy", "roe", "vote"]
    assert {p.total for p in seen} == {2 * 3 * 5}
    assert [p.done for p in seen] == sorted(p.done for p in seen)
    assert seen[-1].done == seen[-1].total
    answers = contents(tmp_path / "out" / "answers")
    assert set(answers) == {f"arithmetic.toy.{a}.seed{s}.jsonl" for a in ("greedy", "roe", "vote") for s in (0, 4)}


def test_rows_are_those_of_the_pipeline_run_by_hand(load, toy, tmp_path):
    """Each problem by itself, in the library's own call, gives the row: draws depend on seed and problem alone."""
    from tokenscale.experiments.tasks import prompts, reported

    recipe = load("seeds=[3]")
    execute(recipe, tmp_path / "out", open_model=toy, clock=still)
    store = Store(tmp_path / "out", {})
    lm = toy(None)
    for name, text in (("vote", "SelfConsistency(k=2)"), ("roe", "RoE(n=2, tau=1.0, clean_layers=0)")):
        rows = store.rows(Slot("arithmetic", "toy", name, 3))
        for problem in reported("arithmetic", recipe.tasks["arithmetic"]):
            [prompt] = prompts(module.find_task("arithmetic"), [problem], recipe.prompt, lm)
            [result] = Pipeline.parse(text).run(lm, [prompt], seed=3, max_new_tokens=4)
            row = rows[problem.id]
            assert (row["text"], row["cost"]) == (result.text, result.cost.to_dict())
            assert [c["token_ids"] for c in row["candidates"]] == [list(c.token_ids) for c in result.candidates]
            assert row["truncated"] == sum(c.finish_reason == "length" for c in result.candidates)
            assert row["score"] in (0.0, 1.0)
    store.close()


@pytest.mark.parametrize("seed", range(2))
def test_a_killed_run_goes_on_to_the_same_report(load, toy, tmp_path, seed):
    """Interrupted at random places, its last file torn: the same files, byte for byte."""
    chance = random.Random(seed)
    recipe = load("seeds=[0, 1]")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    execute(recipe, whole, open_model=toy, clock=still)
    for _ in range(3):
        calls = itertools.count()
        last = chance.randrange(2, 35)

        def kill(progress, calls=calls, last=last):
            if next(calls) == last:
                raise KeyboardInterrupt

        try:
            execute(recipe, broken, open_model=toy, progress=kill, clock=still)
        except KeyboardInterrupt:
            assert not (broken / "report.json").exists()
        for path in sorted(broken.glob("answers/*"))[-1:]:
            path.write_bytes(path.read_bytes()[: -chance.randrange(1, 200)])
        for report in ("report.json", "report.md"):
            (broken / report).unlink(missing_ok=True)
    execute(recipe, broken, open_model=toy, clock=still)
    assert contents(broken) == contents(whole)


@pytest.mark.parametrize("last", [1, 3])
def test_an_answer_is_kept_as_soon_as_it_is_there(load, toy, tmp_path, last):
    """Also where more problems share the batch: those that have ended are kept, in the order of their ends."""

    def kill(progress):
        if progress.done == last:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(load(), tmp_path / "out", open_model=toy, progress=kill)
    store = Store(tmp_path / "out", {})
    rows = store.rows(Slot("arithmetic", "toy", "greedy", 0))
    store.close()
    assert len(rows) == last
    seen = []
    execute(load(), tmp_path / "out", open_model=toy, progress=seen.append)
    assert (seen[0].done, seen[-1].done) == (last, 15)


def test_all_problems_of_an_arm_share_one_call(load, toy, tmp_path, monkeypatch):
    """So that the batch stays full to the end; the seconds of its answers add up to those of the call."""
    run, asked, ticks = Pipeline.run, [], itertools.count()

    def counted(self, lm, prompts, **options):
        asked.append(len(prompts))
        return run(self, lm, prompts, **options)

    monkeypatch.setattr(Pipeline, "run", counted)
    report = execute(load(), tmp_path / "out", open_model=toy, clock=lambda: next(ticks))
    assert asked == [5, 5, 5]
    assert [arm["seconds"] for arm in report["arms"]] == [5, 5, 5]


def test_a_finished_run_is_not_run_again(load, toy, tmp_path, monkeypatch):
    first = execute(load(), tmp_path / "out", open_model=toy)
    monkeypatch.setattr(Pipeline, "run", lambda *_, **__: pytest.fail("ran again"))
    # How the machine is used is no part of what a run is.
    assert execute(load("run.batch_size=3"), tmp_path / "out", open_model=toy) == first


def test_batch_size_changes_nothing(load, toy, tmp_path):
    """No byte of answers and reports, and so no bill."""
    bounds = [("1", "auto"), ("3", "30"), ("16", "60"), ("auto", "auto")]
    for number, (size, tokens) in enumerate(bounds):
        arguments = [f"run.batch_size={size}", f"run.max_batch_tokens={tokens}"]
        execute(load(*arguments), tmp_path / str(number), open_model=toy, clock=still)
        assert contents(tmp_path / str(number)) == contents(tmp_path / "0")


def machine(folder):
    return json.loads((folder / "machine.json").read_text())


def test_what_the_machine_did_stands_beside_the_answers(load, toy, tmp_path):
    """The bounds, given or chosen, and counts: a record for each arm and seed, which nothing depends on."""
    execute(load("run.batch_size=3", "run.max_batch_tokens=40"), tmp_path / "out", open_model=toy)
    records = machine(tmp_path / "out")
    assert [record["file"] for record in records] == [
        f"arithmetic.toy.{arm}.seed0.jsonl" for arm in ("greedy", "roe", "vote")
    ]
    for record in records:
        assert (record["batch_size"], record["max_batch_tokens"], record["chosen"]) == (3, 40, False)
        assert (record["halvings"], record["halved_to"]) == (0, None)
        assert record["most_tokens"] <= 40
    assert [record["started"] for record in records] == [5, 5, 10]
    execute(load("run.batch_size=1"), tmp_path / "out", open_model=toy)
    assert machine(tmp_path / "out") == records  # nothing was run
    execute(load(), tmp_path / "auto", open_model=toy)
    assert {(record["batch_size"], record["chosen"]) for record in machine(tmp_path / "auto")} == {(64, True)}
    assert all(record["max_batch_tokens"] > 1000 for record in machine(tmp_path / "auto"))


def test_an_interrupted_run_has_a_record_and_is_gone_on_with(load, toy, tmp_path):
    def kill(progress):
        if progress.done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(load(), tmp_path / "out", open_model=toy, progress=kill)
    first = machine(tmp_path / "out")
    assert [record["file"].split(".")[2] for record in first] == ["greedy", "roe"]
    (tmp_path / "out" / "machine.json").write_text("[{half")  # by whatever: it stops nothing
    execute(load(), tmp_path / "out", open_model=toy)
    assert [record["file"].split(".")[2] for record in machine(tmp_path / "out")] == ["roe", "vote"]


def test_memory_that_ran_out_for_an_arm_bounds_its_other_seeds(load, toy, tmp_path, monkeypatch):
    """It is halved once for each arm, not for each seed; answers are those of a machine with memory."""
    monkeypatch.setattr(memory, "release", lambda: None)  # collecting a test process takes longer than the test
    execute(load("seeds=[0, 1]"), tmp_path / "whole", open_model=toy, clock=still)
    step = ToyModel.step

    def scarce(self, state, tokens, *plan):
        if len(tokens) > 3:
            raise MemoryError
        return step(self, state, tokens, *plan)

    monkeypatch.setattr(ToyModel, "step", scarce)
    with pytest.warns(TokenscaleWarning, match="memory ran out for"):
        execute(load("seeds=[0, 1]"), tmp_path / "out", open_model=toy, clock=still)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    halvings = {record["file"]: record["halvings"] for record in machine(tmp_path / "out")}
    assert [halvings[f"arithmetic.toy.vote.seed{seed}.jsonl"] for seed in range(2)] == [2, 0]


@pytest.mark.parametrize("argument", ["seeds=[1]", "arms.vote=SelfConsistency(k=4)", "contrasts=[]", "margin=1.0"])
def test_a_changed_recipe_is_refused_and_nothing_is_touched(load, toy, tmp_path, argument):
    execute(load(), tmp_path / "out", open_model=toy)
    before = contents(tmp_path / "out")
    with pytest.raises(RecipeError, match=f"answers of another run: recipe.{argument.partition('=')[0]}"):
        execute(load(argument), tmp_path / "out", open_model=toy)
    assert contents(tmp_path / "out") == before


def test_another_model_is_refused(load, toy, tmp_path):
    execute(load(), tmp_path / "out", open_model=toy)
    with pytest.raises(RecipeError, match=r"models\.toy changed since"):
        execute(load(), tmp_path / "out", open_model=lambda section: ToyModel(seed=1))


def test_other_problems_are_refused(load, toy, tmp_path, monkeypatch):
    from tokenscale.experiments import tasks

    execute(load(), tmp_path / "out", open_model=toy)
    monkeypatch.setattr(tasks, "_packaged", lambda *_: tuple(tasks.Problem(str(i), "?", "1") for i in range(10)))
    with pytest.raises(RecipeError, match=r"data\.arithmetic changed since"):
        execute(load(), tmp_path / "out", open_model=toy)


@pytest.mark.parametrize("bad", ["dense", "gone"])
def test_a_model_that_does_not_fit_is_refused_before_anything_is_decoded(load, toy, tmp_path, bad):
    """The second of two models: nothing is decoded with the first, no file is left, and a mended recipe runs."""

    def opened(section):
        if section.path == "gone":
            raise ModelError("there is no model 'gone'", "give another")
        return ToyModel(moe_layers=0) if section.path == "dense" else toy(section)

    key = {"dense": "arms.roe: ", "gone": "models.second: "}[bad]
    with pytest.raises((CapabilityError, ModelError), match=f"^{key}") as caught:
        execute(load(f"models.second.path={bad}"), tmp_path / "out", open_model=opened)
    assert caught.value.hint
    assert not (tmp_path / "out").exists()
    execute(load("models.second.path=toy"), tmp_path / "out", open_model=opened)


def test_models_are_opened_one_at_a_time(load, toy, tmp_path):
    opened = []

    def open_model(section):
        assert [model() for model in opened if model() is not None] == []
        lm = toy(section)
        opened.append(weakref.ref(lm))
        return lm

    gc.disable()
    try:
        execute(load("models.second.path=toy"), tmp_path / "out", open_model=open_model)
    finally:
        gc.enable()
    assert len(opened) == 3


def test_a_prompt_that_does_not_fit_leaves_nothing(load, tmp_path):
    def short(section):
        return ToyModel(moe_layers=1, experts=4, width=4, context_length=4)

    with pytest.raises(PromptError):
        execute(load(), tmp_path / "out", open_model=short)
    assert not (tmp_path / "out").exists()


def test_another_version_is_refused(load, toy, tmp_path, monkeypatch):
    execute(load(), tmp_path / "out", open_model=toy)
    monkeypatch.setattr(module, "version", lambda name: "9.9")
    with pytest.raises(RecipeError, match=r"versions\.numpy, versions\.tokenscale, versions\.torch"):
        execute(load(), tmp_path / "out", open_model=toy)


PLUG_IN = """
from dataclasses import dataclass, replace
from tokenscale.core.strategy import SequenceStrategy
from tokenscale.core.stage import Kind

@dataclass(frozen=True)
class Nth(SequenceStrategy):
    kind = Kind.CHOOSING
    place: object = None
    def solve(self, ask):
        [candidates] = yield [replace(ask, k=2)]
        return [candidates[0]]

def helper():
    pass
"""


@pytest.mark.parametrize("arm", ["nth.py:Nth()", "other.py:Nth(place=nth.py:helper)"])
def test_a_changed_plug_in_is_another_run(load, toy, tmp_path, monkeypatch, arm):
    monkeypatch.chdir(tmp_path)
    for name in ("nth.py", "other.py"):
        (tmp_path / name).write_text(PLUG_IN)
    recipe = load(f"arms.roe={arm}")
    execute(recipe, tmp_path / "out", open_model=toy)
    execute(recipe, tmp_path / "out", open_model=toy)
    (tmp_path / "nth.py").write_text(PLUG_IN.replace("candidates[0]", "candidates[1]"))
    with pytest.raises(RecipeError, match=r"plugins\.nth\.py:(Nth|helper) changed since"):
        execute(recipe, tmp_path / "out", open_model=toy)


def test_arms_with_prompts_of_their_own(load, toy, tmp_path):
    recipe = load("arms.roe={pipeline: Greedy(), prompt: {few_shot: 1}}")
    report = execute(recipe, tmp_path / "out", open_model=toy)
    costs = {arm["name"]: arm["cost"]["prompt_tokens"] for arm in report["arms"]}
    assert costs["roe"] > costs["greedy"] + 8


def test_a_changed_profile_is_another_run(load, toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written = f"fingerprint: {toy(None).fingerprint}\ntau: [1.0]\n"
    (tmp_path / "tuned.yaml").write_text(written)
    recipe = load("arms.roe=RoE(n=2, tau='tuned.yaml', clean_layers=0)")
    execute(recipe, tmp_path / "out", open_model=toy)
    execute(recipe, tmp_path / "out", open_model=toy)
    (tmp_path / "tuned.yaml").write_text(written.replace("1.0", "0.5"))
    with pytest.raises(RecipeError, match=r"profiles\.tuned\.yaml changed since"):
        execute(recipe, tmp_path / "out", open_model=toy)
