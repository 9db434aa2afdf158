"""Recipes: what is read, and that everything else is refused with place and fix."""

import copy
import dataclasses
import re
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tokenscale.core.errors import RecipeError
from tokenscale.pipeline import Pipeline
from tokenscale.recipe import Recipe
from tokenscale.recipe_text import parse

FULL = """\
version: 1
question: At equal FLOPs, wider tokens or more answers?
models:
  demo: {path: demo}
  noisy: {path: demo-noisy, dtype: bfloat16}
tasks:
  arithmetic: {split: test, limit: 2000, calibration: {split: validation, limit: 200}}
prompt: {chat: auto, system: null, few_shot: null}
generation: {max_new_tokens: 96, stop_strings: ["\\nQ:"]}
seeds: [0, 1, 2]
arms:
  greedy: Greedy()
  vote: [{SelfConsistency: {k: 5}}]
  roe: {pipeline: "RoE(n=4, tau=0.3)", prompt: {few_shot: 2}}
  both: RoE(n=4, tau=0.3) | SelfConsistency(k=5)
contrasts: [[roe, vote], [both, vote]]
margin: 1.0
run: {batch_size: auto, workers: 1}
"""
SMALL = """\
version: 1
question: Why?
models: {demo: {path: demo}}
tasks: {arithmetic: {limit: 10}}
arms:
  greedy: Greedy()
"""


@pytest.fixture
def load(tmp_path):
    """Reads a recipe text as the file r.yaml, with arguments."""

    def load(text, *arguments):
        path = tmp_path / "r.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return Recipe.load(path, arguments)

    return load


def test_every_key_is_read(load):
    recipe = load(FULL)
    assert recipe.models["noisy"].dtype == "bfloat16"
    assert recipe.tasks["arithmetic"].calibration.limit == 200
    assert recipe.generation.stop_strings == ("\nQ:",)
    assert recipe.arms["vote"].pipeline == Pipeline.parse("SelfConsistency(k=5)")
    assert recipe.arms["roe"].prompt.few_shot == 2
    assert recipe.contrasts == (("roe", "vote"), ("both", "vote"))
    assert (recipe.margin, recipe.seeds, recipe.run.batch_size) == (1.0, (0, 1, 2), "auto")


def test_defaults(load):
    recipe = load(SMALL)
    assert (recipe.seeds, recipe.budgets, recipe.contrasts, recipe.margin) == ((0,), (), (), None)
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
    (
        "{limit: 10}",
        "{calibration: {split: test}}",
        4,
        35,
        "calibrates on the split 'test' that it reports",
        "validation",
    ),
    ("Greedy()", "Greddy()", 6, 11, "Greddy", "did you mean 'Greedy'?"),
    ("Greedy()", "RoE(n=0)", 6, 11, "n must be at least 1", "n=1"),
    ("Greedy()", "RoE(n=2) | RoE(n=4)", 6, 11, "arms.greedy.pipeline:", ""),
    ("Greedy()", "5", 6, 11, "arms.greedy.pipeline: a pipeline is text or a spec list, got 5", "RoE(n=4)"),
    ("Greedy()", "{sweep: null}", 6, 11, "the key 'arms.greedy.pipeline' is missing", "add it"),
    ("Greedy()", "{pipeline: Greedy(), promt: {}}", 6, 32, "unknown key 'promt' under arms.greedy", "'prompt'"),
    ("Greedy()", "{pipeline: Greedy(), prompt: {chat: 3}}", 6, 47, "arms.greedy.prompt.chat:", "auto, true or false"),
    ("  greedy: Greedy()", "  {greedy: RoE(n=2, tau=0.3)}", 6, 21, "'tau=0.3)' is not a name", "in quotes"),
    ("question: Why?", "question: Why?\nseeds: []", 3, 8, "seeds:", "seeds: [0, 1, 2]"),
    ("question: Why?", "question: Why?\nseeds: [0, -1]", 3, 12, "seeds.1:", "seeds: [0, 1, 2]"),
    ("question: Why?", "question: Why?\nseeds: [3, 3]", 3, 8, "seeds: 3 stands twice", "each seed once"),
    ("question: Why?", "question: Why?\ncontrasts: [[greedy, roe]]", 3, 22, "name no arm 'roe'", "known: greedy"),
    ("question: Why?", "question: Why?\ncontrasts: [[greedy, greedy]]", 3, 13, "compared with itself", "two arms"),
    ("question: Why?", "question: Why?\ncontrasts: [[greedy]]", 3, 13, "contrasts.0", "pairs of arms"),
    ("question: Why?", "question: Why?\nmargin: .inf", 3, 9, "margin:", "points of accuracy"),
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


