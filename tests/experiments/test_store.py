"""The answers on disk: what is whole stays, what is not is dropped, other facts are refused."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenscale.core.errors import RecipeError
from tokenscale.experiments.store import Slot, Store, write_text

SLOT = Slot("arithmetic", "demo", "greedy", 0)
FACTS = {"recipe": {"seeds": [0], "arms": {"greedy": "Greedy()"}}}


def row(i):
    return {"id": f"p{i}", "text": f'line\nbreak "{i}" é', "score": 0.1 * i, "cost": {"flops": 1e9 / 3}}


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "out", FACTS)
    yield store
    store.close()


def path(store):
    return store.folder / "answers" / SLOT.file


def test_rows_come_back_as_they_went(store):
    rows = [row(i) for i in range(3)]
    assert store.rows(SLOT) == {}
    store.append(SLOT, rows[:2])
    store.append(SLOT, rows[2:])
    assert list(store.rows(SLOT).values()) == rows
    assert store.rows(Slot("arithmetic", "demo", "greedy", 1)) == {}


@settings(max_examples=60)
@given(cut=st.integers(0, 400), flip=st.one_of(st.none(), st.integers(0, 399)))
def test_what_is_whole_stays(tmp_path_factory, cut, flip):
    """A file cut anywhere or with any byte changed gives only rows that were written; appending goes on."""
    store = Store(tmp_path_factory.mktemp("out"), FACTS)
    store.append(SLOT, [row(i) for i in range(3)])
    content = path(store).read_bytes()
    broken = bytearray(content[: max(0, len(content) - cut)])
    if flip is not None and flip < len(broken):
        broken[flip] ^= 1
    path(store).write_bytes(broken)
    kept = store.repair(SLOT)
    assert all(kept[key] == row(int(key[1:])) for key in kept)
    whole_lines = content[: len(content) - cut].count(b"\n") if cut < len(content) else 0
    assert len(kept) >= whole_lines - (flip is not None)
    store.append(SLOT, [row(9)])
    assert list(store.rows(SLOT)) == [*kept, "p9"]
    store.close()


def test_a_cut_line_is_dropped_without_repair_too(store):
    store.append(SLOT, [row(0), row(1)])
    path(store).write_bytes(path(store).read_bytes()[:-2])
    assert list(store.rows(SLOT)) == ["p0"]


def test_the_first_of_two_rows_counts(store):
    store.append(SLOT, [row(0), {**row(0), "text": "later"}])
    assert store.rows(SLOT)["p0"]["text"] == row(0)["text"]


def test_a_complete_file_is_put_in_order(store):
    store.append(SLOT, [row(2), row(0), row(1)])
    store.arrange(SLOT, ["p0", "p1", "p2"])
    assert [json.loads(line)["row"]["id"] for line in path(store).read_bytes().splitlines()] == ["p0", "p1", "p2"]
    assert list(store.rows(SLOT).values()) == [row(i) for i in range(3)]


def test_numbers_that_are_not_finite_are_never_written(store):
    with pytest.raises(ValueError, match="JSON"):
        store.append(SLOT, [{"id": "p0", "score": float("nan")}])
    assert store.rows(SLOT) == {}


def test_other_facts_are_refused_and_named(tmp_path):
    store = Store(tmp_path, FACTS)
    store.append(SLOT, [row(0)])
    store.close()
    Store(tmp_path, FACTS).close()
    changed = {"recipe": {"seeds": [1], "arms": {"greedy": "Greedy()"}}}
    with pytest.raises(RecipeError, match=r"holds answers of another run: recipe\.seeds changed since") as caught:
        Store(tmp_path, changed)
    assert "another --out" in caught.value.hint
    with pytest.raises(RecipeError, match=r"recipe\.arms\.roe"):
        Store(tmp_path, {"recipe": {"seeds": [0], "arms": {"greedy": "Greedy()", "roe": "RoE(n=4)"}}})
    Store(tmp_path, FACTS).close()


def test_facts_are_pinned_one_by_one(store):
    before = store.fingerprint
    store.pin("models.demo", "abc")
    store.pin("models.demo", "abc")
    assert store.fingerprint != before
    with pytest.raises(RecipeError, match=r"models\.demo changed since"):
        store.pin("models.demo", "abd")
    assert store.facts == {**FACTS, "models.demo": "abc"}


def test_a_folder_in_use_is_refused(store):
    with pytest.raises(RecipeError, match="another run is writing"):
        Store(store.folder, FACTS)


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(RecipeError, match="cannot be a folder"):
        Store(tmp_path / "out", FACTS)
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("content", ["{half", "[1]", "3", "[]", '{"name": "mine"}'])
def test_foreign_facts_are_refused(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(RecipeError, match="is not what a run wrote"):
        Store(tmp_path, FACTS)
    assert (tmp_path / "run.json").read_text() == content


@pytest.mark.parametrize("name", ["report.md", "report.json"])
def test_a_foreign_report_is_refused(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(RecipeError, match=f"holds a {name} that no run wrote"):
        Store(tmp_path, FACTS)
    assert (tmp_path / name).read_text() == "mine"


def test_without_an_answer_the_folder_is_left_as_it_was_found(tmp_path):
    Store(tmp_path / "new" / "deep", FACTS).close()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine.txt").write_text("mine")
    Store(tmp_path, FACTS).close()
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_run_that_was_killed_before_its_first_answer_is_forgotten(tmp_path):
    for name in ("answers", "killed"):
        (tmp_path / name).mkdir()
    (tmp_path / "answers" / SLOT.file).touch()
    (tmp_path / "run.json").write_text('{"recipe": {"seeds": [5]}, "models.gone": "abc"}')
    store = Store(tmp_path, FACTS)
    assert store.facts == FACTS
    store.append(SLOT, [row(0)])
    store.close()
    assert (tmp_path / "run.json").exists()


def test_a_write_leaves_the_old_or_the_new(tmp_path, monkeypatch):
    target = tmp_path / "report.json"
    write_text(target, "old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_text(target, "new")
    assert target.read_text() == "old"
