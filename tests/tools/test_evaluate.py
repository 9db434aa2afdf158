"""Sampling against transformers' generate; statistics against scipy; the packaged problems."""

import json
from pathlib import Path

import pytest
import torch
from scipy.stats import binomtest, chisquare

from tools.demo_model import sampling
from tools.demo_model.evaluate import DATA, gates, mcnemar, styles, vote, wilson
from tools.demo_model.model import build
from tools.demo_model.problems_file import COUNTS, lines
from tools.demo_model.sampling import Sample, continuations

PROMPTS = ["Q: Tom has 17 apples.\nA:", "Q: Hi\nA:", "Q: Anna earns $10 in May and $20 in June. How many?\nA:", "A:"]


@pytest.fixture(scope="module")
def model(small_tokenizer):
    torch.manual_seed(0)
    model = build("mixtral", len(small_tokenizer), small_tokenizer.pad_token_id, small_tokenizer.eos_token_id)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "embed" not in name:
            torch.nn.init.normal_(parameter, std=0.2)  # freshly initialised models repeat one token
    return model.eval().requires_grad_(False)


@pytest.fixture
def ended(small_tokenizer, model, monkeypatch):
    """Answers of at most 12 tokens, and an end token that greedy decoding does reach."""
    monkeypatch.setattr(sampling, "LONGEST_ANSWER", 12)
    inputs = small_tokenizer(PROMPTS[0], return_tensors="pt")
    found = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    before = small_tokenizer.eos_token_id
    small_tokenizer.eos_token_id = found[4].item()
    yield small_tokenizer
    small_tokenizer.eos_token_id = before


def reference(model, tokenizer, prompt):
    """(text, total log-probability) by generate and one forward of the whole text."""
    inputs = tokenizer(prompt, return_tensors="pt")
    start = inputs["input_ids"].shape[1]
    end = tokenizer.eos_token_id
    ids = model.generate(**inputs, max_new_tokens=12, do_sample=False, eos_token_id=end)
    with torch.no_grad():
        log_probs = model(input_ids=ids).logits[0].double().log_softmax(-1)
    total = log_probs[start - 1 : -1].gather(-1, ids[0, start:, None]).sum().item()
    said = [token for token in ids[0, start:].tolist() if token != end]
    return tokenizer.decode(said, skip_special_tokens=True), total


@pytest.mark.parametrize("crowded", [0.0, 0.8, 1.0])
@pytest.mark.parametrize("room", [1, 64])
def test_greedy_equals_generate(ended, model, monkeypatch, crowded, room):
    monkeypatch.setattr(sampling, "CROWDED", crowded)
    monkeypatch.setattr(sampling, "ROOM", room)
    for found, prompt in zip(continuations(model, ended, PROMPTS, rows=3), PROMPTS, strict=True):
        text, total = reference(model, ended, prompt)
        assert found[0].text == text
        assert found[0].log_prob == pytest.approx(total, abs=1e-4)


def test_cold_copies_are_greedy_and_equal_seeds_are_equal(ended, model):
    greedy = continuations(model, ended, PROMPTS)
    cold = continuations(model, ended, PROMPTS, copies=3, temperature=1e-4)
    assert [[s.text for s in copies] for copies in cold] == [[copies[0].text] * 3 for copies in greedy]
    one, same, other = (continuations(model, ended, PROMPTS, copies=3, temperature=1.0, seed=s) for s in (1, 1, 2))
    assert one == same
    assert one != other
    assert len({s.text for s in one[0]}) > 1