LATER = [
    ("Greedy()", "SelfConsistency(k=auto)", "`auto` widths", "SelfConsistency(k=5)"),
    ("Greedy()", "[{SelfConsistency: {k: auto}}]", "`auto` widths", "SelfConsistency(k=5)"),
    ("Greedy()", "RoE(n=$n)", "a `$` stands for a value of a sweep", "one arm per value"),
    ("Greedy()", '{pipeline: "RoE(n=4)", sweep: {n: [2, 4]}}', "`sweep` is not known yet", "one arm per value"),
    (
        "question: Why?",
        "question: Why?\nbudgets: [{flops: 4x greedy}]",
        "`budgets` are not known yet",
        "leave them out",
    ),
    ("question: Why?", "question: Why?\ntune: {tau: [0, 1]}", "the key 'tune' is not known yet", "as numbers"),
    ("{limit: 10}", "{path: a.jsonl}", "the key 'path' under tasks.arithmetic is not known yet", "own problems"),
    ("{limit: 10}", '{template: "{q}"}', "the key 'template' under tasks.arithmetic is not known yet", "own prompt"),
    ("{limit: 10}", "{cluster: topic}", "the key 'cluster' under tasks.arithmetic is not known yet", "each problem"),
    ("question: Why?", "question: Why?\nrun: {workers: 2}", "several workers are not known yet", "workers: 1"),
]


@pytest.mark.parametrize(("old", "new", "message", "hint"), LATER)
def test_what_later_versions_bring_is_refused_by_name(load, old, new, message, hint):
    with pytest.raises(RecipeError) as caught:
        load(SMALL.replace(old, new, 1))
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_all_errors_are_told_at_once_in_the_order_of_the_file(load):
    text = SMALL.replace("version: 1", "version: 2").replace("limit: 10", "limt: 10").replace("Greedy()", "RoE(n=0)")
    with pytest.raises(RecipeError) as caught:
        load(text)
    message = caught.value.message
    assert message.startswith("3 errors\n")
    lines = [int(n) for n in re.findall(r"line (\d+), column", message)]
    assert lines == [1, 4, 6]
    assert message.count("fix: ") == 3


