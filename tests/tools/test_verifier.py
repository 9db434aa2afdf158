"""The verifier's making: labels of every token, fresh problems, a training that can be resumed, its figures."""

import random
from dataclasses import replace

import pytest
import torch
from scipy.stats import mannwhitneyu
from transformers import AutoTokenizer

from tools.demo_model.documents import TRIGGER, prompt
from tools.demo_model.evaluate import load_problems
from tools.demo_model.problems import split_of
from tools.demo_model.sampling import Sample
from tools.demo_model.solutions import brief, read_answer, wrong_lines
from tools.demo_verifier.evaluate import Drawn, Scored, read, reduced, report, step_ends, weighted_vote, write
from tools.demo_verifier.export import storage_check
from tools.demo_verifier.labels import EQUATION, brief_with_error, drill, example, right_length, written
from tools.demo_verifier.samples import CHECKPOINTS, Row, problems, right_texts
from tools.demo_verifier.train import Mix, Recipe, Run, auc, block, counts, pad, parts, sums, train

RECIPE = Recipe(steps=4, batch=4, warm_up=2, drilling=0.5)
RIGHT = " We get 17+5=22, 22*2=44. #### 44"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(CHECKPOINTS / "demo")


def row(text, right=(RIGHT,), answer="44"):
    return Row(prompt("How many?", TRIGGER), text, right, answer)


@pytest.mark.parametrize(
    ("text", "answer", "marks"),
    [
        (RIGHT, "44", "++++++++++++++"),
        (" We get 17+5=23, 22*2=44. #### 44", "44", None),
        (" We get 17+5=22, 22*2=54. #### 54", "44", None),
        (" We get 17", "44", None),
    ],
)
def test_labels_of_every_token(tokenizer, text, answer, marks):
    found = example(row(text, answer=answer), tokenizer)
    assert tokenizer.decode(found.tokens) == row(text).prompt + text
    tokens = found.tokens[found.answer :]
    assert tokenizer.decode(tokens) == text
    beginnings = [tokenizer.decode(tokens[: i + 1]) for i in range(len(tokens))]
    expected = [RIGHT.startswith(beginning) for beginning in beginnings]
    expected[-1] = read_answer(text) == answer
    assert found.right == expected
    if marks:
        assert all(found.right)
    assert found.known == [RIGHT.startswith(beginning) for beginning in beginnings]
    equations = [(m.end(), wrong_lines(m.group()) == []) for m in EQUATION.finditer(text)]
    behind = [
        (next(i for i, t in enumerate(beginnings) if len(t) > end), ok) for end, ok in equations if end < len(text)
    ]
    assert [(i, ok) for i, ok in enumerate(found.holds) if ok is not None] == behind


def test_the_longest_right_solution_counts():
    right = (" We get 1+1=2. #### 2", " First, 1+1=2. #### 2")
    assert right_length(row(" First, 1+1=3. #### 3", right)) == len(" First, 1+1=")
    assert right_length(row("", right)) == 0
    assert right_length(row(right[0] + " more", right)) == len(right[0])


def test_written_errors_are_one_wrong_line_each():
    rng = random.Random(0)
    for shard in range(2):
        for problem in problems(shard)[:40]:
            assert brief_with_error(problem, None, rng) == brief(problem)
            for wrong in range(problem.operations):
                text = brief_with_error(problem, wrong, rng)
                lines = text.removeprefix(" We get ").split(". ####")[0].split(", ")
                assert len(lines) == problem.operations
                places = [place for place, line in enumerate(lines) if wrong_lines(line)]
                # A division of a wrong total need not come out even, and is then no equation either.
                assert places == [wrong] or "/" in text
                assert wrong in places


def test_drills_are_labelled_equation_by_equation(tokenizer):
    rng, seen = random.Random(0), set()
    for _ in range(50):
        found = drill(rng)
        lines = found.text.removeprefix(" We get ").rstrip(".").split(", ")
        right = [not wrong_lines(line) for line in lines]
        labels = example(found, tokenizer)
        assert [ok for ok in labels.holds if ok is not None] == right
        assert labels.right[-1] == all(right)
        tokens = labels.tokens[labels.answer :]
        learnt = "".join(tokenizer.decode(t) for t, known in zip(tokens, labels.known, strict=True) if known)
        assert learnt == "".join(line.split("=")[1] for line, ok in zip(lines, right, strict=True) if ok)
        seen |= set(right)
        assert all(split_of(line.split("=")[0]) == "train" for line in lines)
    assert seen == {False, True}


def test_no_problem_is_of_a_held_out_split():
    held = {p["question"] for split in ("validation", "test") for p in load_problems(split, None)}
    drawn = [problem for shard in range(3) for problem in problems(shard)]
    assert {problem.split for problem in drawn} == {"train"}
    assert not held & {problem.question for problem in drawn}
    rng = random.Random(0)
    prompts = {written(rng).prompt for _ in range(300)}
    assert not any(f"Q: {question}\n" in prompt for prompt in prompts for question in held)


@pytest.fixture(scope="module")
def sampled():
    drawn = problems(0)[:12]
    rng = random.Random(1)
    texts = [(p, brief_with_error(p, 0 if rng.random() < 0.5 else None, rng)) for p in drawn]
    return [Row(prompt(p.question, TRIGGER), text, right_texts(p), str(p.answer)) for p, text in texts]


def test_a_bare_prompt_ends_where_the_answer_begins(sampled):
    assert all(one.bare().prompt.endswith("\nA:") for one in sampled)
    assert sampled[0].prompt == sampled[0].bare().prompt + TRIGGER


