"""Training of the text models: windows as a function of the step, and exact resumption."""

from collections import Counter

import pytest
import torch

from tools.demo_model.train import Recipe, Run, train
from tools.demo_text.batches import TextStage, TextStream, encode, windows
from tools.demo_text.held_out import blocks, mean_loss, plain_log_probs
from tools.demo_text.tokenizer import train_tokenizer
from tools.demo_text.train import RECIPE

TEXTS = [f"Return the {a} of {b}.\n\nRaises {b}Error if {a} < {n}." for n, a in enumerate("abc") for b in "xyz"]
STAGES = (TextStage("one", 3, 16), TextStage("two", 3, 16))
TINY = Recipe("mixtral", STAGES, batch=4, warm_up=2)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, vocabulary=300)


@pytest.fixture(scope="module")
def tokenizer_folder(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return folder


def test_tokenizer_round_trip_and_end(tokenizer):
    for text in (*TEXTS, "é \t x\n\n"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert 258 < len(tokenizer) <= 300  # bytes, two special tokens, and as many merges as there are
    assert encode(["a"], tokenizer)[0][-1] == tokenizer.eos_token_id


def test_a_pass_holds_every_document_once_in_an_order_of_its_own(tokenizer):
    documents = encode(TEXTS, tokenizer)
    total = Counter(token for document in documents for token in document)
    zero, one = windows(documents, 0, 0, 8), windows(documents, 1, 0, 8)
    for found in (zero, one):
        missing = total - Counter(found.flatten().tolist())
        assert sum(missing.values()) == sum(total.values()) % 8
    assert zero.shape == one.shape == (sum(total.values()) // 8, 8)
    assert not torch.equal(zero, one)
    assert not torch.equal(zero, windows(documents, 0, 1, 8))
    assert torch.equal(zero, windows(documents, 0, 0, 8))


def test_batches_are_a_function_of_the_step(tokenizer):
    stream = TextStream(TEXTS)
    whole = [(stage.name, batch.tokens) for stage, batch in stream(STAGES, 0, 0, 4, tokenizer)]
    assert [name for name, _ in whole] == ["one"] * 3 + ["two"] * 3
    for first in (1, 3, 5, 6):
        rest = list(stream(STAGES, first, 0, 4, tokenizer))
        assert len(rest) == 6 - first
        assert all(torch.equal(b.tokens, tokens) for (_, b), (_, tokens) in zip(rest, whole[first:], strict=True))
    for _, batch in stream(STAGES, 0, 0, 4, tokenizer):
        assert batch.tokens.shape == (4, 16)
        assert batch.weights.eq(1).all()


def test_passes_follow_each_other(tokenizer):
    documents = encode(TEXTS, tokenizer)
    count = len(windows(documents, 0, 0, 16))
    a_pass = count // 4  # steps
    [*_, (_, last)] = TextStream(TEXTS)((TextStage("one", a_pass + 1, 16),), 0, 0, 4, tokenizer)
    assert torch.equal(last.tokens, windows(documents, 1, 0, 16)[:4])


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_a_resumed_run_equals_an_uninterrupted_one(tokenizer_folder, tmp_path, scale):
    whole = Run(TINY, 0, scale, tokenizer_folder)
    train(whole, tmp_path / "whole", 6, batches=TextStream(TEXTS))
    train(Run(TINY, 0, scale, tokenizer_folder), tmp_path / "parts", 4, batches=TextStream(TEXTS))
    resumed = Run(TINY, 0, scale, tokenizer_folder)
    resumed.load(tmp_path / "parts" / "checkpoint.pt")
    train(resumed, tmp_path / "parts", 6, batches=TextStream(TEXTS))
    assert (resumed.step, resumed.tokens) == (whole.step, whole.tokens) == (6, 6 * 64)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert torch.equal(whole.noise.get_state(), resumed.noise.get_state())


def test_the_rate_falls_over_the_last_stage():
    assert RECIPE.factor(RECIPE.stages[0].steps - 1) == 1.0
    assert RECIPE.factor(RECIPE.steps - 1) == 0.02


def test_blocks_score_every_token_once(tokenizer):
    found = blocks(TEXTS, tokenizer, length=8)
    assert all(block.ids[0] == tokenizer.eos_token_id and 2 <= len(block.ids) <= 8 for block in found)
    for number, document in enumerate(encode(TEXTS, tokenizer)):
        assert [t for block in found if block.document == number for t in block.ids[1:]] == document


def test_plain_loss_of_an_untrained_model_is_that_of_a_sum_over_the_vocabulary(tokenizer, tokenizer_folder):
    model = Run(TINY, 0, 0.0, tokenizer_folder).model.eval()
    found = blocks(TEXTS, tokenizer)[:2]
    log_probs = plain_log_probs(model, found)
    logits = model(input_ids=torch.tensor([found[1].ids])).logits[0].double()
    expected = [logits[t, i] - logits[t].logsumexp(-1) for t, i in enumerate(found[1].ids[1:])]
    torch.testing.assert_close(torch.tensor(log_probs[1]).double(), torch.stack(expected), atol=1e-5, rtol=0)
    assert mean_loss([[-1.0, -2.0], [-6.0]]) == 3.0
