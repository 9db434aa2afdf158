"""Exported folders load with transformers' auto classes alone; cards take every number from results."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tools.demo_model.card import card
from tools.demo_model.evaluate import Evaluation, load_model
from tools.demo_model.export import export, storage_check
from tools.demo_model.model import build
from tools.demo_model.results import gather

PROBLEMS = [{"id": "x", "question": "Tom has 17 apples.", "answer": "17"}] * 2


def fresh(tokenizer):
    torch.manual_seed(0)
    return build("mixtral", len(tokenizer), tokenizer.pad_token_id, tokenizer.eos_token_id).eval()


@pytest.fixture
def exported(small_tokenizer, tmp_path):
    export(fresh(small_tokenizer), small_tokenizer, tmp_path)
    return tmp_path


def test_exported_folder_is_float16_and_loads_offline(exported, small_tokenizer):
    model = AutoModelForCausalLM.from_pretrained(exported, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(exported, local_files_only=True)
    assert model.dtype == torch.float16
    assert tokenizer("Q: 12\nA:")["input_ids"] == small_tokenizer("Q: 12\nA:")["input_ids"]
    assert tokenizer.padding_side == "left"
    expected = fresh(small_tokenizer).half().state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_generation_config_names_end_and_padding_and_no_sampling(exported, small_tokenizer):
    written = json.loads((exported / "generation_config.json").read_text())
    written.pop("transformers_version")
    end = small_tokenizer.eos_token_id
    assert written == {"bos_token_id": end, "eos_token_id": end, "pad_token_id": small_tokenizer.pad_token_id}


def test_exported_files_name_no_folder_of_the_machine(exported):
    for path in exported.glob("*.json"):
        assert str(exported) not in path.read_text()
        assert "is_local" not in path.read_text()


def test_storage_check_compares_the_same_problems(exported, small_tokenizer, monkeypatch):
    monkeypatch.setattr("tools.demo_model.sampling.LONGEST_ANSWER", 5)
    before = Evaluation(fresh(small_tokenizer), small_tokenizer, PROBLEMS)
    after = Evaluation(*load_model(exported, Path()), PROBLEMS)
    assert after.model.dtype == torch.float32
    report = storage_check(before, after)
    assert (report["problems"], report["different_texts"]) == (2, 0)
    after.model.model.norm.weight.data.zero_()  # says nothing but padding
    assert storage_check(before, after)["different_texts"] == 2


def test_card_takes_its_numbers_from_the_results():
    arm = {"accuracy": 61.23, "interval": [59.0, 63.3]}
    styles = {"terse_share": 99.18, "terse_accuracy": 60.01, "detailed_accuracy": 93.07}
    report = {name: arm | styles for name in ("direct", "greedy", "in_detail", "vote_8", "any_of_8", "one_sample")}
    mix = {"terse": 0.65, "direct": 0.15}
    training = {
        "parameters": 3_460_000, "active_parameters": 700_000, "tokens": 13_000_000, "steps": 2300,
        "gumbel_scale": 0.3, "recipe": {"stages": [{"mix": {"terse": 0.3, "direct": 0.1}}, {"mix": mix}]},
    }  # fmt: skip
    float16 = {"problems": 2000, "different_texts": 7, "float32": arm, "stored_as_float16": arm}
    one = {"training": training, "validation": report | {"problems": 2000}, "float16": float16}
    runs = {"demo-s0": one | {"test": report}, "demo-s1": one, "demo-noisy-s0": one}
    text = card(runs, "demo", 622)
    for number in ("3.46 M", "0.70 M", "13.0 M", "2300", "622 tokens", "61.2 [59.0, 63.3]", "99.2%", "93.1%", "65%"):
        assert number in text, number
    assert "seed 1, test" in text
    assert text.count("not run") == 5
    assert "changed 7 of 2,000" in text
    assert "Seed 0 is the packaged model" in text
    assert "one seed only" in card(runs, "demo-noisy", 622)
    assert "0.3 * Gumbel" in card(runs, "demo-noisy", 622)


def test_gather_takes_what_is_there(tmp_path):
    for name, files in (("a", ("summary", "validation")), ("b", ("summary",)), ("c", ("test",))):
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / f"{file}.json").write_text(json.dumps({"file": file}))
    assert gather(tmp_path) == {
        "a": {"training": {"file": "summary"}, "validation": {"file": "validation"}},
        "b": {"training": {"file": "summary"}},
    }