def test_samples_follow_the_tempered_distribution(small_tokenizer, model, monkeypatch):
    # 4,000 fixed draws of one token at T = 0.7; a right sampler fails at one seed in a thousand.
    monkeypatch.setattr(sampling, "LONGEST_ANSWER", 1)
    monkeypatch.setattr(model.model.norm.weight, "data", 10 * model.model.norm.weight)  # far from uniform
    prompt = PROMPTS[0]
    drawn = continuations(model, small_tokenizer, [prompt], copies=4000, temperature=0.7, seed=0)[0]
    with torch.no_grad():
        logits = model(**small_tokenizer(prompt, return_tensors="pt")).logits[0, -1]
    expected = (logits / 0.7).double().softmax(-1)
    log_probs = logits.double().log_softmax(-1)
    counts = torch.zeros(len(expected), dtype=torch.double)
    for sample in drawn:
        counts[(log_probs - sample.log_prob).abs().argmin()] += 1
    likely = expected > 20 / 4000
    seen = torch.cat((counts[likely], counts[~likely].sum()[None]))
    shares = torch.cat((expected[likely], expected[~likely].sum()[None]))
    assert likely.sum() > 3
    assert chisquare(seen.numpy(), (4000 * shares).numpy()).pvalue > 0.001


def said(answer: str, log_prob: float) -> Sample:
    return Sample(f"so #### {answer}" if answer else "lost", log_prob)


@pytest.mark.parametrize(
    ("samples", "winner"),
    [
        ([said("1", -1), said("2", -5), said("2", -5)], "2"),
        ([said("1", -5), said("2", -1), said("1", -5), said("2", -1)], "2"),  # tie: more probability
        ([said("1", -2), said("2", -2)], "1"),  # tie in both: first seen
        ([said("", 0), said("", 0), said("7", -9)], "7"),  # no answer is no vote
        ([said("", 0)], None),
    ],
)
def test_vote(samples, winner):
    assert vote(samples) == winner


@pytest.mark.parametrize(("right", "count"), [(0, 10), (10, 10), (1300, 2000), (17, 40)])
def test_wilson_interval_equals_scipy(right, count):
    interval = binomtest(right, count).proportion_ci(method="wilson")
    assert wilson(right, count) == [round(100 * interval.low, 2), round(100 * interval.high, 2)]


def test_mcnemar_by_hand():
    first = [True] * 3 + [False] * 9 + [True] * 50
    second = [False] * 3 + [True] * 9 + [True] * 50
    # P(at most 3 or at least 9 of 12 fair coins): 2 * (1 + 12 + 66 + 220) / 4096
    assert mcnemar(first, second) == pytest.approx(2 * 299 / 4096)
    assert mcnemar(first, first) == 1.0


def test_gates():
    report = {
        "greedy": {"accuracy": 60.0, "interval": [57.8, 62.1]},
        "direct": {"accuracy": 8.0, "interval": [6.9, 9.3]},
        "vote_8": {"accuracy": 64.0, "mcnemar_p_against_greedy": 1e-4},
        "any_of_8": {"accuracy": 75.0},
    }
    assert all(gates(report).values())
    for path, value in (
        (("greedy", "accuracy"), 49.9),
        (("vote_8", "accuracy"), 63.9),
        (("vote_8", "mcnemar_p_against_greedy"), 0.02),
        (("any_of_8", "accuracy"), 74.9),
        (("direct", "interval"), [56.0, 58.0]),
    ):
        changed = json.loads(json.dumps(report))
        changed[path[0]][path[1]] = value
        assert not all(gates(changed).values()), path


@pytest.mark.parametrize("split", COUNTS)
def test_packaged_problems_are_the_generators(split):
    written = (Path(__file__).parents[2] / DATA / f"{split}.jsonl").read_text().splitlines()
    assert len(written) >= 2000
    assert written == lines(split)


def test_styles_by_hand():
    samples = [Sample(" We get 1. #### 1", 0.0), Sample(" We get 2. #### 2", 0.0), Sample(" First, 3. #### 3", 0.0)]
    found = styles(samples, [True, False, True])
    assert found == {"terse_share": 66.67, "terse_accuracy": 50.0, "detailed_accuracy": 100.0}
    assert styles(samples[:2], [True, True])["detailed_accuracy"] is None
