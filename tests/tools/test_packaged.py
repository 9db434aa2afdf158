"""The committed files: sizes, that they load, and that their cards say what results.json says."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tools.demo_model.card import CHECKPOINTS, TWINS, card
from tools.demo_model.evaluate import VOTERS, gates
from tools.demo_model.results import RESULTS
from tools.demo_model.train import RECIPES

ROOT = Path(__file__).parents[2]
FOLDERS = {name: ROOT / CHECKPOINTS / name for name in TWINS} | {"tiny-mixtral": ROOT / "tests/data/tiny-mixtral"}


@pytest.fixture(scope="module")
def runs():
    return json.loads(RESULTS.read_text())["runs"]


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_sizes():
    assert sum(size(FOLDERS[name]) for name in TWINS) < 20e6
    assert (FOLDERS["tiny-mixtral"] / "model.safetensors").stat().st_size < 1e6


@pytest.mark.parametrize("folder", FOLDERS.values(), ids=FOLDERS)
def test_each_loads_offline_and_ends_its_answers(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    stored = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    assert stored.dtype == torch.float16
    model = stored.float()
    inputs = tokenizer("Q: Tom has $24. He earns $10 more. How much money does Tom have now?\nA:", return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=20, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(ids).startswith(" #### ")
    assert ids[-1] == tokenizer.eos_token_id == model.generation_config.eos_token_id


@pytest.mark.parametrize("name", TWINS)
def test_card_says_what_was_measured(runs, name):
    vocabulary = json.loads((FOLDERS[name] / "config.json").read_text())["vocab_size"]
    assert (FOLDERS[name] / "README.md").read_text() == card(runs, name, vocabulary)


@pytest.mark.parametrize("name", TWINS)
def test_the_packaged_models_met_the_gates_by_this_recipe(runs, name):
    run = runs[f"{name}-s0"]
    assert all(gates(run["validation"]).values())
    assert run["validation"]["problems"] == run["test"]["problems"] == 2000
    assert f"vote_{VOTERS}" in run["test"]
    stages = [(stage["name"], stage["steps"]) for stage in run["training"]["recipe"]["stages"]]
    assert stages == [(stage.name, stage.steps) for stage in RECIPES["olmoe"].stages]
    assert run["training"]["steps"] == RECIPES["olmoe"].steps


def test_the_twins_share_all_but_the_noise(runs):
    plain, noisy = runs["demo-s0"]["training"], runs["demo-noisy-s0"]["training"]
    for key in ("seed", "steps", "tokens", "recipe", "parameters"):
        assert plain[key] == noisy[key], key
    assert (plain["gumbel_scale"], noisy["gumbel_scale"]) == (0.0, 0.3)
