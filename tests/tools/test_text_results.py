"""Evaluation of the text models: losses by document, changes with intervals, the picture."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

import tokenscale as ts
from tools.demo_text.card import card
from tools.demo_text.evaluate import (
    ROWS,
    TAUS,
    Configuration,
    configurations,
    document_losses,
    document_tokens,
    measure,
)
from tools.demo_text.held_out import Block
from tools.demo_text.picture import draw, line
from tools.demo_text.results import NAMES, change, table, temperature

BLOCKS = [Block(0, (1, 5, 6)), Block(0, (1, 7)), Block(1, (1, 8, 9))]


def test_losses_and_tokens_by_document():
    assert document_tokens(BLOCKS) == [3, 2]
    assert document_losses([[-1.0, -2.0], [-4.0], [-8.0, -16.0]], BLOCKS) == [7.0, 24.0]


def test_the_grid_holds_every_configuration_once_and_the_clean_row_first():
    found = list(configurations())
    assert len(found) == len(set(found)) == 1 + 2 * len(TAUS) * len(ROWS) + len(TAUS)
    assert found[0] == Configuration()
    for current_kv in ("own", "clean"):
        cells = {(one.n, one.tau) for one in found if one.current_kv == current_kv and one.clean_layers == 0}
        assert {(n, tau) for n in ROWS for tau in TAUS} <= cells


class Scorer:
    """Says what it was asked; every token has log-probability -0.5 n."""

    def score(self, sequences, proposer, aggregator, *, seed):
        self.asked = (list(sequences), aggregator, seed)
        n = getattr(proposer, "n", 1)
        return [SimpleNamespace(log_probs=[-0.5 * n] * (len(ids) - 1)) for ids in sequences]


def test_measure_scores_the_blocks_with_the_seed():
    lm = Scorer()
    row = measure(lm, BLOCKS, Configuration(), seed=3)
    assert lm.asked == ([block.ids for block in BLOCKS], ts.MeanProbability(), 3)
    assert row["losses"] == [1.5, 1.0]
    assert {key: row[key] for key in ("n", "tau", "current_kv", "clean_layers")} == {
        "n": 1, "tau": 0.0, "current_kv": "own", "clean_layers": 0,
    }  # fmt: skip


def test_change_is_the_mean_with_the_interval_of_a_paired_ratio():
    assert change([3.0, 2.0], [2.0, 1.0], [1, 1]) == (1.0, 0.0)
    # Documents of one length: the textbook interval of a mean of differences.
    rng = np.random.default_rng(0)
    clean, noisy = rng.normal(size=(2, 30))
    mean, half = change(list(noisy), list(clean), [1] * 30)
    d = noisy - clean
    assert mean == pytest.approx(d.mean())
    assert half == pytest.approx(1.959964 * d.std(ddof=1) / math.sqrt(30))


def test_interval_covers_as_often_as_it_says():
    # 400 fixed draws of 60 documents of unequal length: coverage of 95% within 0.90 and 0.985.
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        tokens = rng.integers(20, 400, size=60)
        differences = rng.normal(-0.01 * tokens, 0.3 * np.sqrt(tokens))
        mean, half = change(list(differences), [0.0] * 60, list(tokens))
        covered += abs(mean + 0.01) < half
    assert 0.90 < covered / 400 < 0.985


def report():
    rows = [{"n": 1, "tau": 0.0, "current_kv": "own", "clean_layers": 0, "losses": [3.0, 6.0], "seconds": 1.0}]
    rows += [
        {"n": n, "tau": tau, "current_kv": "own", "clean_layers": 0, "losses": [3.0 + tau, 6.0 - n * tau], "seconds": 1}
        for n in ROWS
        for tau in reversed(TAUS)
    ]
    return {"data_sha256": "x", "seed": 0, "tokens": [1, 2], "rows": rows}


def test_table_has_losses_and_changes():
    found = table(report())
    assert (found["documents"], found["tokens"]) == (2, 3)
    assert found["rows"][0] == {
        "n": 1, "tau": 0.0, "current_kv": "own", "clean_layers": 0, "loss": 3.0, "change": 0.0, "half_width": 0.0,
    }  # fmt: skip
    more = table({**report(), "one_expert_more": [4.0, 8.0]})["one_expert_more"]
    assert more == {"change": pytest.approx(1.0), "half_width": pytest.approx(0.0)}
    row = next(row for row in found["rows"] if (row["n"], row["tau"]) == (4, 0.5))
    assert row["loss"] == pytest.approx(3 + (0.5 - 2.0) / 3)
    assert row["change"] == pytest.approx(-0.5)


def test_the_picture_is_drawn_from_the_table_and_always_the_same(tmp_path):
    test = table(report())
    taus, losses, halves = line(test, 4, "own")
    assert taus == [0.0, *TAUS]
    assert losses[0] == 3.0
    assert losses[4] == pytest.approx(2.5)
    assert halves[0] == 0.0
    for name in ("a.svg", "b.svg"):
        draw({name: {"reference": test} for name in NAMES}, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert "n = 16" in (tmp_path / "a.svg").read_text()


def test_a_temperature_is_reported_as_a_change():
    found = temperature(
        {"losses": [2.0, 4.0], "clean_losses": [3.0, 5.0], "temperature": 1.1, "data_sha256": {}}, [1, 1]
    )
    assert found == {"data_sha256": {}, "temperature": 1.1, "change": -1.0, "half_width": 0.0}


def test_card_takes_its_numbers_from_the_results():
    training = {
        "parameters": 3_710_000, "active_parameters": 950_000, "tokens": 5_000_000, "corpus_tokens": 500_000,
        "steps": 830, "seed": 0, "gumbel_scale": 1.0, "curve": [{"step": 830, "loss": 2.34}],
    }  # fmt: skip
    other = report()
    other["rows"] += [{**row, "current_kv": "clean"} for row in report()["rows"] if row["n"] == 8]
    warm = {"temperature": 1.15, "change": -0.0612, "half_width": 0.007}
    results = {
        name: {
            "training": training, "temperature": warm, "reference": table({**other, "one_expert_more": [4.0, 8.0]}),
            "float16": {"tokens": 23_513, "float32": 3.37001, "stored_as_float16": 3.37002},
        }
        for name in NAMES
    }  # fmt: skip
    results["demo-text-noisy"]["clean_loss_above_twin"] = {"change": -0.03, "half_width": 0.02}
    text = card(results, "demo-text", 2048)
    for number in ("3.71 M", "0.95 M", "2,048", "5.0 M", "10 passes", "2.34", "+1.0000 ± 0.0000", "1.15", "-0.0612"):
        assert number in text, number
    # tau 1: (1 - n) / 3 for n = 2, 4, 8, 16.
    assert "best at tau 1.0 (the largest tried), where n = 2, 4, 8, 16 change the loss by -0.3333, -1.0000," in text
    assert "| 16 | -0.5000 ±" in text
    assert "the twin trained with noise is the better model, by 0.0300 ± 0.0200" in text
    assert "1 * Gumbel" in card(results, "demo-text-noisy", 2048)
    results["demo-text-noisy"]["clean_loss_above_twin"] = {"change": 0.01, "half_width": 0.02}
    assert "may be chance" in card(results, "demo-text", 2048)
