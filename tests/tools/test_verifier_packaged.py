"""The committed verifier: its size, that it loads, that the library scores as plain transformers; its card."""

import json
import random
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tokenscale.core.prompt import Prompt
from tokenscale.models.reward import load_reward
from tokenscale.sequence_level.scorers.reward import split_steps
from tools.demo_model.documents import TRIGGER, prompt
from tools.demo_model.evaluate import load_model as load_demo
from tools.demo_model.evaluate import load_problems
from tools.demo_model.problems import HARD, draw_from_split
from tools.demo_model.sampling import continuations
from tools.demo_model.solutions import brief, detailed, read_answer
from tools.demo_verifier.batches import Recipe
from tools.demo_verifier.card import CARD, card
from tools.demo_verifier.evaluate import STEP, load_model, step_scores
from tools.demo_verifier.labels import EQUATION, corrupted
from tools.demo_verifier.results import RESULTS
from tools.demo_verifier.samples import CHECKPOINTS, COPIES, PROBLEMS, SHARDS
from tools.demo_verifier.train import auc

FOLDER = Path(__file__).parents[2] / CARD.parent


@pytest.fixture(scope="module")
def results():
    return json.loads(RESULTS.read_text())


@pytest.fixture(scope="module")
def solutions():
    """Right solutions of held-out problems in both styles, each with a twin in which one equation is wrong."""
    rng, found = random.Random(0), []
    for _ in range(40):
        problem = draw_from_split("test", HARD, rng)
        for text in (brief(problem), detailed(problem)):
            wrong = corrupted(text, rng.randrange(len(EQUATION.findall(text))), rng)
            found += [(prompt(problem.question), text, wrong)]
    return found


def test_it_is_small_and_loads_offline():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 380_000
    model = AutoModelForSequenceClassification.from_pretrained(FOLDER, local_files_only=True)
    assert (model.dtype, model.num_labels) == (torch.float16, 1)
    assert len(AutoTokenizer.from_pretrained(FOLDER, local_files_only=True)) == model.config.vocab_size
    assert load_reward("demo-verifier").model.dtype == torch.float32


def test_the_library_scores_as_plain_transformers(solutions):
    reward = load_reward("demo-verifier")
    assert reward.causal
    texts = [(question, answer) for question, *answers in solutions[:20] for answer in answers]
    graded = reward.grade([(Prompt.of(question), split_steps(answer, STEP)) for question, answer in texts])
    expected = step_scores(*load_model(FOLDER), texts)
    for (_, answer), one, scores in zip(texts, graded, expected, strict=True):
        assert len(scores) == answer.count(STEP) + 1
        assert one.scores == pytest.approx(scores, abs=1e-4)


@pytest.mark.slow
def test_it_tells_right_samples_from_wrong_ones():
    """240 samples of the demo model; an AUC of 0.9 has a standard error of 0.02 there."""
    problems = load_problems("validation", 60)
    model, tokenizer = load_demo(CHECKPOINTS / "demo", None)
    prompts = [prompt(p["question"], TRIGGER) for p in problems]
    drawn = continuations(model, tokenizer, prompts, copies=4, temperature=0.7, seed=1)
    graded = [(p, s.text) for p, samples in zip(problems, drawn, strict=True) for s in samples]
    scores = [s[-1] for s in step_scores(*load_model(FOLDER), [(prompt(p["question"]), text) for p, text in graded])]
    right = [read_answer(text) == p["answer"] for p, text in graded]
    sides = ([s for s, ok in zip(scores, right, strict=True) if ok == side] for side in (True, False))
    assert auc(*sides) > 0.8


def test_the_card_says_what_was_measured(results):
    assert (FOLDER / "README.md").read_text() == card(results)


def test_the_packaged_model_is_of_this_recipe(results):
    training = results["training"]
    assert training["recipe"] == json.loads(json.dumps(asdict(Recipe())))
    assert training["steps"] == Recipe().steps
    assert results["samples"]["count"] == training["samples"] == SHARDS * PROBLEMS * COPIES
    assert results["validation"]["problems"] == results["test"]["problems"] == 2000
    assert results["float16"]["candidates"] == 16_000
