"""The text corpus: what is extracted, that splits share nothing, and the files that are committed."""

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.demo_text.corpus import HELD_OUT, SHINGLE, SPLITS, read, shared, shingles, split_of, splits, text, write
from tools.demo_text.corpus import without_repetitions as unrepeated
from tools.demo_text.extract import Document, documents

DATA = Path(__file__).parents[2] / HELD_OUT
MODULE = '''"""About the module.

    Indented.
"""
def late(): pass
class Second:
    """Of the class."""
    async def third(self):
        """Of a method."""
    @property
    def fourth(self):
        """
        Of a property.
        """
'''


@pytest.fixture
def library(tmp_path):
    files = {
        "b.py": MODULE,
        "a/__init__.py": '"""Of a package."""',
        "a/test/x.py": '"""A test."""',
        "site-packages/x.py": '"""Not of the library."""',
        "own.py": '"""Own terms."""\n# Permission to use, copy, modify',
        "old.py": '"""Another language."""\nprint "x"',
        "escape.py": '"""An old \\d escape."""',
        "bare.py": "x = 1",
        "pydoc_data/topics.py": "topics = {'z': 'One\\n***\\n\\nTwo.\\n', 'y': '\\n Three.'}",
    }
    for name, source in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source)
    return tmp_path


def test_what_is_extracted(library):
    assert documents(library) == [
        Document("a.__init__", ("Of a package.",)),
        Document("b", ("About the module.\n\nIndented.", "Of the class.", "Of a method.", "Of a property.")),
        Document("escape", ("An old \\d escape.",)),
        Document("topic y", (" Three.",)),
        Document("topic z", ("One\n***", "Two.")),
    ]
    assert documents(library) == documents(library)


WORDS = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=30).map(" ".join)
DOCUMENTS = st.lists(st.lists(WORDS, min_size=1, max_size=4).map(tuple), max_size=12).map(
    lambda found: [Document(f"m{number}", pieces) for number, pieces in enumerate(found)]
)


@given(DOCUMENTS)
def test_no_kept_piece_was_there_before(found):
    kept = {document.name: document.pieces for document in unrepeated(found)}
    before = []
    for document in found:
        for piece in document.pieces:
            windows = [tuple(piece.split()[i : i + SHINGLE]) for i in range(max(1, len(piece.split()) - SHINGLE + 1))]
            old = sum(window in before for window in set(windows))
            assert (piece in kept.get(document.name, ())) or 2 * old >= len(set(windows))
            before += windows
    pieces = [piece for document in unrepeated(found) for piece in document.pieces]
    assert len(pieces) == len(set(pieces))


@given(DOCUMENTS)
def test_splits_are_disjoint_and_follow_the_name(found):
    result = splits(found)
    assert tuple(result) == SPLITS
    for split, members in result.items():
        assert all(split_of(document.name) == split for document in members)
    assert result == splits(reversed(found))
    pieces = [{piece for document in members for piece in document.pieces} for members in result.values()]
    assert len(set().union(*pieces)) == sum(map(len, pieces))


def test_shingles_and_shares():
    assert shingles("A b") == {("a", "b")}
    assert len(shingles(" ".join("abcdefghij"))) == 3
    one, other = Document("x", ("a b", "c d")), Document("y", ("C  D",))
    assert (shared([one], [other]), shared([other], [one])) == (0.5, 1.0)


def test_written_documents_are_read(tmp_path):
    document = Document("x", ("One é.", "Two."))
    write([document], tmp_path / "x.jsonl")
    assert read(tmp_path / "x.jsonl") == ["One é.\n\nTwo.\n"] == [text(document)]


def committed(split):
    return [json.loads(line) for line in (DATA / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_committed_files_are_small_licensed_and_of_their_split():
    assert sum(path.stat().st_size for path in DATA.iterdir()) <= 300_000
    assert "PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2" in (DATA / "LICENSE.txt").read_text()
    found = {split: committed(split) for split in ("validation", "test")}
    for split, rows in found.items():
        assert all(split_of(row["name"]) == split for row in rows)
        assert [row["name"] for row in rows] == sorted({row["name"] for row in rows})
        assert not any(" test" in f" {part}" for row in rows for part in row["name"].split(".") if "topic" not in part)
    both = [[Document(row["name"], (row["text"],)) for row in rows] for rows in found.values()]
    assert shared(both[1], both[0]) < 0.01


@pytest.mark.slow
def test_held_out_text_is_not_in_train():
    found = splits(documents())  # of the running interpreter, whichever it is
    assert len(found["train"]) > 400
    assert shared(found["test"], found["train"]) < 0.05
    assert shared(found["validation"], found["train"]) < 0.05
    if sys.version_info[:3] == (3, 11, 7):
        for split in ("validation", "test"):
            assert [{"name": d.name, "text": text(d)} for d in found[split]] == committed(split)
