"""Splits the documents into train, validation and test, without text that two splits share.

    python -m tools.demo_text.corpus --out build/demo_text/corpus

``--held-out src/tokenscale/experiments/data/stdlib_docs`` also writes the two held-out files anew. They are committed:
evaluation reads them and never an installed library.
"""

import argparse
import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from tools.demo_text.extract import Document, documents, library

HELD_OUT = Path("src/tokenscale/experiments/data/stdlib_docs")
SPLITS = ("train", "validation", "test")
SHINGLE = 8  # words


def split_of(name: str) -> str:
    """The split of a document, a hash of its name: 81% train, 5% validation, 14% test."""
    value = int.from_bytes(hashlib.sha256(f"tokenscale/demo-text/{name}".encode()).digest()[:8], "big") % 100
    return "validation" if value < 5 else "test" if value < 19 else "train"


def shingles(piece: str) -> set[tuple[str, ...]]:
    """All runs of SHINGLE words, in lower case; a shorter piece is one run."""
    words = piece.lower().split()
    return {tuple(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))}


def without_repetitions(found: Iterable[Document]) -> list[Document]:
    """The documents, less each piece of whose shingles half or more were in an earlier piece."""
    seen: set[tuple[str, ...]] = set()
    kept = []
    for document in found:
        pieces = []
        for piece in document.pieces:
            own = shingles(piece)
            if 2 * len(own & seen) < len(own):
                pieces.append(piece)
            seen |= own
        if pieces:
            kept.append(Document(document.name, tuple(pieces)))
    return kept


def splits(found: Iterable[Document]) -> dict[str, list[Document]]:
    """Documents by split; what train has is taken out of validation, what either has out of test."""
    ordered = sorted(found, key=lambda document: (SPLITS.index(split_of(document.name)), document.name))
    result: dict[str, list[Document]] = {split: [] for split in SPLITS}
    for document in without_repetitions(ordered):
        result[split_of(document.name)].append(document)
    return result


def shared(one: Iterable[Document], other: Iterable[Document]) -> float:
    """Share of the shingles of ``one`` that also occur in ``other``."""
    first, second = (
        {run for document in side for piece in document.pieces for run in shingles(piece)} for side in (one, other)
    )
    return len(first & second) / len(first)


def text(document: Document) -> str:
    """Its pieces, a blank line between them."""
    return "\n\n".join(document.pieces) + "\n"


def write(found: list[Document], path: Path) -> None:
    """One JSON object a line: name and text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"name": d.name, "text": text(d)}, ensure_ascii=False) + "\n" for d in found)
    path.write_text("".join(lines), encoding="utf-8")


def read(path: Path) -> list[str]:
    """The texts of a file of documents."""
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/demo_text/corpus"))
    parser.add_argument("--held-out", type=Path)
    options = parser.parse_args()
    found = splits(documents())
    for split, members in found.items():
        path = options.out / f"{split}.jsonl"
        write(members, path)
        print(f"{split}: {len(members)} documents, {path.stat().st_size} bytes, sha256 {digest(path)}")
    print(f"8-word runs of test that train has: {shared(found['test'], found['train']):.4f}")
    print(f"8-word runs of validation that train has: {shared(found['validation'], found['train']):.4f}")
    if options.held_out:
        options.held_out.mkdir(parents=True, exist_ok=True)
        for name in ("validation.jsonl", "test.jsonl"):
            shutil.copyfile(options.out / name, options.held_out / name)
        shutil.copyfile(library() / "LICENSE.txt", options.held_out / "LICENSE.txt")


if __name__ == "__main__":
    main()
