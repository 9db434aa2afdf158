"""Whole searches on the toy model: what is written, what a resumed one adds, and what is refused."""

import json
import math
import random

import optuna
import pytest
import yaml

from tests.comparison import RECIPE, small_toy
from tokenscale import RoE
from tokenscale.core.cost import Cost
from tokenscale.core.errors import ArgumentError, CapabilityError, RecipeError
from tokenscale.core.prompt import Prompt
from tokenscale.experiments import tasks, tuning_folder
from tokenscale.experiments.tuning import tune
from tokenscale.experiments.tuning_objective import Perplexity, WrongAnswers
from tokenscale.models.toy import SPELLING, ToyModel
from tokenscale.pipeline import Pipeline
from tokenscale.recipe import Recipe

TUNE = """\
tune:
  budget: {trials: 6}
  objective: perplexity
  text_files: {validation: validation.jsonl, test: test.jsonl}
  parameters: {roe: {tau: {low: 0.0, high: 4.0, per_layer: true}}}
"""


def toy(*_, **__):
    """Three MoE layers, so that the middle one is noisy."""
    return ToyModel(spelling=SPELLING + "£€", moe_layers=3, experts=4, width=4)


def texts(count, seed):
    chance = random.Random(seed)
    return ["".join(chance.choice("0123456789+=. ") for _ in range(8)) for _ in range(count)]


@pytest.fixture
def load(tmp_path, monkeypatch, quick_storage):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tuning_folder, "open_storage", quick_storage)
    for name, count, seed in (("validation", 6, 0), ("test", 5, 1)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts(count, seed)))
    text = RECIPE.replace("RoE(n=2, tau=1.0, clean_layers=0)", "RoE(n=3, tau=1.0)")
    (tmp_path / "recipe.yaml").write_text(text + TUNE)
    return lambda *arguments: Recipe.load(tmp_path / "recipe.yaml", arguments)


def trials_of(folder, arm):
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder}/study.db")
    found = optuna.load_study(study_name=arm, storage=storage).trials
    storage.remove_session()
    storage.engine.dispose()
    return found


def test_a_search_writes_what_it_found(load, tmp_path, monkeypatch):
    """Losses are those of scoring; the test texts are read last; bills add up; the profile is the tuned arm."""
    calls, measure = [], Perplexity.measure

    def spy(self, pipeline, lm, items, seed):
        measured = measure(self, pipeline, lm, items, seed)
        calls.append(([item.text for item in items], measured.cost))
        return measured

    monkeypatch.setattr(Perplexity, "measure", spy)
    out, seen = tmp_path / "out", []
    report = tune(load("seeds=[3, 4]"), out, open_model=toy, progress=seen.append)
    assert json.loads((out / "tuning.json").read_text()) == report
    [arm] = report["arms"]
    lm = toy()
    held_out = {lm.encode(Prompt(text=t)) for t in texts(5, 1)}
    reads = [{*scored} <= held_out for scored, _ in calls]
    assert reads == sorted(reads)
    assert sum(reads) == (4 if arm["tuned"] != arm["pipeline"] else 2)  # two seeds, untuned and tuned
    assert Cost(**report["cost"]["total"]) == Cost.total(cost for _, cost in calls)
    assert Cost(**report["cost"]["search"]) == Cost.total(
        cost for (_, cost), read in zip(calls, reads, strict=True) if not read
    )
    assert [p.done for p in seen] == list(range(7))
    assert seen[-1].cost == Cost(**report["cost"]["search"])
    # The profile is the arm as tuned, whose loss is that of scoring by hand.
    tuned = RoE(3, str(out / arm["profile"]))
    assert tuned.taus(3) == (0.0, arm["values"]["tau"][1], 0.0) == tuple(arm["values"]["tau"])
    validation = [lm.encode(Prompt(text=t)) for t in texts(6, 0)]
    scores = lm.score(validation, tuned, seed=3)
    assert arm["validation"]["tuned"] == pytest.approx(
        -math.fsum(s.total for s in scores) / sum(len(s.log_probs) for s in scores)
    )
    trials = trials_of(out, "roe")
    assert trials[0].params == {"tau[1]": 1.0}
    assert arm["validation"]["untuned"] == trials[0].value
    assert arm["validation"]["tuned"] == min(t.value for t in trials if t.value is not None)
    assert "clean row" in arm["verdict"] or arm["test"]["against_clean"]["interval"][1] < 0
    tuned.check(lm)
    with pytest.raises(ArgumentError, match="tuned for another model"):
        tuned.check(small_toy())
    # Its keys, and the arms for another recipe.
    profile = yaml.safe_load((out / arm["profile"]).read_text())
    assert (profile["fingerprint"], profile["layers"]) == (lm.fingerprint, lm.inspect_layers())
    assert (profile["study"]["name"], profile["validation"]["samples"]) == ("roe", 6)
    assert profile["study"]["file"] == "study.db"  # beside the profile, wherever the folder is moved
    assert profile["cost"] == arm["cost"]
    arms = yaml.safe_load((out / "tuned.yaml").read_text())["arms"]
    assert Pipeline.parse(arms["roe"]).proposer == tuned
    assert report["not_tuned"] == ["greedy", "vote"]
    assert "not tuned: greedy, vote" in (out / "tuning.md").read_text()
    # What is complete is not searched again.
    monkeypatch.setattr(Perplexity, "measure", lambda *_: pytest.fail("searched again"))
    assert tune(load("seeds=[3, 4]"), out, open_model=toy) == report
    with pytest.raises(RecipeError, match=r"search of another recipe: tune\.budget\.trials changed since"):
        tune(load("seeds=[3, 4]", "tune.budget.trials=7"), out, open_model=toy)


