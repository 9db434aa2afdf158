"""The folder of a search: what it is about, its studies in SQLite, and a lock."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import optuna
from sqlalchemy.exc import SQLAlchemyError

from tokenscale.core.errors import RecipeError
from tokenscale.experiments.store import write_text

FACTS, STUDIES, REPORT, PAGE = "tune.json", "study.db", "tuning.json", "tuning.md"


class TuningFolder:
    """Holds the studies of one search. `facts` say what the trials depend on; other facts are another search.

    Raises RecipeError where the folder holds another search's studies, is no folder, or is in use.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        self.path = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            message = f"--out {str(folder)!r} cannot be a folder: {error.strerror}"
            raise RecipeError(message, "name a folder, or a new one") from None
        self._lock = self._locked()
        self._storage: optuna.storages.RDBStorage | None = None
        try:
            self._pin(json.loads(json.dumps(facts)))
        except BaseException:
            self.close()
            raise

    def _locked(self) -> IO[str]:
        lock = (self.path / ".lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            message = f"another search is writing to {str(self.path)!r}"
            raise RecipeError(message, "wait for it, or give another --out") from None
        return lock

    def _pin(self, facts: dict[str, Any]) -> None:
        path = self.path / FACTS
        if not path.exists():
            foreign = [name for name in (STUDIES, REPORT, PAGE) if (self.path / name).exists()]
            if foreign:
                message = f"{str(self.path)!r} holds a {foreign[0]} that no search wrote"
                raise RecipeError(message, "give another --out, or a new folder")
            write_text(path, json.dumps(facts, indent=1) + "\n")
            return
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
            changed = [".".join(place) for place in _differences(known, facts)]
        except ValueError:
            raise RecipeError(f"{str(path)!r} is not what a search wrote", "give another --out") from None
        if changed:
            shown = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
            message = f"{str(self.path)!r} holds the search of another recipe: {shown} changed since"
            raise RecipeError(message, "give another --out, or tune it as it was begun")

    def study(self, name: str) -> optuna.Study:
        """The study of an arm: a new one, or the one that was begun. Raises RecipeError for a broken file."""
        path = self.path / STUDIES
        try:
            if self._storage is None:
                self._storage = open_storage(path)
            return optuna.create_study(storage=self._storage, study_name=name, load_if_exists=True)
        except SQLAlchemyError as error:
            message = f"{str(path)!r} cannot be read as a study: {str(error).splitlines()[0]}"
            raise RecipeError(message, "give another --out") from None

    @property
    def report(self) -> dict[str, Any] | None:
        """The report, where the search is complete."""
        path = self.path / REPORT
        if not path.exists():
            return None
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return found
        except ValueError:
            raise RecipeError(f"{str(path)!r} is not what a search wrote", "remove it to have it made again") from None

    def close(self) -> None:
        """Lets others use the folder."""
        if self._storage is not None:
            self._storage.remove_session()
            self._storage.engine.dispose()
        self._lock.close()


def open_storage(path: Path) -> optuna.storages.RDBStorage:
    """Studies in an SQLite file. The facts hold Optuna's version, so its own check of the file is left out."""
    return optuna.storages.RDBStorage(f"sqlite:///{path}", skip_compatibility_check=True)


def _differences(old: Any, new: Any) -> list[tuple[str, ...]]:
    """The places at which two plain values differ."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [()]
    names = sorted({*old, *new})
    return [(name, *rest) for name in names for rest in _differences(old.get(name), new.get(name))]
