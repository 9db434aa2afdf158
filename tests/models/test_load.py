"""Loading, wrapping, encoding, and every refusal on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from tests.models.tiny import tiny
from tokenscale.core.errors import CapabilityError, ModelError, PromptError
from tokenscale.core.model import ROUTING_NOISE
from tokenscale.core.prompt import Prompt
from tokenscale.models.hf import load, wrap
from tokenscale.models.source import find
from tokenscale.pipeline import Pipeline
from tokenscale.token_level.decoders import Greedy


def tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """Whole words "w0" ... "w98", and two special tokens."""
    words = {"<pad>": 0, "<end>": 1, **{f"w{i}": i + 2 for i in range(99)}}
    inner = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<end>", **special)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved model with its tokenizer."""
    tiny("olmoe").save_pretrained(tmp_path)
    tokenizer(bos_token="<end>").save_pretrained(tmp_path)
    return tmp_path


def test_a_folder_gives_what_transformers_gives(folder: Path) -> None:
    lm = load(folder)
    ids = lm.encode(Prompt.of("w3 w4 w5"))
    assert ids == (5, 6, 7)
    assert lm.decode([8, 1]) == "w6"
    state = lm.prefill([ids[:-1]])
    logits = lm.step(state, torch.tensor(ids[-1:])).logits[0, 0]
    expected = AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([ids])).logits[0, -1]
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    assert ROUTING_NOISE in lm.capabilities
    assert lm.eos_ids == {1}
    assert lm.inspect_layers() == [f"model.layers.{i}.mlp.gate" for i in range(3)]


def test_a_dense_model_loads(tmp_path: Path) -> None:
    tiny("llama").save_pretrained(tmp_path)
    tokenizer(bos_token="<end>").save_pretrained(tmp_path)
    lm = load(tmp_path)
    ids = lm.encode(Prompt.of("w3 w4 w5"))
    logits = lm.step(lm.prefill([ids[:-1]]), torch.tensor(ids[-1:])).logits[0, 0]
    expected = AutoModelForCausalLM.from_pretrained(tmp_path)(torch.tensor([ids])).logits[0, -1]
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    assert lm.lacks(ROUTING_NOISE) == "it is a dense model, without routers"


@pytest.mark.parametrize(("asked", "used"), [(None, "grouped_mm"), ("eager", "eager")])
def test_experts_are_grouped_products_unless_asked_otherwise(folder: Path, asked: str | None, used: str) -> None:
    assert load(folder, experts_implementation=asked).model.config._experts_implementation == used


def test_equal_weights_have_equal_fingerprints(folder: Path) -> None:
    lm = load(folder)
    assert lm.fingerprint == load(folder).fingerprint
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert wrap(model, lm.tokenizer).fingerprint == lm.fingerprint
    assert wrap(model).fingerprint != lm.fingerprint
    with torch.no_grad():
        model.model.layers[2].mlp.experts.down_proj[0, 0, 0] += 1
    assert wrap(model, lm.tokenizer).fingerprint != lm.fingerprint


def test_tokenizers_that_make_other_ids_have_other_fingerprints() -> None:
    model = tiny("olmoe")
    template, lower, used = tokenizer(), tokenizer(), tokenizer()
    template.chat_template = "w9 {{ messages[0]['content'] }}"
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    used(["w1", "w1 w2"], padding=True, truncation=True, max_length=5)
    prints = [wrap(model, tok).fingerprint for tok in (tokenizer(), template, lower)]
    assert len(set(prints)) == 3
    assert wrap(model, used).fingerprint == prints[0]


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        (
            ["tokenizer.json", "tokenizer_config.json"],
            r"(?s)has no tokenizer.*fix: put tokenizer.json",
        ),
        (["config.json"], r"(?s)holds no config.json, so no model.*fix: give 'demo'"),
        (["model.safetensors"], r"(?s)cannot be loaded.*fix: give 'demo'"),
    ],
)
def test_a_folder_with_a_part_missing(folder: Path, remove: list[str], message: str) -> None:
    for name in remove:
        (folder / name).unlink()
    with pytest.raises(ModelError, match=message):
        load(folder)


def test_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"(?s)there is no model .*nowhere.*fix: give 'demo', .*, a folder"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "meant"),
    [("dmeo", "demo"), ("Demo", "demo"), ("demo_noisy", "demo-noisy"), ("demotext", "demo-text")],
)
def test_a_slip_in_a_packaged_name_does_not_go_to_the_hub(
    name: str, meant: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: pytest.fail("asked transformers"))
    with pytest.raises(ModelError, match=rf"(?s)there is no model '{name}': .*fix: did you mean '{meant}'\? give"):
        load(name)


