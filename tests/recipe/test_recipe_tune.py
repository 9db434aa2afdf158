"""The `tune:` key: what is read, and that everything else is refused with place and fix."""

import pytest

from tokenscale.core.errors import RecipeError, UnknownNameError
from tokenscale.pipeline import Pipeline
from tokenscale.recipe_tune import place_of, with_values

TUNE = """\
version: 1
question: Why?
models: {demo: {path: demo}}
tasks: {arithmetic: {limit: 10}}
arms:
  greedy: Greedy()
  roe: RoE(n=4)
  vote: SelfConsistency(k=3)
tune:
  budget: {trials: 5}
  objective: perplexity
  data: {split: validation, limit: 3}
  parameters:
    roe: {tau: {low: 0.0, high: 0.5, per_layer: true}}
"""


def test_every_key_is_read(load):
    more = "\n  model: demo\n  task: arithmetic\n  piece_tokens: 64\n  test: {split: test, limit: null}\n"
    tune = load(TUNE.replace("\n  objective:", more + "  objective:")).tune
    assert (tune.budget.trials, tune.objective, tune.model, tune.task) == (5, "perplexity", "demo", "arithmetic")
    assert (tune.data.limit, tune.test.limit, tune.piece_tokens) == (3, None, 64)
    bounds = tune.parameters["roe"]["tau"]
    assert (bounds.low, bounds.high, bounds.per_layer, bounds.choices) == (0.0, 0.5, True, None)


def test_a_list_is_choices_and_files_are_texts(load):
    text = TUNE.replace("{low: 0.0, high: 0.5, per_layer: true}", "[0.1, 1]")
    tune = load(text + "  text_files: {validation: a.jsonl, test: b.jsonl}\n").tune
    assert tune.parameters["roe"]["tau"].choices == (0.1, 1)
    assert tune.reads_texts
    assert not load(TUNE).tune.reads_texts


def test_the_resolved_recipe_is_a_recipe(load):
    import yaml

    recipe = load(TUNE)
    assert load(yaml.safe_dump(recipe.resolved())) == recipe


