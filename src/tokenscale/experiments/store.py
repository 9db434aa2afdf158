"""The answers of a run on disk: one append-only file per arm and seed, every line with its checksum.

A line is written whole or not at all as far as the reader is concerned: what a killed run left half
written is dropped when the folder is opened again, and its problems are answered again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tokenscale.core.errors import RecipeError

Row = dict[str, Any]
FACTS = "run.json"
MACHINE = "machine.json"
REPORTS = ("report.md", "report.json")


@dataclass(frozen=True)
class Slot:
    """What one file holds: the answers of one arm with one seed, of one model, to one task's problems."""

    task: str
    model: str
    arm: str
    seed: int

    @property
    def file(self) -> str:
        return f"{self.task}.{self.model}.{self.arm}.seed{self.seed}.jsonl"


class Store:
    """The folder of one run. `facts` say what the answers depend on; other facts are another run.

    Without an answer there is no run yet: such a folder takes any facts, and is left as it was found.
    Raises RecipeError where the folder holds answers of other facts or reports of something else, is
    no folder, or is in use.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        self.folder = folder
        self._made = [path for path in (folder, *folder.parents) if not path.exists()]
        self._begun = False
        try:
            (folder / "answers").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            message = f"--out {str(folder)!r} cannot be a folder: {error.strerror}"
            raise RecipeError(message, "name a folder, or a new one") from None
        self._lock = self._locked()
        try:
            self._begin()
            for name, value in facts.items():
                self.pin(name, value)
        except RecipeError:
            self.close()
            raise

    def _locked(self) -> IO[str]:
        lock = (self.folder / ".lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            message = f"another run is writing to {str(self.folder)!r}"
            raise RecipeError(message, "wait for it, or give another --out") from None
        return lock

    def _begin(self) -> None:
        """Refuses what no run wrote; forgets the facts of a run that was killed before its first answer."""
        known = self.facts
        foreign = [] if known else [name for name in REPORTS if (self.folder / name).exists()]
        if foreign:
            message = f"{str(self.folder)!r} holds a {foreign[0]} that no run wrote"
            raise RecipeError(message, "give another --out, or a new folder")
        if not self._answered():
            (self.folder / FACTS).unlink(missing_ok=True)
        self._begun = True

    def _answered(self) -> bool:
        return any(path.stat().st_size for path in (self.folder / "answers").iterdir())

    def close(self) -> None:
        """Lets other runs use the folder; removes what was made for a run that has no answer."""
        if self._begun and not self._answered():
            (self.folder / FACTS).unlink(missing_ok=True)
            (self.folder / ".lock").unlink(missing_ok=True)
            with suppress(OSError):  # somebody else's files are in a folder
                for path in (self.folder / "answers", *self._made):
                    path.rmdir()
        self._lock.close()

    @property
    def facts(self) -> dict[str, Any]:
        """What is written down; nothing where there is no file yet. Raises RecipeError for another file."""
        path = self.folder / FACTS
        if not path.exists():
            return {}
        with suppress(ValueError):
            found = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(found, dict) and "recipe" in found:
                return found
        raise RecipeError(f"{str(path)!r} is not what a run wrote", "give another --out")

    def pin(self, name: str, value: Any) -> None:
        """Writes a fact down, or checks it against what is written. Raises RecipeError."""
        facts = self.facts
        value = json.loads(json.dumps(value))
        if name not in facts:
            write_text(self.folder / FACTS, json.dumps({**facts, name: value}, indent=1) + "\n")
        elif facts[name] != value:
            places = sorted(_differences(facts[name], value, name))
            shown = ", ".join(places[:5]) + (f" and {len(places) - 5} more" if len(places) > 5 else "")
            message = f"{str(self.folder)!r} holds answers of another run: {shown} changed since"
            raise RecipeError(message, "give another --out, or run it as it was begun")

    @property
    def fingerprint(self) -> str:
        """A hash of all facts."""
        return hashlib.blake2b(json.dumps(self.facts, sort_keys=True).encode(), digest_size=8).hexdigest()

    def rows(self, slot: Slot) -> dict[str, Row]:
        """The whole rows of a file by problem id. The first of two rows of one problem counts."""
        path = self.folder / "answers" / slot.file
        if not path.exists():
            return {}
        rows: dict[str, Row] = {}
        for line in path.read_bytes().splitlines():
            row = _decoded(line)
            if row is not None:
                rows.setdefault(row["id"], row)
        return rows

    def repair(self, slot: Slot) -> dict[str, Row]:
        """Drops lines that are not whole, so that appending is safe; returns the rows that stay."""
        rows = self.rows(slot)
        path = self.folder / "answers" / slot.file
        if path.exists():
            whole = b"".join(_encoded(row) for row in rows.values())
            if whole != path.read_bytes():
                write_bytes(path, whole)
        return rows

    def arrange(self, slot: Slot, ids: Sequence[str]) -> None:
        """Puts the rows of a complete file into the order of `ids`, so that equal runs have equal files."""
        rows = self.rows(slot)
        if list(rows) != list(ids):
            write_bytes(self.folder / "answers" / slot.file, b"".join(_encoded(rows[i]) for i in ids))

    def append(self, slot: Slot, rows: Sequence[Row]) -> None:
        """Adds rows and waits until the disk has them. Each row has its problem's `id`."""
        with (self.folder / "answers" / slot.file).open("ab") as file:
            file.write(b"".join(_encoded(row) for row in rows))
            file.flush()
            os.fsync(file.fileno())

    def log(self, record: Mapping[str, Any]) -> None:
        """Adds to what the machine did, which no answer depends on. Without an answer nothing is written."""
        if not self._answered():
            return
        path, known = self.folder / MACHINE, []
        with suppress(OSError, ValueError):
            known = json.loads(path.read_text(encoding="utf-8"))
        write_text(path, json.dumps([*known, record], indent=1) + "\n")


def _encoded(row: Row) -> bytes:
    text = json.dumps(row, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return f'{{"crc":"{zlib.crc32(text.encode()):08x}","row":{text}}}\n'.encode()


def _decoded(line: bytes) -> Row | None:
    """The row of a line; None where the line is not what `_encoded` wrote."""
    with suppress(ValueError, KeyError, TypeError):
        row: Row = json.loads(line)["row"]
        if _encoded(row) == line + b"\n":
            return row
    return None


def _differences(old: Any, new: Any, at: str) -> list[str]:
    """Dotted places at which two plain values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted({*old, *new})
        return [d for n in names for d in _differences(old.get(n), new.get(n), f"{at}.{n}")]
    return [] if old == new else [at]


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces a file's content at once: whoever reads sees the old or the new one."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def write_text(path: Path, content: str) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, content.encode())
