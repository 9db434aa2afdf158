"""The keys and values of recipes: what is read, and that everything else is refused with place and fix."""

import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from tests.recipe.texts import FULL, SMALL
from tokenscale.core.errors import RecipeError
from tokenscale.pipeline import Pipeline
from tokenscale.recipe import Recipe
from tokenscale.sequence_level.chain_of_thought import ChainOfThought
from tokenscale.sequence_level.self_consistency import SelfConsistency


def test_every_key_is_read(load):
    recipe = load(FULL)
    assert recipe.models["noisy"].dtype == "bfloat16"
    assert recipe.tasks["arithmetic"].limit == 2000
    assert recipe.generation.stop_strings == ("\nQ:",)
    assert recipe.arms["vote"].pipeline == Pipeline.parse("SelfConsistency(k=5)")
    assert recipe.arms["roe"].prompt.few_shot == 2
    assert recipe.contrasts == (("roe", "vote"), ("both", "vote"))
    assert (recipe.margin, recipe.seeds, recipe.run.batch_size) == (1.0, (0, 1, 2), "auto")


def test_defaults(load):
    recipe = load(SMALL)
    assert (recipe.seeds, recipe.contrasts, recipe.margin) == ((0,), (), None)
    assert recipe.tasks["arithmetic"].split == "test"
    assert recipe.generation.max_new_tokens == 256
    assert recipe.prompt.chat == "auto"


def test_a_recipe_is_frozen(load):
    with pytest.raises(ValueError, match="frozen"):
        load(SMALL).question = "another"


@pytest.mark.parametrize("text", [FULL, SMALL])
def test_the_resolved_recipe_is_a_recipe(load, text):
    recipe = load(text)
    again = load(yaml.safe_dump(recipe.resolved()))
    assert again.resolved() == recipe.resolved()
    assert again == recipe


