"""Reward models against transformers itself, called with one text at a time."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    MixtralConfig,
    MixtralForSequenceClassification,
    PreTrainedTokenizerFast,
)

import tokenscale.pipeline  # noqa: F401 (it says how a reference is opened)
from tests.models.tiny import SIZES, tiny
from tokenscale.core.cost import Cost
from tokenscale.core.errors import ArgumentError, CapabilityError, ModelError, PromptError
from tokenscale.core.ledger import Ledger
from tokenscale.core.prompt import Prompt
from tokenscale.core.reward import Graded, open_reward_model
from tokenscale.models import reward as reward_file
from tokenscale.models.hf import load
from tokenscale.models.reward import HFRewardModel, load_reward
from tokenscale.models.source import CHECKPOINTS

TEMPLATE = (
    "<|endoftext|>{% for m in messages %}{{ m.role }}: {{ m.content | trim }}\n{% endfor %}"
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
)
PROMPT = Prompt.of("Q: Tom has 17 apples and buys 5 more. How many apples does Tom have?\nA:")
STEPS = (" We get 17+5=22,", " 22*2=44,", " 44-4=40. #### 40")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """That of the demo model, with a chat template."""
    found = AutoTokenizer.from_pretrained(CHECKPOINTS / "demo")
    found.chat_template = TEMPLATE
    return found


def classifier(kind: type, config: Any, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model = kind._from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return model.eval()


def llama(labels: int = 1, **more: Any) -> Any:
    """A random dense model of one label or more."""
    sizes = {**SIZES, "vocab_size": 622, "intermediate_size": 24, "num_labels": labels, **more}
    return classifier(LlamaForSequenceClassification, LlamaConfig(**sizes))


def bert() -> Any:
    """A random model that is not causal."""
    sizes = {name: SIZES[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "pad_token_id")}
    config = BertConfig(**sizes, vocab_size=622, intermediate_size=24, num_labels=1)
    return classifier(BertForSequenceClassification, config)


def by_transformers(model: Any, tokenizer: Any, text: str) -> list[float]:
    """The labels' outputs for one text by itself."""
    with torch.no_grad():
        outputs: list[float] = model(**tokenizer(text, return_tensors="pt")).logits[0].tolist()
    return outputs


def bill(graded: list[Graded]) -> Cost:
    """What a problem pays whose texts are graded together."""
    ledger = Ledger()
    ledger.add([one.usage for one in graded], start=0)
    return ledger.bill()


@pytest.mark.parametrize("make", [llama, bert])
def test_whole_answers_are_scored_as_transformers_scores_each_alone(make: Any, tokenizer: Any) -> None:
    model = make()
    answers = ["", " 22", " We get 17+5=22. #### 22", " First, 17+5: 10+5=15, 7+15=22. Then" * 5]
    found = HFRewardModel(model, tokenizer, "r").grade([(PROMPT, (answer,)) for answer in answers])
    for answer, graded in zip(answers, found, strict=True):
        [expected] = by_transformers(model, tokenizer, f"{PROMPT.text}{answer}")
        assert graded.scores == pytest.approx((expected,), abs=1e-5)


@given(st.lists(st.text("0123 ,.é", max_size=30), min_size=2, max_size=6))
@settings(max_examples=20, deadline=None)
def test_what_else_is_graded_does_not_matter(tokenizer: Any, answers: list[str]) -> None:
    reward = HFRewardModel(llama(), tokenizer, "r")
    together = reward.grade([(PROMPT, (answer,)) for answer in answers])
    for answer, graded in zip(answers, together, strict=True):
        [alone] = reward.grade([(PROMPT, (answer,))])
        assert graded.scores == pytest.approx(alone.scores, abs=1e-5)