NOT_YAML = [
    ("version: 1\n question: a\n", 2, "not YAML", "indent the keys"),
    ("version: 1\n\tquestion: a\n", 2, "not YAML", "indent the keys"),
    ("arms: [Greedy()\n", 2, "not YAML", "quotes"),
    ("question: a: b\n", 1, "not YAML", "quotes"),
    ("version: 1\nversion: 1\n", 2, "the key 'version' stands twice, first in line 1", "keep one"),
    ("version: 1\narms:\n  a: Greedy()\n  a: Greedy()\n", 4, "the key 'a' stands twice, first in line 3", "keep one"),
    ("1: 2\n", 1, "the key '1' is not text", "in quotes"),
    ("? [a]\n: 2\n", 1, "is not text", "in quotes"),
    ("question: 2001-01-01\n", 1, "'2001-01-01' is not a text", "quotes"),
    ("question: 2001-99-99\n", 1, "'2001-99-99' is not a text", "quotes"),
    ("question: !!python/object:os.system x\n", 1, "is not a text", "quotes"),
    ("question: !!bool maybe\n", 1, "'maybe' is not a text", "quotes"),
    ("question: !!int ''\n", 1, "'' is not a text", "quotes"),
    ("question: !!timestamp x\n", 1, "'x' is not a text", "quotes"),
    ("a: &x [*x]\n", 1, "more than 20 levels", "aliases"),
    ("a: &a [1,1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
     "d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: 1\n", 1, "5000 values", "aliases"),
    ("[" * 600, 1, "", ""),
    ("", 1, "the file is empty", "version: 1"),
    ("# only a comment\n", 1, "the file is empty", "version: 1"),
    ("- a\n", 1, "a recipe is a mapping of keys, got a list", "version: 1"),
    ("just text", 1, "a recipe is a mapping of keys, got text", "version: 1"),
    ("a: 1\n---\nb: 2\n", 2, "not YAML", ""),
    ("a: \x00", 1, "not YAML", "remove the characters"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line", "message", "hint"), NOT_YAML)
def test_what_is_not_a_mapping_in_yaml_is_refused(load, text, line, message, hint):
    with pytest.raises(RecipeError) as caught:
        load(text)
    assert f"r.yaml, line {line}, column " in caught.value.message
    assert message in caught.value.message
    assert hint in str(caught.value)


def test_files_that_cannot_be_read(load, tmp_path):
    with pytest.raises(RecipeError, match="not UTF-8"):
        load(b"question: \xff\xfe")
    for missing in (tmp_path / "none.yaml", tmp_path, tmp_path / "a\0b"):
        with pytest.raises(RecipeError, match="cannot be read") as caught:
            Recipe.load(missing)
        assert caught.value.hint == "give the path of a YAML file"


def test_arguments_are_laid_over_the_file(load):
    recipe = load(
        FULL,
        "tasks.arithmetic.limit=20",
        "seeds=[7]",
        "arms.roe=RoE(n=8, tau=0.5)",
        "arms.wide=RoE(n=16)",
        "generation.stop_strings.0=END",
        "margin=",
    )
    assert recipe.tasks["arithmetic"].limit == 20
    assert recipe.tasks["arithmetic"].calibration.limit == 200
    assert recipe.seeds == (7,)
    assert recipe.arms["roe"].pipeline == Pipeline.parse("RoE(n=8, tau=0.5)")
    assert recipe.arms["wide"].pipeline == Pipeline.parse("RoE(n=16)")
    assert recipe.generation.stop_strings == ("END",)
    assert recipe.margin is None


@pytest.mark.parametrize(
    ("argument", "message", "hint"),
    [
        ("limit", "this is not key=value", "tasks.arithmetic.limit=200"),
        ("=3", "this is not key=value", "key=value"),
        ("a..b=3", "this is not key=value", "key=value"),
        ("sedes=[1]", "unknown key 'sedes'", "did you mean 'seeds'?"),
        ("tasks.arithmetic.limt=3", "unknown key 'limt' under tasks.arithmetic", "did you mean 'limit'?"),
        ("run.batch.size=3", "unknown key 'batch' under run", "batch_size"),
        ("question.x=3", "since text stands there", "shorten"),
        ("seeds.9=3", "'9' is not an index", "from 0 to 2"),
        ("seeds.0=x", "seeds.0: must be a valid integer, got 'x'", "seeds: [0, 1, 2]"),
        ("seeds=[1", "not YAML", "quotes"),
        ("arms.roe=RoE(n=0)", "n must be at least 1", "n=1"),
        ("include=x.yaml", "unknown key 'include'", "in a recipe file"),
    ],
)
def test_wrong_arguments_are_refused_by_name(load, argument, message, hint):
    with pytest.raises(RecipeError) as caught:
        load(FULL, argument)
    assert f"argument {argument!r}" in caught.value.message
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_include_merges_key_by_key(load, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "base.yaml").write_text(FULL)
    (tmp_path / "sub" / "tail.yaml").write_text("include: ../base.yaml\nseeds: [5]\nmargin: 2.0\n")
    recipe = load("include: [base.yaml, sub/tail.yaml]\nmargin: 3.0\narms: {roe: 'RoE(n=2)'}\n")
    assert (recipe.seeds, recipe.margin) == ((5,), 3.0)
    assert list(recipe.arms) == ["greedy", "vote", "roe", "both"]
    assert recipe.arms["roe"].pipeline == Pipeline.parse("RoE(n=2)")


def test_errors_name_the_file_they_stand_in(load, tmp_path):
    (tmp_path / "base.yaml").write_text(SMALL.replace("limit: 10", "limit: x"))
    with pytest.raises(
        RecipeError, match=r"base\.yaml, line 4, column 29: .*(\n.*)*r\.yaml, line 2, column 1: unknown"
    ):
        load("include: base.yaml\nsedes: [1]\n")


@pytest.mark.parametrize(
    ("include", "message"),
    [
        ("none.yaml", "there is no file 'none.yaml'"),
        ("r.yaml", "'r.yaml' includes itself"),
        ("other.yaml", "'r.yaml' includes itself"),
        ("3", "include must be a file name, got a number"),
        ('"a\\0b"', "there is no file"),
        (f'"{"x" * 5000}"', "there is no file"),
    ],
)
def test_includes_that_cannot_be(load, tmp_path, include, message):
    (tmp_path / "other.yaml").write_text("include: r.yaml\n")
    with pytest.raises(RecipeError) as caught:
        load(f"version: 1\ninclude: {include}\n")
    assert message in caught.value.message


@given(st.text(alphabet="a: -[]{}#'\"&*!|>\n\t1%@`\\,?\0\u2028", max_size=40))
def test_any_text_gives_data_or_a_recipe_error(text):
    try:
        source = parse(text, "r.yaml")
    except RecipeError:
        return
    # The reference reader agrees on whatever both take.
    assert source.data == yaml.safe_load(text)


FRAGMENTS = [
    "auto",
    "$n",
    "null",
    "[",
    "}",
    ": ",
    "- ",
    "\n",
    "  ",
    "RoE(n=4)",
    "|",
    "'",
    "1e999",
    "&a",
    "*a",
    "<<: {}",
]
ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from(FRAGMENTS)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def mutated_texts(draw):
    text = draw(st.sampled_from([FULL, SMALL, SMALL]))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 12)))
        new = draw(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=4), st.just(text[end : end + 30])))
        text = text[:start] + new + text[end:]
    return text