WRONG = [
    ("version: 1", "version: 2", 1, 10, "version: must be 1, got 2", "version: 1"),
    ("question: Why?", "questoin: Why?", 2, 1, "unknown key 'questoin'", "did you mean 'question'?"),
    ("question: Why?", "question: 12", 2, 11, "question: must be a valid string, got 12", "the question"),
    ("{path: demo}", "{pth: demo}", 3, 17, "unknown key 'pth' under models.demo", "did you mean 'path'?"),
    ("{demo: {path: demo}}", "{}", 3, 9, "models:", "models: {demo: {path: demo}}"),
    ("{demo: {path: demo}}", "{demo: demo}", 3, 16, "models.demo:", "models: {demo: {path: demo}}"),
    ("{demo: {path", "{a b: {path", 3, 10, "'a b' is not a name", "letters"),
    ("arithmetic:", "aritmetic:", 4, 9, "unknown task 'aritmetic'", "did you mean 'arithmetic'?"),
    ("{limit: 10}", "{limit: many}", 4, 29, "tasks.arithmetic.limit: must be a valid integer, got 'many'", "null"),
    ("{limit: 10}", "{limit: 0}", 4, 29, "tasks.arithmetic.limit: must be greater than or equal to 1, got 0", "from 1"),
    ("{limit: 10}", "{limit: true}", 4, 29, "tasks.arithmetic.limit: must be a valid integer, got True", "from 1"),
    ("{limit: 10}", "{limit: 1.0}", 4, 29, "tasks.arithmetic.limit: must be a valid integer, got 1.0", "from 1"),
    ("{limit: 10}", "{split: train}", 4, 29, "tasks.arithmetic.split: must be 'validation' or 'test'", "validation"),
    ("Greedy()", "Greddy()", 6, 11, "Greddy", "did you mean 'Greedy'?"),
    ("Greedy()", "RoE(n=0)", 6, 11, "n must be at least 1", "n=1"),
    ("Greedy()", "RoE(n=2) | RoE(n=4)", 6, 11, "arms.greedy.pipeline:", ""),
    ("Greedy()", "5", 6, 11, "arms.greedy.pipeline: a pipeline is text or a spec list, got 5", "RoE(n=4)"),
    ("Greedy()", "{prompt: null}", 6, 11, "the key 'arms.greedy.pipeline' is missing", "add it"),
    ("Greedy()", "{pipeline: Greedy(), promt: {}}", 6, 32, "unknown key 'promt' under arms.greedy", "'prompt'"),
    ("Greedy()", "{pipeline: Greedy(), prompt: {chat: 3}}", 6, 47, "arms.greedy.prompt.chat:", "auto, true or false"),
    ("  greedy: Greedy()", "  {greedy: RoE(n=2, tau=0.3)}", 6, 21, "'tau=0.3)' is not a name", "in quotes"),
    ("question: Why?", "question: Why?\nseeds: []", 3, 8, "seeds:", "seeds: [0, 1, 2]"),
    ("question: Why?", "question: Why?\nseeds: [0, -1]", 3, 12, "seeds.1:", "seeds: [0, 1, 2]"),
    ("question: Why?", "question: Why?\nseeds: [3, 3]", 3, 8, "seeds: 3 stands twice", "each seed once"),
    ("question: Why?", "question: Why?\ncontrasts: [[greedy, roe]]", 3, 22, "name no arm 'roe'", "known: greedy"),
    ("question: Why?", "question: Why?\ncontrasts: [[greedy, greedy]]", 3, 13, "compared with itself", "two arms"),
    (
        "question: Why?",
        "question: Why?\ncontrasts: [[greedy]]",
        3,
        13,
        "contrasts.0: has too few entries, got",
        "pairs",
    ),
    (
        "question: Why?",
        "question: Why?\ncontrasts: [[a, b, c]]",
        3,
        13,
        "contrasts.0: has too many entries, got",
        "pairs",
    ),
    ("question: Why?", "question: Why?\nmargin: .inf", 3, 9, "margin:", "points of accuracy"),
    (
        "question: Why?",
        "question: Why?\nrun: {max_batch_tokens: 1.5}",
        3,
        25,
        "run.max_batch_tokens: must be auto or a whole number from 1, got 1.5",
        "write auto",
    ),
    ("question: Why?", "question: Why?\nrun: {batch_size: 0}", 3, 19, "run.batch_size: must be auto or", "auto"),
    (
        "question: Why?",
        "question: Why?\ngeneration: {stop_strings: ['']}",
        3,
        29,
        "generation.stop_strings.0:",
        "a list",
    ),
    ("question: Why?", "question: Why?\nprompt: {few_shot: -1}", 3, 20, "prompt.few_shot:", "a whole number"),
    (
        "{limit: 10}",
        "{split: validation}}\nprompt: {few_shot: 2",
        4,
        29,
        "few-shot examples come",
        "report the test split",
    ),
    ("{limit: 10}", "{limit: 2001}", 4, 29, "the test split of arithmetic has 2000 problems", "limit: 2000"),
    ("Greedy()", "{pipeline: Greedy(), prompt: {few_shot: 9999}}", 6, 51, "greedy.prompt.few_shot is 9999", "2000"),
    ("question: Why?", "question: Why?\nprompt: {few_shot: 2001}", 3, 20, "prompt.few_shot is 2001", "2000"),
    ("{path: demo}", "{path: demo, dtype: float99}", 3, 36, "no floating-point dtype 'float99'", "bfloat16"),
    ("{path: demo}", "{path: demo, dtype: int8}", 3, 36, "no floating-point dtype 'int8'", "bfloat16"),
    ("question: Why?", "question: ''", 2, 11, "question: must not be empty", "the question"),
    ("version: 1\n", "", 1, 1, "the key 'version' is missing", "version: 1"),
]


@pytest.mark.parametrize(("old", "new", "line", "column", "message", "hint"), WRONG)
def test_wrong_values_are_refused_with_place_and_fix(load, old, new, line, column, message, hint):
    assert old in SMALL
    with pytest.raises(RecipeError) as caught:
        load(SMALL.replace(old, new, 1))
    assert f"r.yaml, line {line}, column {column}: " in caught.value.message
    assert message in caught.value.message
    assert hint in str(caught.value)
    assert "fix: " in str(caught.value)


def test_a_pair_that_is_declared_twice_is_refused(load):
    declared = "contrasts: [[greedy, roe], [roe, greedy]]\n"
    with pytest.raises(RecipeError, match=r"line 8, column 28: roe and greedy are compared twice"):
        load(SMALL + "  roe: RoE(n=2)\n" + declared)


def test_what_follows_from_another_error_is_not_told(load):
    for wrong in ("seeds: [x]", "seeds: [true]", "arms: {a b: Greedy()}"):
        with pytest.raises(RecipeError) as caught:
            load(SMALL.partition("arms:")[0] + (wrong if "arms" in wrong else f"{wrong}\narms: {{greedy: Greedy()}}\n"))
        assert "errors" not in caught.value.message, wrong


