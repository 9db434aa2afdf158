"""The committed text models: sizes, that they load, their loss; cards and picture say what results.json says."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import tokenscale as ts
from tools.demo_model.card import CHECKPOINTS
from tools.demo_text.card import card
from tools.demo_text.corpus import HELD_OUT, digest, read
from tools.demo_text.evaluate import ROWS, TAUS
from tools.demo_text.held_out import blocks, mean_loss, plain_log_probs
from tools.demo_text.picture import draw
from tools.demo_text.results import NAMES, RESULTS
from tools.demo_text.tokenizer import VOCABULARY
from tools.demo_text.train import GUMBEL_SCALE, RECIPE

ROOT = Path(__file__).parents[2]
FOLDERS = {name: ROOT / CHECKPOINTS / name for name in NAMES}


@pytest.fixture(scope="module")
def results():
    return json.loads(RESULTS.read_text())["models"]


def test_all_packaged_models_are_under_30_megabytes():
    assert sum(path.stat().st_size for path in (ROOT / CHECKPOINTS).rglob("*") if path.is_file()) < 30e6


@pytest.mark.parametrize("name", NAMES)
def test_each_loads_offline_and_reaches_its_loss(results, name):
    tokenizer = AutoTokenizer.from_pretrained(FOLDERS[name], local_files_only=True)
    stored = AutoModelForCausalLM.from_pretrained(FOLDERS[name], local_files_only=True)
    assert stored.dtype == torch.float16
    assert len(tokenizer) == stored.config.vocab_size == VOCABULARY
    # Eight blocks, each of another document: within half a nat of the split's mean, and far from log 2048 = 7.6.
    found = [block for block in blocks(read(ROOT / HELD_OUT / "validation.jsonl"), tokenizer) if len(block.ids) == 256]
    found = list({block.document: block for block in found}.values())[:8]
    loss = mean_loss(plain_log_probs(stored.float(), found))
    assert abs(loss - results[name]["float16"]["stored_as_float16"]) < 0.5
    lm = ts.load(name)
    assert lm.model.dtype == torch.float32
    assert mean_loss(plain_log_probs(lm.model, found)) == pytest.approx(loss, abs=1e-4)
    [answer] = ts.Pipeline(ts.Greedy()).run(lm, ["Return a list of"], max_new_tokens=5)
    assert answer.text


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_whole_test_split_has_the_loss_in_the_results(results, name):
    lm = ts.load(name)
    log_probs = plain_log_probs(lm.model, blocks(read(ROOT / HELD_OUT / "test.jsonl"), lm.tokenizer))
    test = results[name]["reference"]
    assert sum(map(len, log_probs)) == test["tokens"]
    assert mean_loss(log_probs) == pytest.approx(test["rows"][0]["loss"], abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_committed_text_is_what_was_measured(results, name):
    assert results[name]["float16"]["data_sha256"] == digest(ROOT / HELD_OUT / "validation.jsonl")
    test = digest(ROOT / HELD_OUT / "test.jsonl")
    assert results[name]["temperature"]["data_sha256"]["test"] == test
    for part in ("reference", "library"):
        assert results[name][part]["data_sha256"] == test
    own = [key(row) for row in results[name]["reference"]["rows"] if key(row)[2:] == ("own", 0)]
    assert sorted(own) == sorted([(1, 0.0, "own", 0), *((n, tau, "own", 0) for n in ROWS for tau in TAUS)])


@pytest.mark.parametrize("name", NAMES)
def test_both_ways_to_measure_agree(results, name):
    # The noise differs, the documents do not: they differ by less than what the documents alone make uncertain.
    test, reference = ({key(row): row for row in results[name][part]["rows"]} for part in ("library", "reference"))
    assert len(test.keys() & reference.keys()) >= 4
    for which in test.keys() & reference.keys():
        row = reference[which]
        assert abs(test[which]["change"] - row["change"]) <= max(0.001, row["half_width"]), which
    assert test[1, 0.0, "own", 0]["loss"] == pytest.approx(reference[1, 0.0, "own", 0]["loss"], abs=1e-5)


def key(row):
    return row["n"], row["tau"], row["current_kv"], row["clean_layers"]


def test_the_twins_share_all_but_the_noise(results):
    plain, noisy = (results[name]["training"] for name in NAMES)
    for part in ("seed", "steps", "tokens", "recipe", "parameters", "corpus_sha256", "corpus_tokens"):
        assert plain[part] == noisy[part], part
    assert (plain["gumbel_scale"], noisy["gumbel_scale"]) == (0.0, GUMBEL_SCALE)
    stages = [(stage["name"], stage["steps"]) for stage in plain["recipe"]["stages"]]
    assert stages == [(stage.name, stage.steps) for stage in RECIPE.stages]
    assert plain["steps"] == RECIPE.steps


@pytest.mark.parametrize("name", NAMES)
def test_card_says_what_was_measured(results, name):
    assert (FOLDERS[name] / "README.md").read_text() == card(results, name, VOCABULARY)


def test_the_picture_is_of_the_results(results, tmp_path):
    draw(results, tmp_path / "again.svg")
    assert (ROOT / "docs/pictures/text-models.svg").read_text() == (tmp_path / "again.svg").read_text()