@st.composite
def mutated_data(draw):
    data = copy.deepcopy(yaml.safe_load(draw(st.sampled_from([FULL, SMALL]))))
    for _ in range(draw(st.integers(1, 3))):
        target = data
        while isinstance(target, dict | list) and target:
            key = draw(st.sampled_from(sorted(target) if isinstance(target, dict) else range(len(target))))
            if not isinstance(target[key], dict | list) or draw(st.booleans()):
                break
            target = target[key]
        if not target:
            continue
        action = draw(st.sampled_from(["replace", "drop", "rename"]))
        if action == "replace":
            target[key] = draw(ANYTHING)
        elif action == "drop" or isinstance(target, list):
            del target[key]
        else:
            target[draw(st.text(max_size=10))] = target.pop(key)
    return yaml.safe_dump(data, allow_unicode=True)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(text=st.one_of(mutated_texts(), mutated_data()))
@example(text=SMALL + "arms: &x [*x]")
@example(text=FULL.replace("k: 5", "k: [[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]"))
@example(text=FULL.replace("n=4", "n=" + "9" * 5000))
def test_a_mutated_recipe_is_read_or_refused(load, text):
    """No mutation gives any exception but RecipeError, of any kind."""
    try:
        recipe = load(text.encode("utf-8", "surrogatepass"))
    except RecipeError:
        return
    assert recipe.resolved()
    assert recipe.arms


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    argument=st.one_of(
        st.text(max_size=12), st.from_regex(r"(seeds|tasks|arms|run|x)(\.\w{1,4}){0,3}=.{0,9}", fullmatch=True)
    )
)
def test_any_argument_is_applied_or_refused(load, argument):
    with suppress(RecipeError):
        load(SMALL, argument)


RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_read(path):
    recipe = Recipe.load(path)
    assert recipe.question.endswith("?")
    assert dataclasses.is_dataclass(recipe.arms["greedy"].pipeline.resolved().decoder)


def test_the_recipes_of_the_repository_are_those_of_the_package():
    import tokenscale

    packaged = Path(tokenscale.__file__).parent / "recipes"
    assert RECIPES
    assert (Path(__file__).parents[1] / "recipes").resolve() == packaged.resolve() or not packaged.is_relative_to(
        Path(__file__).parents[1]
    )