LATER = [
    ("Greedy()", "SelfConsistency(k=auto)", "`auto` widths", "SelfConsistency(k=5)"),
    ("Greedy()", "SelfConsistency(auto)", "`auto` widths", "SelfConsistency(k=5)"),
    ("Greedy()", "RoE(n=2, tau=[auto, 1])", "`auto` widths", "SelfConsistency(k=5)"),
    ("Greedy()", "[{SelfConsistency: {k: auto}}]", "`auto` widths", "SelfConsistency(k=5)"),
    ("Greedy()", "[{RoE: {n: $n}}]", "a `$` stands for a value of a sweep", "one arm per value"),
    ("Greedy()", "RoE(n=$n)", "a `$` stands for a value of a sweep", "one arm per value"),
    ("Greedy()", '{pipeline: "RoE(n=4)", sweep: {n: [2, 4]}}', "the key 'sweep' under arms.greedy is", "one arm per"),
    (
        "question: Why?",
        "question: Why?\nbudgets: [{flops: 4x greedy}]",
        "the key 'budgets' is not known yet",
        "leave it out: write a number",
    ),
    ("{limit: 10}", "{path: a.jsonl}", "the key 'path' under tasks.arithmetic is not known yet", "own problems"),
    ("{limit: 10}", '{template: "{q}"}', "the key 'template' under tasks.arithmetic is not known yet", "own prompt"),
    (
        "{limit: 10}",
        "{calibration: {limit: 200}}",
        "the key 'calibration' under tasks.arithmetic is not known yet",
        "leave it out",
    ),
    ("{limit: 10}", "{cluster: topic}", "the key 'cluster' under tasks.arithmetic is not known yet", "each problem"),
    ("question: Why?", "question: Why?\nrun: {workers: 2}", "several workers are not known yet", "workers: 1"),
]


@pytest.mark.parametrize(("old", "new", "message", "hint"), LATER)
def test_what_later_versions_bring_is_refused_by_name(load, old, new, message, hint):
    with pytest.raises(RecipeError) as caught:
        load(SMALL.replace(old, new, 1))
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_what_is_refused_by_name_is_neither_offered_nor_part_of_the_resolved_recipe(load):
    with pytest.raises(RecipeError, match="known: arms, contrasts, generation, margin,"):
        load(SMALL + "armz: {}\n")
    resolved = load(SMALL).resolved()
    assert "budgets" not in resolved
    assert set(resolved["tasks"]["arithmetic"]) == {"split", "limit"}
    assert set(resolved["arms"]["greedy"]) == {"pipeline", "prompt"}


TEXTS = ["It costs $5.", "$n", "set k=auto, now", 'say "auto" (auto)', "it's $1", 'a \\" b="$"']


@pytest.mark.parametrize("words", TEXTS)
@pytest.mark.parametrize("form", [str, Pipeline.to_spec])
def test_dollars_and_auto_in_a_text_are_text(load, words, form):
    arm = ChainOfThought(words) | SelfConsistency(k=2)
    if form is Pipeline.to_spec and words == "$n":
        return  # by itself in a spec it is the value of a sweep
    data = yaml.safe_load(SMALL) | {"arms": {"greedy": form(arm)}}
    assert load(yaml.safe_dump(data)).arms["greedy"].pipeline == arm


def test_all_errors_are_told_at_once_in_the_order_of_the_file(load):
    text = SMALL.replace("version: 1", "version: 2").replace("limit: 10", "limt: 10").replace("Greedy()", "RoE(n=0)")
    with pytest.raises(RecipeError) as caught:
        load(text)
    message = caught.value.message
    assert message.startswith("3 errors\n")
    lines = [int(n) for n in re.findall(r"line (\d+), column", message)]
    assert lines == [1, 4, 6]
    assert message.count("fix: ") == 3


def test_the_excerpt_of_a_pipeline_is_indented_among_several_errors(load):
    with pytest.raises(RecipeError) as caught:
        load(SMALL.replace("Greedy()", "RoE(n=0)\n  other: RoE(n=-1)"))
    lines = caught.value.message.splitlines()
    assert lines[0] == "2 errors"
    assert [line.lstrip() for line in lines[2:4]] == ["RoE(n=0)", "^"]
    assert all(line.startswith("    ") for i, line in enumerate(lines[1:]) if i % 4)


RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_read(path):
    recipe = Recipe.load(path)
    assert recipe.question.endswith("?")
    assert dataclasses.is_dataclass(recipe.arms["greedy"].pipeline.resolved().decoder)


def test_the_recipes_of_the_repository_are_those_of_the_package():
    import tokenscale

    packaged = Path(tokenscale.__file__).parent / "recipes"
    assert RECIPES
    assert (Path(__file__).parents[2] / "recipes").resolve() == packaged.resolve() or not packaged.is_relative_to(
        Path(__file__).parents[2]
    )