def test_small_forwards_score_as_large_ones(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    reward = HFRewardModel(llama(), tokenizer, "r")
    texts = [(PROMPT, STEPS[: i + 1]) for i in range(3)] * 2
    expected = [graded.scores for graded in reward.grade(texts)]
    monkeypatch.setattr(reward_file, "FORWARD_TOKENS", 1)
    for graded, scores in zip(reward.grade(texts), expected, strict=True):
        assert graded.scores == pytest.approx(scores, abs=1e-5)


def test_steps_are_scored_as_their_beginnings_are(tokenizer: Any) -> None:
    model = llama()
    reward = HFRewardModel(model, tokenizer, "r")
    assert reward.causal
    [graded] = reward.grade([(PROMPT, STEPS)])
    ids = tokenizer(f"{PROMPT.text}{''.join(STEPS)}")["input_ids"]
    texts = [tokenizer.decode(ids[:length]) for length in range(len(ids) + 1)]
    assert len(graded.scores) == 3
    for step, score in enumerate(graded.scores):
        beginning = f"{PROMPT.text}{''.join(STEPS[: step + 1])}"
        length = next(n for n, text in enumerate(texts) if len(text) >= len(beginning))
        with torch.no_grad():
            expected = model(torch.tensor([ids[:length]])).logits.item()
        assert score == pytest.approx(expected, abs=1e-5)


def test_a_token_across_the_end_of_a_step_counts_as_its_own(tokenizer: Any) -> None:
    [encoded] = HFRewardModel(llama(), tokenizer, "r")._encode(PROMPT, (" 5,", " 7"))
    tokens = [tokenizer.decode(i) for i in encoded.ids]
    assert tokens[-3:] == ["5", ", ", "7"]
    assert encoded.ends == (len(tokens) - 2, len(tokens) - 1)


def test_characters_of_several_tokens_and_empty_steps(tokenizer: Any) -> None:
    reward = HFRewardModel(llama(), tokenizer, "r")
    [encoded] = reward._encode(PROMPT, ("", "é→", "", "7"))
    before = len(tokenizer(PROMPT.text)["input_ids"])
    assert encoded.ends == (before - 1, before + 4, before + 4, before + 5)
    assert reward._encode(Prompt.of(""), ("", "7"))[0].ends == (0, 0)


def test_the_first_token_is_not_doubled(tokenizer: Any) -> None:
    first = AutoTokenizer.from_pretrained(CHECKPOINTS / "demo")
    begin = first.bos_token_id
    first.backend_tokenizer.post_processor = processors.TemplateProcessing(
        "<|endoftext|> $A", special_tokens=[("<|endoftext|>", begin)]
    )
    reward = HFRewardModel(llama(), first, "r")
    [plain], [made] = (reward._encode(Prompt.of(text), ("5,", "7")) for text in ("A:", "<|endoftext|>A:"))
    assert plain == made
    assert plain.ids[0] == begin != plain.ids[1]
    assert plain.ends == (len(plain.ids) - 2, len(plain.ids) - 1)


def test_steps_in_a_model_that_is_not_causal_are_texts_of_their_own(tokenizer: Any) -> None:
    model = bert()
    reward = HFRewardModel(model, tokenizer, "r")
    assert not reward.causal
    [graded] = reward.grade([(PROMPT, STEPS)])
    beginnings = [f"{PROMPT.text}{''.join(STEPS[: step + 1])}" for step in range(3)]
    expected = [by_transformers(model, tokenizer, text)[0] for text in beginnings]
    assert graded.scores == pytest.approx(expected, abs=1e-5)
    lengths = [len(tokenizer(text)["input_ids"]) for text in beginnings]
    assert [len(lane.cached.prompt) for lane in graded.usage.lanes] == lengths


class SeesAll(nn.Module):
    """A decoder whose every hidden state is the mean of all tokens' embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4)

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
        mean = self.table(input_ids).mean(1, keepdim=True)
        return SimpleNamespace(last_hidden_state=mean.expand(-1, input_ids.shape[1], -1))


def test_a_matrix_on_every_position_does_not_make_a_model_causal() -> None:
    model = nn.Module()
    model.score, model.base_model, model.device = nn.Linear(4, 1), SeesAll(), torch.device("cpu")
    assert not reward_file._is_causal(model)
    assert reward_file._is_causal(llama())


def test_a_chat_goes_through_the_template(tokenizer: Any) -> None:
    model = llama()
    reward = HFRewardModel(model, tokenizer, "r")
    chat = Prompt.of([{"role": "user", "content": "How many?"}])
    whole = "<|endoftext|>user: How many?\nassistant: We get 17+5=22, 22*2=44.\n"
    one, several = reward.grade([(chat, (" We get 17+5=22, 22*2=44. ",)), (chat, (" We get 17+5=22,", " 22*2=44. "))])
    [expected] = by_transformers(model, tokenizer, whole)
    assert one.scores == pytest.approx((expected,), abs=1e-5)
    beginning = tokenizer("<|endoftext|>user: How many?\nassistant: We get 17+5=22, 2")["input_ids"][:-1]
    with torch.no_grad():
        first = model(torch.tensor([beginning])).logits.item()
    assert several.scores == pytest.approx((first, expected), abs=1e-5)
    [inside] = reward._encode(chat, (" We get 17", "+5=22"))
    assert tokenizer.decode(inside.ids[: inside.ends[0] + 1]).endswith("assistant: We get 17")
    begun = Prompt.of([*chat.chat(), {"role": "assistant", "content": "We get"}])
    [gone_on] = reward.grade([(begun, (" 17+5=22, 22*2=44.",))])
    assert gone_on.scores == pytest.approx((expected,), abs=1e-5)


def test_several_labels_are_the_odds_of_one(tokenizer: Any) -> None:
    model = llama(labels=3)
    with pytest.raises(ModelError, match=r"(?s)r has 3 labels: 0 \(LABEL_0\), .*fix: say which .*label=\.\.\."):
        HFRewardModel(model, tokenizer, "r")
    with pytest.raises(ModelError, match=r"(?s)r has no label 3.*fix: give a label from 0 to 2"):
        HFRewardModel(model, tokenizer, "r", label=3)
    for label in range(3):
        [graded] = HFRewardModel(model, tokenizer, "r", label=label).grade([(PROMPT, (" 22",))])
        outputs = torch.tensor(by_transformers(model, tokenizer, f"{PROMPT.text} 22")).double()
        chance = torch.tensor(graded.scores).double().sigmoid()
        assert chance.item() == pytest.approx(outputs.softmax(-1)[label].item(), abs=1e-5)


def counted_flops(model: Any, tokens: int) -> float:
    """FLOPs that torch counts in transformers' own forward of one text, less those of keys that a causal mask hides.

    transformers scores every position, so all but one of its scores are left out too.
    """
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.arange(5, 5 + tokens)[None])
    config = model.config
    hidden_keys = tokens * (tokens - 1) / 2 * config.num_hidden_layers * 4 * config.hidden_size
    return counter.get_total_flops() - hidden_keys - (tokens - 1) * 2 * config.hidden_size


def test_the_bill_is_one_forward_of_every_text_with_the_weights_read_once(tokenizer: Any) -> None:
    model = llama()
    reward = HFRewardModel(model, tokenizer, "r")
    answers = [" 22", " We get 17+5=22. #### 22"]
    cost = bill(reward.grade([(PROMPT, (answer,)) for answer in answers]))
    lengths = [len(tokenizer(f"{PROMPT.text}{answer}")["input_ids"]) for answer in answers]
    assert cost.flops == pytest.approx(sum(counted_flops(model, length) for length in lengths), rel=1e-9)
    table = model.get_input_embeddings().weight.nbytes
    assert cost.bytes == sum(p.nbytes for p in model.parameters()) - table
    assert (cost.prompt_tokens, cost.new_tokens, cost.expert_loads) == (sum(lengths), 0, 0)


def test_the_bill_of_a_model_that_is_not_causal(tokenizer: Any) -> None:
    model = bert()
    [graded] = HFRewardModel(model, tokenizer, "r").grade([(PROMPT, (" 22",))])
    ids = tokenizer(f"{PROMPT.text} 22")["input_ids"]
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.tensor([ids]))
    every_row = (len(ids) - 1) * 2 * model.config.hidden_size**2  # the pooler is billed for every row, and runs once
    assert bill([graded]).flops == pytest.approx(counter.get_total_flops() + every_row, rel=1e-9)


def test_scores_of_steps_cost_their_products_only(tokenizer: Any) -> None:
    model = llama()
    reward = HFRewardModel(model, tokenizer, "r")
    whole, steps = (bill(reward.grade([(PROMPT, s)])) for s in (("".join(STEPS),), STEPS))
    assert steps.flops - whole.flops == 2 * 2 * model.config.hidden_size
    assert steps.bytes == whole.bytes


def test_equal_texts_are_run_once(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    reward = HFRewardModel(llama(), tokenizer, "r")
    rows: list[int] = []
    run = reward._run
    monkeypatch.setattr(reward, "_run", lambda texts: (rows.append(len(texts)), run(texts))[1])
    first, second = reward.grade([(PROMPT, (" 22",))] * 2)
    assert first.scores == second.scores
    assert rows == [1]
    assert bill([first, second]).prompt_tokens == bill([first]).prompt_tokens


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Any) -> Path:
    llama().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_a_folder_is_opened_once(folder: Path) -> None:
    reward = open_reward_model(str(folder))
    assert open_reward_model(str(folder)) is reward
    assert open_reward_model(reward) is reward
    assert reward.name == str(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    [graded] = reward.grade([(PROMPT, (" 22",))])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert graded.scores == pytest.approx(by_transformers(model, tokenizer, f"{PROMPT.text} 22"), abs=1e-5)


def test_what_is_no_reward_model_is_refused(tmp_path: Path, folder: Path, tokenizer: Any) -> None:
    with pytest.raises(ModelError, match=r"(?s)there is no model .*nowhere.*fix: give 'demo-verifier', a folder"):
        load_reward(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"(?s)'demo-verifer': no packaged one.*fix: did you mean 'demo-verifier'"):
        load_reward("demo-verifer")
    with pytest.raises(ModelError, match=r"(?s)'demo' is a language model, no reward model.*fix: give 'demo-verifier'"):
        load_reward("demo")
    with pytest.raises(ModelError, match=r"(?s)'demo-verifier' is a reward model.*fix: write scorer=RewardModelScorer"):
        load("demo-verifier")
    with pytest.raises(ModelError, match=r"(?s)cannot be loaded.*fix: leave out or change what was given: frog=1"):
        load_reward(folder, frog=1)
    tiny("llama").save_pretrained(tmp_path / "causal")
    tokenizer.save_pretrained(tmp_path / "causal")
    with pytest.raises(ModelError, match=r"(?s)is no reward model: it has no weights for score\.weight.*fix: give"):
        load_reward(tmp_path / "causal")


def test_weights_that_are_pickled_are_refused(folder: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"(?s)cannot be loaded: .*safetensors"):
        load_reward(folder)


def test_models_that_cannot_be_billed_or_repeat_are_refused(tokenizer: Any) -> None:
    with pytest.raises(ModelError, match=r"(?s)is in training mode.*fix: call model\.eval"):
        HFRewardModel(llama().train(), tokenizer, "r")
    sizes = {**SIZES, "vocab_size": 622, "intermediate_size": 16, "num_local_experts": 8, "num_labels": 1}
    experts = classifier(MixtralForSequenceClassification, MixtralConfig(**sizes))
    with pytest.raises(ModelError, match=r"(?s)r has experts.*fix: use a dense reward model"):
        HFRewardModel(experts, tokenizer, "r")


def test_texts_that_cannot_be_graded_are_refused(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    reward = HFRewardModel(llama(max_position_embeddings=40), tokenizer, "r")
    with pytest.raises(PromptError, match=r"(?s)with its answer has \d\d+ tokens, and r takes 40.*fix: shorten"):
        reward.grade([(PROMPT, (" 1" * 40,))])
    with pytest.raises(PromptError, match=r"(?s)token ids cannot be graded.*fix: pass the prompt as text"):
        reward.grade([(Prompt(token_ids=(5, 6)), ("7",))])
    with pytest.raises(PromptError, match=r"(?s)both empty.*fix: pass a prompt"):
        reward.grade([(Prompt.of(""), ("",))])
    with pytest.raises(ArgumentError, match=r"(?s)has no steps.*fix: pass it as one step"):
        reward.grade([(PROMPT, ())])
    with pytest.raises(PromptError, match=r"(?s)does not take messages of the roles system, assistant.*no system"):
        reward.grade([(Prompt.of([{"role": "system", "content": "x"}]), ("7",))])
    chat = Prompt.of([{"role": "user", "content": "x"}])
    with pytest.raises(PromptError, match=r"(?s)changes the answer.*fix: grade whole answers"):
        reward.grade([(chat, (" ", " "))])
    monkeypatch.setattr(tokenizer, "chat_template", None)
    with pytest.raises(PromptError, match=r"(?s)tokenizer of r has no chat template.*fix: pass the prompt as one"):
        reward.grade([(chat, ("7",))])


def test_a_slow_tokenizer_scores_whole_answers_only() -> None:
    class Slow:
        is_fast = False

        def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": [5 + ord(c) % 90 for c in text]}

    reward = object.__new__(HFRewardModel)
    reward.model, reward.tokenizer, reward.name, reward.label = llama(), Slow(), "r", 0
    reward.causal, reward.context_length = True, 512
    with pytest.raises(CapabilityError, match=r"(?s)has a slow tokenizer.*fix: grade whole answers"):
        reward._encode(PROMPT, STEPS)
    assert reward._encode(PROMPT, ("7",))[0].ends == (len(str(PROMPT.text)),)