BOUNDS = "{low: 0.0, high: 0.5, per_layer: true}"
WRONG = [
    ("trials: 5", "trails: 5", 10, 12, "unknown key 'trails' under tune.budget", "'trials'"),
    ("trials: 5", "trials: 0", 10, 20, "tune.budget.trials: must be greater than or equal to 1", "trials: 50"),
    ("  budget: {trials: 5}\n", "", 10, 3, "the key 'tune.budget' is missing", "budget: {trials: 50}"),
    ("objective: perplexity", "objective: loss", 11, 14, "tune.objective: must be 'perplexity'", "accuracy"),
    ("split: validation, limit", "split: validation, limt", 12, 29, "unknown key 'limt' under tune.data", "'limit'"),
    ("split: validation", "split: test", 10, 3, "tunes on the split 'test' and tests on it too", "split: validation"),
    ("  objective", "  modle: x\n  objective", 11, 3, "unknown key 'modle' under tune", "did you mean 'model'"),
    ("  objective", "  model: x\n  objective", 11, 10, "tune.model names no model 'x'", "known: demo"),
    ("  objective", "  texts: wiki\n  objective", 11, 10, "tune.texts: must be 'stdlib_docs'", "stdlib_docs"),
    (
        "  objective",
        "  text_files: {test: b, vali: a}\n  objective",
        11,
        25,
        "'vali' under tune.text_files",
        "validation",
    ),
    ("perplexity", "accuracy\n  texts: stdlib_docs", 10, 3, "texts have no accuracy", "leave them out"),
    (
        "perplexity",
        "perplexity\n  texts: stdlib_docs\n  text_files: {test: b, validation: a}",
        10,
        3,
        "has texts and text_files",
        "keep one",
    ),
    ("    roe:", "    reo:", 14, 5, "tune.parameters names no arm 'reo'", "did you mean 'roe'"),
    ("{tau: {", "{tua: {", 14, 11, "has no parameter 'tua'", "did you mean 'tau'"),
    (f"    roe: {{tau: {BOUNDS}}}", "    greedy: {n: [1, 2]}", 14, 14, "has no parameter 'n'", "no parameters"),
    (f"{{tau: {BOUNDS}}}", "{}", 14, 10, "tune.parameters.roe: must not be empty", "parameters: {roe"),
    (BOUNDS, "{low: 0.5, high: 0.1}", 14, 16, "low below high, got low: 0.5, high: 0.1", "list of choices"),
    (BOUNDS, "{low: 0.1}", 14, 16, "low below high, got low: 0.1, high: None", "list of choices"),
    (BOUNDS, "{low: a, high: 1}", 14, 22, "tune.parameters.roe.tau.low: must be a number, got 'a'", "low: 0.0"),
    (BOUNDS, "{low: 0, high: .nan}", 14, 31, "tau.high: must be a number, got nan", "low: 0.0"),
    (BOUNDS, "{lwo: 0.5, high: 0.1}", 14, 17, "unknown key 'lwo'", "'low'"),
    (BOUNDS, "{low: 0.0, high: 1, log: true}", 14, 16, "on a log scale low is above 0", "low: 0.01"),
    (BOUNDS, "{low: 0.0, high: 1, choices: [1, 2]}", 14, 16, "choices stand alone", "low: 0.0"),
    (BOUNDS, "[0.1, 0.1]", 14, 16, "at least two, and all different", "list of choices"),
    (BOUNDS, "[0.1]", 14, 16, "at least two, and all different", "list of choices"),
    (BOUNDS, "[0.1, []]", 14, 16, "must be a number, got []", "list of choices"),
    (BOUNDS, "{low: -0.1, high: 0.5}", 14, 11, "tau must not be negative", "tau=0"),
    (BOUNDS, "[0.1, high]", 14, 11, "there is no profile 'high'", "tau=0.3"),
    ("tau: {low", "n: {low", 14, 11, "'n' has no value per layer", "leave per_layer out"),
    ("roe: {tau: {low", "vote: {temperature: {low", 14, 12, "does not change the perplexity", "objective: accuracy"),
]


@pytest.mark.parametrize(("old", "new", "line", "column", "message", "hint"), WRONG)
def test_wrong_values_are_refused_with_place_and_fix(load, old, new, line, column, message, hint):
    assert old in TUNE
    with pytest.raises(RecipeError) as caught:
        load(TUNE.replace(old, new, 1))
    assert f"r.yaml, line {line}, column {column}: " in caught.value.message, caught.value.message
    assert message in caught.value.message
    assert hint in str(caught.value)


def test_one_of_several_models_and_tasks_has_to_be_named(load):
    two = TUNE.replace("{demo: {path: demo}}", "{demo: {path: demo}, other: {path: demo-noisy}}")
    with pytest.raises(
        RecipeError, match=r"line 10, column 3: tune: the recipe has 2 models.*\n  fix: write tune.model: "
    ):
        load(two)
    assert load(two.replace("  budget", "  model: other\n  budget")).tune.model == "other"


def test_parameters_are_found_and_changed():
    pipeline = Pipeline.parse("RoE(n=4) | SelfConsistency(k=3)").resolved()
    changed = with_values(pipeline, {"tau": (0.0, 0.2), "temperature": 0.9, "SelfConsistency.k": 5})
    assert (
        changed
        == Pipeline.parse("RoE(n=4, tau=(0.0, 0.2)) | Sample(temperature=0.9) | SelfConsistency(k=5)").resolved()
    )
    assert with_values(pipeline, {}) == pipeline
    twice = Pipeline.parse("MoreExperts(k=4) | SelfConsistency(k=3)").resolved()
    with pytest.raises(UnknownNameError, match=r"in several stages\n  fix: write MoreExperts.k or SelfConsistency.k"):
        place_of(twice, "k")
    assert twice[place_of(twice, "SelfConsistency.k")[0]] == twice.strategies[0]