def test_other_names_are_folders_and_hub_ids(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gpt2", "distilgpt2", "owner/demo", "google/gemma-2b"):
        assert find(name) == name
    folder.rename(folder.parent / "dmeo")
    monkeypatch.chdir(folder.parent)
    assert find("dmeo") == "dmeo"


@pytest.mark.parametrize(
    "keyword",
    [
        {"dtype": "float99"},
        {"attn_implementation": "flash_attention_2"},
        {"attn_implementation": "none"},
        {"device_map": "nowhere"},
        {"quantization_config": 3},
        {"experts_implementation": "fast"},
        {"bogus": 1},
    ],
    ids=str,
)
def test_a_wrong_keyword_is_one_message_that_names_it(folder: Path, keyword: dict[str, Any]) -> None:
    [(name, value)] = keyword.items()
    if name == "device_map":
        pytest.importorskip("accelerate")
    with pytest.raises(ModelError, match=r"cannot be loaded: \S") as caught:
        load(folder, **keyword)
    assert caught.value.hint == (
        f"leave out or change what was given: {name}={value!r} (see transformers' from_pretrained)"
    )


def test_loading_draws_no_bar(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    load(folder)
    assert capfd.readouterr() == ("", "")
    AutoModelForCausalLM.from_pretrained(folder)
    assert "Loading weights" in capfd.readouterr().err


def test_a_model_in_training_mode_is_refused() -> None:
    with pytest.raises(ModelError, match=r"(?s)training mode.*fix: call model.eval\(\) first"):
        wrap(tiny("olmoe").train())


def test_a_model_without_lm_head_is_refused() -> None:
    with pytest.raises(ModelError, match="has no lm_head"):
        wrap(tiny("olmoe").model)


def test_experts_without_known_routers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("olmoe")
    monkeypatch.setattr("tokenscale.models.hf.find_routers", lambda model: [])
    with pytest.raises(ModelError, match=r"has 8 experts, but its routers are of no known class"):
        wrap(model)


def test_an_empty_prompt_is_the_first_token_or_an_error(folder: Path) -> None:
    assert load(folder).encode(Prompt.of("")) == (1,)
    model = tiny("olmoe")
    model.generation_config.bos_token_id = None
    with pytest.raises(PromptError, match=r"(?s)the prompt is empty.*no begin-of-sequence token.*fix: write a prompt"):
        wrap(model, tokenizer()).encode(Prompt.of(""))


def test_text_without_a_tokenizer_is_refused() -> None:
    lm = wrap(tiny("olmoe"))
    for prompt in (
        Prompt.of("w1"),
        Prompt(token_ids=(4,), suffix="w1"),
        Prompt.of([{"role": "user", "content": "w1"}]),
    ):
        with pytest.raises(CapabilityError, match="came without a tokenizer"):
            lm.encode(prompt)
    with pytest.raises(CapabilityError, match="came without a tokenizer"):
        lm.decode([4])
    assert lm.encode(Prompt(token_ids=(4, 5))) == (4, 5)


def test_chat_messages_go_through_the_template_once() -> None:
    tok = tokenizer(bos_token="<end>")
    lm = wrap(tiny("olmoe"), tok)
    messages = [{"role": "user", "content": "w1 w2"}]
    with pytest.raises(PromptError, match="no chat template"):
        lm.encode(Prompt.of(messages))
    tok.chat_template = "w9 {{ messages[0]['content'] }}{% if add_generation_prompt %} w8{% endif %}"
    assert lm.encode(Prompt.of(messages)) == (11, 3, 4, 10)


def test_a_chat_that_the_template_refuses_is_a_prompt_error() -> None:
    tok = tokenizer(bos_token="<end>")
    tok.chat_template = "{{ raise_exception('System role not supported') }}"
    messages = [{"role": "system", "content": "w1"}, {"role": "user", "content": "w2"}]
    message = (
        r"(?s)does not take messages of the roles system, user: System role not supported.*fix: change the messages"
    )
    with pytest.raises(PromptError, match=message):
        wrap(tiny("olmoe"), tok).encode(Prompt.of(messages))


def test_token_ids_that_the_model_does_not_have_are_refused_before_anything_is_decoded() -> None:
    lm, pipe = wrap(tiny("llama")), Pipeline(Greedy())
    pipe.run(lm, [Prompt(token_ids=(100,))], max_new_tokens=1)
    progress: list[int] = []
    with pytest.raises(PromptError, match=r"has no token id 101\n  fix: use ids below 101"):
        pipe.run(
            lm, [Prompt(token_ids=(5,)), Prompt(token_ids=(5, 101))], progress=lambda done, _: progress.append(done)
        )
    assert progress == []


@pytest.mark.parametrize("prompt", ["w1 w2 w3 w4", [{"role": "user", "content": "w1 w2 w3 w4"}]])
def test_a_long_prompt_is_encoded_without_a_warning(prompt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt that does not fit is refused later, with the fix."""
    tok = tokenizer(bos_token="<end>", model_max_length=3, chat_template="{{ messages[0]['content'] }}")
    warned: list[str] = []
    monkeypatch.setattr("transformers.tokenization_utils_base.logger.warning", warned.append)
    assert wrap(tiny("olmoe"), tok).encode(Prompt.of(prompt)) == (3, 4, 5, 6)
    assert warned == []
    tok("w1 w2 w3 w4")
    assert len(warned) == 1


def test_a_suffix_follows_token_ids() -> None:
    lm = wrap(tiny("olmoe"), tokenizer())
    assert lm.encode(Prompt(token_ids=(4, 5), suffix=" w1")) == (4, 5, 3)


def test_the_generation_config_is_honoured() -> None:
    model = tiny("olmoe")
    model.generation_config.eos_token_id = [1, 7]
    model.generation_config.suppress_tokens = [9]
    model.generation_config.temperature = 0.6
    model.generation_config.top_p = 0.9
    lm = wrap(model)
    assert (lm.eos_ids, lm.suppressed_ids) == ({1, 7}, {9})
    assert lm.sampling_defaults == {"temperature": 0.6, "top_p": 0.9}
