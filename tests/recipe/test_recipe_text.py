"""From files and arguments to data: YAML, includes, `key=value`, and what is refused of each."""

import pytest

from tests.recipe.texts import FULL, SMALL
from tokenscale.core.errors import RecipeError
from tokenscale.pipeline import Pipeline
from tokenscale.recipe import Recipe

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
