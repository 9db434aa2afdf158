"""What is tuned and tested on: samples that share nothing, cut for the model."""

import json

import pytest

from tests.comparison import RECIPE, small_toy
from tokenscale.core.errors import RecipeError
from tokenscale.core.prompt import Prompt
from tokenscale.experiments import tasks
from tokenscale.experiments.tasks import draw, find_task
from tokenscale.experiments.tuning_data import items, read_data
from tokenscale.recipe import Recipe

TUNE = """\
tune:
  budget: {trials: 3}
  objective: perplexity
  text_files: {validation: validation.jsonl, test: test.jsonl}
  parameters: {roe: {tau: {low: 0.0, high: 2.0}}}
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A recipe over two files of texts in the current folder."""
    monkeypatch.chdir(tmp_path)

    def write(name, texts):
        lines = [json.dumps({"name": f"{name}{i}", "text": text}) for i, text in enumerate(texts)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n\n")

    def load(validation, test, *arguments):
        write("validation", validation)
        write("test", test)
        (tmp_path / "recipe.yaml").write_text(RECIPE + TUNE)
        return Recipe.load(tmp_path / "recipe.yaml", arguments)

    return load


def read(recipe, task=None):
    return read_data(recipe, recipe.tune, task)


def test_texts_are_cut_into_pieces(recipe):
    loaded = recipe(["1+2=3. so 4", "7"], ["9+9=18."], "tune.piece_tokens=4")
    lm, data = small_toy(), read(loaded)
    assert {d.text for d in data.validation} == {"1+2=3. so 4", "7"}
    found = items(data.validation, lm, loaded.prompt, None, 4)
    [ids] = [lm.encode(p) for p in [Prompt(text="1+2=3. so 4")]]
    assert {item.unit for item in found} == {"validation0"}  # one token alone has nothing before it
    assert [t for item in found for t in item.text] == list(ids)[: sum(len(i.text) for i in found)]
    assert all(2 <= len(item.text) <= 4 for item in found)
    assert len(ids) - sum(len(i.text) for i in found) <= 1


def test_samples_are_nested(recipe):
    texts = [f"{i}+{i}" for i in range(9)]
    whole = read(recipe(texts, ["so"])).validation
    assert read(recipe(texts, ["so"], "tune.data.split=validation", "tune.data.limit=4")).validation == whole[:4]
    assert [d.text for d in whole] != texts


def test_a_shared_text_is_refused(recipe):
    with pytest.raises(RecipeError, match=r"1 of the 2 test samples are among those that it tunes on, such as '1\+1'"):
        read(recipe(["1+1", "2+2"], ["3+3", " 1+1\n"]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "line 1 of 'test.jsonl' has no text"),
        ('{"text": "a"}\nnot json', "line 2 of 'test.jsonl' has no text"),
        ("[]", "line 1 of 'test.jsonl' has no text"),
        ("\n", "there is nothing in the test split"),
        (None, "'test.jsonl' cannot be read: No such file"),
    ],
)
def test_files_that_hold_no_texts_are_refused(recipe, tmp_path, text, message):
    loaded = recipe(["1+1"], ["2+2"])
    path = tmp_path / "test.jsonl"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(RecipeError, match=message) as caught:
        read(loaded)
    assert caught.value.hint


def test_pieces_fit_the_model(recipe):
    loaded = recipe(["1"], ["2+2"])
    with pytest.raises(RecipeError, match="the context of toy holds 512\n  fix: write piece_tokens: 512, or less"):
        items(read(loaded).test, small_toy(), loaded.prompt, None, 513)
    with pytest.raises(RecipeError, match="no document has two tokens"):
        items(read(loaded).validation, small_toy(), loaded.prompt, None, 4)


def test_problems_are_scored_behind_their_prompts_and_examples_are_left_out(recipe, monkeypatch):
    """The first validation problems stand in few-shot prompts, so they are not tuned on."""

    def packaged(name, split):
        return tuple(tasks.Problem(f"{split}{i}", f"{i} of {split}?", str(i)) for i in range(10))

    monkeypatch.setattr(tasks, "_packaged", packaged)
    more = ("prompt={few_shot: 2}", "tune.text_files=", "tune.data={split: validation, limit: 3}")
    loaded = recipe(["1"], ["2"], *more)
    data = read(loaded, "arithmetic")
    drawn = draw(find_task("arithmetic"), "validation", None)
    assert data.validation == drawn[2:5]
    assert len(data.test) == 10
    found = items(data.validation, small_toy(), loaded.prompt, "arithmetic", 4)
    assert [item.problem for item in found] == list(drawn[2:5])
    assert [item.text for item in found] == [f" #### {p.answer}" for p in drawn[2:5]]
    assert all(item.prompt.text.count("Q: ") == 3 for item in found)
    assert [item.prompt.key for item in found] == [item.unit for item in found]


def test_the_packaged_texts_share_nothing(recipe):
    loaded = recipe(
        ["1"], ["2"], "tune.text_files=", "tune.texts=stdlib_docs", "tune.test.limit=", "tune.test.split=test"
    )
    data = read(loaded)
    assert (len(data.validation), len(data.test)) == (27, 94)
    assert data.digests["validation"] != data.digests["test"]