def test_a_resumed_run_equals_an_uninterrupted_one(sampled, tmp_path, monkeypatch):
    monkeypatch.setattr("tools.demo_verifier.train.HELD_BACK", 4)
    whole = Run(RECIPE, 0)
    train(whole, sampled, tmp_path, RECIPE.steps)
    first = Run(RECIPE, 0)
    train(first, sampled, tmp_path, 2)
    resumed = Run(RECIPE, 0)
    resumed.load(tmp_path / "checkpoint.pt")
    assert resumed.step == 2
    train(resumed, sampled, tmp_path, RECIPE.steps)
    assert (resumed.step, resumed.tokens) == (whole.step, whole.tokens)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    for seed, recipe in ((1, RECIPE), (0, replace(RECIPE, rate=1.0))):
        with pytest.raises(ValueError, match=r"of another seed or recipe: train from the start"):
            Run(recipe, seed).load(tmp_path / "checkpoint.pt")


def test_losses_in_parts_are_those_of_the_whole(sampled, tokenizer, monkeypatch):
    run = Run(RECIPE, 0)
    batch = pad([example(one, tokenizer) for one in sampled], tokenizer.pad_token_id)
    whole = sums(run.model, run.equations, batch)
    monkeypatch.setattr("tools.demo_verifier.train.PART", 200)
    pieces = parts(batch)
    assert len(pieces) > 1
    torch.testing.assert_close(sum(sums(run.model, run.equations, p) for p in pieces), whole, rtol=1e-5, atol=1e-4)
    assert torch.equal(sum(counts(p) for p in pieces), counts(batch))


def test_batches_follow_the_mix(sampled, tokenizer):
    recipe = replace(RECIPE, batch=4, steps=64, early=Mix(drills=1, sampled=0), late=Mix(drills=0, sampled=1))
    early, late = (block(sampled, recipe, index, 0, tokenizer) for index in (0, 2))
    starts = [{tokenizer.decode(row[:1]) for batch in batches for row in batch.tokens} for batches in (early, late)]
    assert starts == [{"\nA:"}, {"Q:"}]
    assert all(len(batch.tokens) == 4 for batch in early + late)


def test_padding_has_no_label_and_no_target(sampled, tokenizer):
    batch = pad([example(one, tokenizer) for one in sampled], tokenizer.pad_token_id)
    padding = batch.tokens == tokenizer.pad_token_id
    assert (batch.labels[padding] == -1).all()
    assert (batch.targets[padding] == -100).all()
    known = batch.targets[:, :-1] >= 0
    assert torch.equal(batch.targets[:, :-1][known], batch.tokens[:, 1:][known])


def test_auc_is_the_mann_whitney_statistic():
    rng = random.Random(0)
    for _ in range(20):
        right, wrong = ([rng.randint(0, 9) / 2 for _ in range(rng.randint(1, 30))] for _ in range(2))
        expected = mannwhitneyu(right, wrong).statistic / (len(right) * len(wrong))
        assert auc(right, wrong) == pytest.approx(expected)


def test_steps_end_in_the_token_of_their_comma(tokenizer):
    before = "A:"
    encoding = tokenizer(before + RIGHT, return_offsets_mapping=True)
    ends = step_ends([end for _, end in encoding["offset_mapping"]], len(before), RIGHT)
    assert [tokenizer.decode(encoding["input_ids"][: end + 1]) for end in ends] == [
        "A: We get 17+5=22, ",
        before + RIGHT,
    ]


def test_reductions_and_the_weighted_vote():
    assert reduced([0.0, 0.0], "prod") == 0.25
    assert [reduced([0.0, -50.0, 50.0], how) for how in ("last", "min")] == pytest.approx([1, 0], abs=1e-12)
    samples = tuple(Sample(text, -1.0) for text in (" #### 1", " #### 2", " #### 2", "none"))
    assert weighted_vote(samples, [0.9, 0.4, 0.4, 5.0]) == "1"
    assert weighted_vote(samples, [0.7, 0.4, 0.4, 5.0]) == "2"
    assert weighted_vote(samples[3:], [1.0]) is None


def drawn(numbers, answer):
    samples = tuple(Sample(f" #### {n}", -float(place)) for place, n in enumerate(numbers))
    return Drawn("q", answer, samples[0], samples)


def test_the_report_by_hand(tmp_path):
    found = [drawn([1, 2, 2, 2, 3, 4, 5, 6], "3"), drawn([7] * 7 + [8], "7")]
    write(found, tmp_path / "candidates.jsonl")
    assert read(tmp_path / "candidates.jsonl") == found
    steps = [[[0.0]] * 4 + [[2.0]] + [[0.0]] * 3, [[3.0]] * 7 + [[4.0]]]
    said = report(Scored(found, steps, [[-float(i) for i in range(8)]] * 2))
    shares = {name: arm["accuracy"] for name, arm in said["arms"].items()}
    assert shares["best_by_verifier"] == shares["best_by_steps_last"] == 50
    assert (shares["greedy"], shares["vote_8"], shares["vote_weighted_by_verifier"], shares["any_of_8"]) == (
        50,
        50,
        50,
        100,
    )
    assert said["samples_right"] == 50
    assert said["auc"]["verifier"] == round((7 * 7 + 7) / 64, 4)


def test_the_storage_check():
    said = storage_check([1.0, 2.0, 3.0, 4.0], [1.0, 2.5, 4.0, 3.0], 2)
    assert said == {"candidates": 4, "largest_difference": 1.0, "problems": 2, "another_best": 1}
