"""The packaged comparison of ways to choose, on the first problems it names."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenscale.cli import RECIPES
from tokenscale.experiments.execute import execute
from tokenscale.recipe import Recipe


@pytest.mark.slow
def test_the_verifier_chooses_better_than_a_vote(tmp_path: Path) -> None:
    """Best of n is real: on 60 test problems the verifier finds more right answers than the vote, that than greedy."""
    report = execute(Recipe.load(RECIPES / "best-of-n.yaml", ["tasks.arithmetic.limit=60"]), tmp_path)
    accuracy = {arm["name"]: arm["accuracy"] for arm in report["arms"]}
    assert accuracy["greedy"] < accuracy["vote"] < min(accuracy["verifier"], accuracy["steps"])
    cost = {arm["name"]: arm["cost"] for arm in report["arms"]}
    assert cost["vote"]["new_tokens"] == cost["verifier"]["new_tokens"] == cost["log_prob"]["new_tokens"]
    assert cost["vote"]["flops"] == cost["log_prob"]["flops"] < cost["verifier"]["flops"] < 1.3 * cost["vote"]["flops"]
