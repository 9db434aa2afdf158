"""A task of one-line questions and a small model, so that a whole comparison takes a second."""

import pytest

from tokenscale.experiments import tasks
from tokenscale.models.toy import ToyModel
from tokenscale.recipe import Recipe

RECIPE = """\
version: 1
question: Does it run?
models: {toy: {path: toy}}
tasks: {arithmetic: {limit: 5}}
generation: {max_new_tokens: 4}
seeds: [0]
arms:
  greedy: Greedy()
  roe: RoE(n=2, tau=1.0, clean_layers=0)
  vote: SelfConsistency(k=2)
contrasts: [[vote, greedy]]
"""


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
    return lambda section: ToyModel(moe_layers=1, experts=4, width=4)


@pytest.fixture
def load(tmp_path):
    """Reads the small recipe, with arguments."""

    def load(*arguments):
        path = tmp_path / "recipe.yaml"
        path.write_text(RECIPE)
        return Recipe.load(path, arguments)

    return load
