"""Aggregators' arguments, and their names in text, specs and recipes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenscale.core.errors import ArgumentError, RecipeError, TokenscaleError, UnknownNameError
from tokenscale.core.starting import all_valid
from tokenscale.core.strategy import Aggregator
from tokenscale.models.toy import ToyModel
from tokenscale.pipeline import Pipeline
from tokenscale.recipe import Recipe
from tokenscale.token_level.aggregators import (
    CleanAnchored,
    ConfidenceWeighted,
    ContrastRows,
    DoLaContrast,
    EntropyWeighted,
    LogSumExpLogits,
    MaxProbability,
    MeanLogit,
    MeanProbability,
    MedianProbability,
    MinProbability,
    TokenVote,
    Weighted,
)
from tokenscale.token_level.roe import RoE

NAN = float("nan")


@pytest.mark.parametrize(
    ("make", "message", "fix"),
    [
        (lambda: ContrastRows(beta=-0.1), r"ContrastRows\(beta=-0.1\): beta must not be negative", "write beta=0.5"),
        (lambda: ContrastRows(beta=NAN), r"beta must be a finite number", "write beta=0.5"),
        (
            lambda: ContrastRows(alpha=0.0),
            r"ContrastRows\(alpha=0.0\): alpha must be above 0 and at",
            "write alpha=0.1",
        ),
        (lambda: ContrastRows(alpha=1.01), r"alpha must be above 0 and at most 1", "write alpha=0.1"),
        (lambda: ContrastRows(alpha=NAN), r"alpha must be a finite number", "write alpha=0.1"),
        (lambda: DoLaContrast(alpha=-1), r"DoLaContrast\(alpha=-1\): alpha must be above 0", "write alpha=0.1"),
        (lambda: DoLaContrast(alpha="0.1"), r"alpha must be a finite number", "write alpha=0.1"),  # type: ignore[arg-type]
        (lambda: CleanAnchored(-0.1), r"CleanAnchored\(weight=-0.1\): weight must be at least 0", "write weight=0.5"),
        (lambda: CleanAnchored(1.5), r"weight must be at least 0 and at most 1", "write weight=0.5"),
        (lambda: CleanAnchored(NAN), r"weight must be a finite number", "write weight=0.5"),
        (lambda: CleanAnchored(True), r"weight must be a finite number", "write weight=0.5"),
        (lambda: TokenVote(smoothing=2), r"TokenVote\(smoothing=2\): smoothing must be", "write smoothing=0.001"),
        (lambda: TokenVote(smoothing=NAN), r"smoothing must be a finite number", "write smoothing=0.001"),
        (lambda: Weighted(()), r"Weighted\(w=\(\)\): w must be one weight per row", r"write w=\(0.5, 0.25, 0.25\)"),
        (lambda: Weighted(0.5), r"Weighted\(w=0.5\): w must be one weight per row", "write w="),  # type: ignore[arg-type]
        (lambda: Weighted((1, -2)), r"-2.0 is negative", "weights of 0 or more"),
        (lambda: Weighted((0, 0)), r"all weights are 0", "a weight above 0"),
        (lambda: Weighted((1, NAN)), r"w must be a finite number", "write w=0.5"),
        (lambda: Weighted((1, math.inf)), r"w must be a finite number", "write w=0.5"),
        (lambda: Weighted((1, None)), r"w must be a finite number", "write w=0.5"),  # type: ignore[arg-type]
    ],
)
def test_wrong_arguments_are_refused_with_the_fix(make: Callable[[], Aggregator], message: str, fix: str) -> None:
    with pytest.raises(ArgumentError, match=rf"{message}.*\n  fix: .*{fix}"):
        make()


ROWS = all_valid(torch.zeros(1, 4, 3))


def test_more_than_two_rows_are_not_contrasted() -> None:
    with pytest.raises(ArgumentError, match=r"contrasts two rows, \(strong, weak\), and there are 4\n.*DoLaContrast"):
        ContrastRows().aggregate(ROWS)
    accumulator = ContrastRows().update(None, all_valid(ROWS.logits[:, :2]))
    with pytest.raises(ArgumentError, match=r"contrasts two rows, \(strong, weak\), and there are 3\n.*DoLaContrast"):
        ContrastRows().update(accumulator, all_valid(ROWS.logits[:, 2:3]))


@pytest.mark.parametrize("w", [(1, 2, 3), (1, 2, 3, 4, 5)])
@pytest.mark.parametrize("chunk", [1, 2, 4])
def test_as_many_weights_as_rows(w: tuple[float, ...], chunk: int) -> None:
    aggregator = Weighted(w)
    accumulator = aggregator.init(1, 3)
    for part in ROWS.logits.split(chunk, 1):
        accumulator = aggregator.update(accumulator, all_valid(part))
    message = rf"has {len(w)} weights, and there are 4 rows\n  fix: give 4 weights, or .* n to {len(w)}"
    for refused in (lambda: aggregator.finish(accumulator), lambda: aggregator.aggregate(ROWS)):
        with pytest.raises(ArgumentError, match=message):
            refused()


def test_wrong_weights_stop_a_run_with_one_clear_error() -> None:
    with pytest.raises(ArgumentError, match="has 2 weights, and there are 4 rows"):
        (RoE(4, clean_layers=0) | Weighted((1, 1))).run(ToyModel(), ["ab"], max_new_tokens=2)


def test_arguments_become_floats() -> None:
    """So that what numpy or YAML hands over prints as what the text form reads."""
    given = Weighted([np.float32(0.5), 1]), CleanAnchored(np.float64(0.5)), ContrastRows(np.float64(1), 1)  # type: ignore[arg-type]
    assert [repr(a) for a in given] == [
        "Weighted(w=(0.5, 1.0))",
        "CleanAnchored(weight=0.5)",
        "ContrastRows(beta=1.0, alpha=1.0)",
    ]
    assert hash(given[0]) == hash(Weighted((0.5, 1.0)))


shares = st.floats(0, 1)
positive_shares = st.floats(0, 1, exclude_min=True)
weights = st.lists(st.floats(0, 1e6), min_size=1, max_size=5).filter(any)
aggregators = st.one_of(
    st.sampled_from(
        [
            MeanProbability(),
            MeanLogit(),
            LogSumExpLogits(),
            MinProbability(),
            MaxProbability(),
            MedianProbability(),
            ConfidenceWeighted(),
            EntropyWeighted(),
        ]
    ),
    st.builds(TokenVote, shares),
    st.builds(CleanAnchored, shares),
    st.builds(Weighted, weights),
    st.builds(ContrastRows, st.floats(0, 1e6), positive_shares),
    st.builds(DoLaContrast, positive_shares),
)


@given(aggregators)
def test_text_spec_and_python_round_trip(aggregator: Aggregator) -> None:
    pipe = Pipeline(RoE(4), aggregator)
    assert Pipeline.parse(repr(pipe)) == pipe == Pipeline.from_spec(pipe.to_spec())
    assert repr(Pipeline.parse(repr(pipe))) == repr(pipe)
    evaluated = eval(repr(aggregator), {type(aggregator).__name__: type(aggregator)})
    assert evaluated == aggregator
    assert hash(evaluated) == hash(aggregator)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Weighted([0.5, 0.25, 0.25])", Weighted((0.5, 0.25, 0.25))),
        ("Weighted(w=(1, 2))", Weighted((1, 2))),
        ("CleanAnchored(0.5)", CleanAnchored(0.5)),
        ("ContrastRows(0.3, alpha=.05)", ContrastRows(0.3, 0.05)),
        ("TokenVote()", TokenVote(0.001)),
        ("DoLaContrast()", DoLaContrast(0.1)),
    ],
)
def test_what_may_be_written(text: str, wanted: Aggregator) -> None:
    assert Pipeline.parse(f"RoE(n=2) | {text}").aggregator == wanted


@pytest.mark.parametrize(
    ("text", "message", "fix"),
    [
        (
            "RoE(n=4) | MeanProbabilty()",
            "unknown strategy 'MeanProbabilty', at column 12",
            "did you mean 'MeanProbability'",
        ),
        ("MedianLogit()", "unknown strategy 'MedianLogit'", "did you mean 'MeanLogit'"),
        ("tokenvote()", "unknown strategy 'tokenvote'", "did you mean 'TokenVote'"),
        ("CleanAnchored(wieght=0.5)", "unknown parameter 'wieght' in CleanAnchored", "did you mean 'weight'"),
        ("CleanAnchored()", "CleanAnchored needs weight, got nothing", "write CleanAnchored(weight=...)"),
        ("Weighted(w=(1, -1))", "-1.0 is negative, at column 1", "weights of 0 or more"),
        ("ContrastRows(alpha=0)", "alpha must be above 0 and at most 1, at column 1", "write alpha=0.1"),
        ("MinProbability() | MaxProbability()", "two aggregators: MinProbability() and MaxProbability()", "keep one"),
    ],
)
def test_wrong_texts_offer_the_fix(text: str, message: str, fix: str) -> None:
    with pytest.raises(TokenscaleError) as refused:
        Pipeline.parse(text)
    assert message in refused.value.message
    assert fix in refused.value.hint


def test_an_unknown_aggregator_in_a_spec_offers_the_nearest() -> None:
    with pytest.raises(
        UnknownNameError, match=r"unknown strategy 'MinProbablity', in stage 2.*\n.*did you mean 'MinProb"
    ):
        Pipeline.from_spec([{"RoE": {"n": 4}}, {"MinProbablity": {}}])


RECIPE = """
version: 1
question: Which aggregator?
models: {demo: {path: demo}}
tasks: {arithmetic: {split: test, limit: 10}}
generation: {max_new_tokens: 8}
seeds: [0]
arms:
  greedy: Greedy()
  anchored: ARM
"""


def recipe(tmp_path: Path, arm: str) -> Any:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("ARM", arm))
    return Recipe.load(path)


def test_an_unknown_aggregator_in_a_recipe_offers_the_nearest(tmp_path: Path) -> None:
    recipe(tmp_path, "RoE(n=4) | CleanAnchored(weight=0.5)")
    with pytest.raises(RecipeError, match=r"(?s)unknown strategy 'CleanAncored'.*did you mean 'CleanAnchored'"):
        recipe(tmp_path, "RoE(n=4) | CleanAncored(weight=0.5)")