def test_an_interrupted_search_goes_on(load, tmp_path, monkeypatch):
    """Ctrl-C leaves a study and no profile; called again it finds what an uninterrupted one finds."""
    measure, calls = Perplexity.measure, [0]

    def stop(*arguments):
        calls[0] += 1
        if calls[0] == 8:
            raise KeyboardInterrupt
        return measure(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Perplexity, "measure", stop)
        with pytest.raises(KeyboardInterrupt):
            tune(load(), tmp_path / "broken", open_model=toy)
    names = {p.name for p in (tmp_path / "broken").iterdir()}
    assert names == {".lock", "study.db", "tune.json"}
    again = tune(load(), tmp_path / "broken", open_model=toy)
    whole = tune(load(), tmp_path / "whole", open_model=toy)
    for same in ("values", "test", "validation", "verdict"):
        assert again["arms"][0][same] == whole["arms"][0][same]
    assert again["arms"][0]["trials"]["interrupted"] == 1
    assert Cost(**again["cost"]["search"]).rows > Cost(**whole["cost"]["search"]).rows


def test_arms_of_any_kind_are_tuned_by_accuracy(load, tmp_path, monkeypatch):
    """A vote's temperature beside RoE's tau, with the same number of trials."""

    def packaged(name, split):
        first = {"validation": 0, "test": 10}[split]
        return tuple(tasks.Problem(f"{split}{i}", f"{i}+1=", str(i + 1)) for i in range(first, first + 6))

    monkeypatch.setattr(tasks, "_packaged", packaged)
    arguments = [
        "tune.text_files=",
        "tune.objective=accuracy",
        "tune.budget.trials=3",
        "tune.data={split: validation, limit: 4}",
        "tune.parameters={vote: {temperature: [0.5, 0.7, 2.0]}, roe: {tau: {low: 0, high: 2}, n: {low: 2, high: 3}}}",
        "arms.roe=RoE(n=2, tau=1.0, clean_layers=0)",
    ]
    report = tune(load(*arguments), tmp_path / "out", open_model=small_toy)
    vote, roe = report["arms"]
    assert (vote["name"], vote["profile"], roe["profile"]) == ("vote", None, "roe.profile.yaml")
    assert vote["values"]["temperature"] in (0.5, 0.7, 2.0)
    assert roe["values"]["n"] in (2, 3)
    assert type(roe["values"]["n"]) is int
    assert vote["test"]["clean"] is None
    assert report["unit"] == WrongAnswers.unit
    assert all(sum(arm["trials"][k] for k in ("complete", "pruned")) == 3 for arm in report["arms"])
    assert yaml.safe_load((tmp_path / "out" / "tuned.yaml").read_text())["arms"].keys() == {"vote", "roe"}


def test_where_nothing_is_gained_the_result_says_so(load, tmp_path):
    """tau so small that no expert changes: all trials tie, and the arm as written wins."""
    tiny = "tune.parameters={roe: {tau: {low: 1.0e-12, high: 1.0e-11}}}"
    report = tune(load("arms.roe=RoE(n=2, tau=5.0e-12)", tiny), tmp_path / "out", open_model=toy)
    [arm] = report["arms"]
    assert arm["verdict"].startswith(
        "The search found nothing better than the arm as written. The tuned arm is not shown"
    )
    assert arm["test"]["difference"]["mean"] == 0
    assert arm["trials"]["best"] == 0


@pytest.mark.parametrize(
    ("arguments", "opened", "error", "message"),
    [
        (["tune="], toy, RecipeError, "the recipe has no `tune:`"),
        (["tune.text_files.test=validation.jsonl"], toy, RecipeError, "6 of the 6 test samples"),
        ([], lambda _: ToyModel(moe_layers=0), CapabilityError, "^arms.roe: RoE"),
        ([], lambda _: ToyModel(moe_layers=2), ArgumentError, "^arms.roe: .* leaves none of the 2 MoE layers"),
        (
            ["tune.parameters={roe: {keep_head: [0, 9]}}"],
            toy,
            ArgumentError,
            r"^arms.roe: RoE\(keep_head=9\) keeps all",
        ),
        (["tune.piece_tokens=513"], toy, RecipeError, "tune.piece_tokens is 513"),
    ],
)
def test_what_cannot_be_tuned_is_refused_and_leaves_nothing(load, tmp_path, arguments, opened, error, message):
    with pytest.raises(error, match=message) as caught:
        tune(load(*arguments), tmp_path / "out", open_model=opened)
    assert caught.value.hint
    assert not (tmp_path / "out").exists()


def test_folders_that_are_no_search_are_refused(load, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "study.db").write_text("mine")
    with pytest.raises(RecipeError, match=r"holds a study\.db that no search wrote"):
        tune(load(), out, open_model=toy)
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match="cannot be a folder"):
        tune(load(), tmp_path / "file", open_model=toy)
    (out / "study.db").unlink()
    (out / "tune.json").write_text("{")
    with pytest.raises(RecipeError, match="is not what a search wrote"):
        tune(load(), out, open_model=toy)


def test_a_folder_in_use_and_a_broken_study_are_refused(load, tmp_path, monkeypatch):
    out, refused = tmp_path / "out", []

    def second(*_):
        with pytest.raises(RecipeError, match="another search is writing") as caught:
            tune(load(), out, open_model=toy)
        refused.append(caught.value.hint)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(load(), out, open_model=toy, progress=second)
    assert refused == ["wait for it, or give another --out"]
    (out / "study.db").write_bytes(b"no database " * 100)
    with pytest.raises(RecipeError, match="cannot be read as a study"):
        tune(load(), out, open_model=toy)
