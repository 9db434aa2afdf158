"""A task of one-line questions, so that a whole comparison takes a second; studies that wait for no disk."""

import sqlite3

import optuna
import pytest

from tests.comparison import RECIPE, small_toy
from tokenscale.experiments import tasks
from tokenscale.recipe import Recipe


@pytest.fixture
def tiny_task(monkeypatch):
    """Ten questions per split. An answer is the parity of its last digit, so that guesses are often right."""

    def packaged(name, split):
        return tuple(tasks.Problem(f"{split}-{i}", f"{i}+{i + 3}?", str(2 * i + 3)) for i in range(10))

    def parity(self, text):
        digits = [c for c in text if c.isdigit()]
        return str(int(digits[-1]) % 2) if digits else None

    monkeypatch.setattr(tasks, "_packaged", packaged)
    monkeypatch.setattr(tasks.Arithmetic, "extract", parity)


@pytest.fixture
def toy():
    """Opens the same small model for any model section."""
    return small_toy


@pytest.fixture
def load(tmp_path):
    """Reads the small recipe, with arguments."""

    def load(*arguments):
        path = tmp_path / "recipe.yaml"
        path.write_text(RECIPE)
        return Recipe.load(path, arguments)

    return load


@pytest.fixture
def quick_storage():
    """Opens studies in a file without waiting for the disk: no power cut is tested."""

    def open_storage(path):
        def connect():
            connection = sqlite3.connect(path, check_same_thread=False)
            connection.execute("PRAGMA synchronous = OFF")
            return connection

        return optuna.storages.RDBStorage(
            "sqlite://", engine_kwargs={"creator": connect}, skip_compatibility_check=True
        )

    return open_storage
