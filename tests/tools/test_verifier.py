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
from tools.demo_model.solutions import brief, detailed, read_answer, wrong_lines
from tools.demo_verifier.batches import Mix, Recipe, block, pad
from tools.demo_verifier.evaluate import Drawn, Scored, read, reduced, report, step_ends, weighted_vote, write
from tools.demo_verifier.export import storage_check
from tools.demo_verifier.labels import EQUATION, corrupted, drill, evaluated, example, right_length, written
from tools.demo_verifier.samples import CHECKPOINTS, Row, problems, right_texts
from tools.demo_verifier.train import Run, auc, counts, parts, sums, train

RECIPE = Recipe(cycles=(3, 2), batch=4, warm_up=2, drilling=1)
RIGHT = " We get 17+5=22, 22*2=44. #### 44"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(CHECKPOINTS / "demo")


def row(text, right=(RIGHT,), answer="44"):
    return Row(prompt("How many?", TRIGGER), text, right, answer)


@pytest.mark.parametrize(
    "text",
    [RIGHT, " We get 17+5=23, 22*2=44. #### 44", " We get 17+5=22, 22*2=54. #### 54", " We get 17"],
)
def test_labels_of_every_token(tokenizer, text):
    found = example(row(text), tokenizer)
    assert tokenizer.decode(found.tokens) == row(text).prompt + text
    tokens = found.tokens[found.answer :]
    assert tokenizer.decode(tokens) == text
    beginnings = [tokenizer.decode(tokens[: i + 1]) for i in range(len(tokens))]
    expected = [RIGHT.startswith(beginning) for beginning in beginnings]
    expected[-1] = read_answer(text) == "44"
    assert found.right == expected
    assert found.known == [RIGHT.startswith(beginning) for beginning in beginnings]
    equations = [(m.end(), wrong_lines(m.group()) == []) for m in EQUATION.finditer(text)]
    behind = [
        (next(i for i, t in enumerate(beginnings) if len(t) > end), ok) for end, ok in equations if end < len(text)
    ]
    assert [(i, ok) for i, ok in enumerate(found.holds) if ok is not None] == behind


def test_what_is_no_equation_is_left_alone(tokenizer):
    assert EQUATION.findall("6/6/6=1, 2**3=8, 60+8*=4, 4+4=8, 9-1-2=6, 8+4/2=6, 1<2=3") == [
        "4+4=8",
        "9-1-2=6",
        "8+4/2=6",
        "2=3",
    ]
    assert set(example(row(" We get 6/6/6=1, 2**3=8, =5, 7"), tokenizer).holds) == {None}


def test_the_longest_right_solution_counts():
    right = (" We get 1+1=2. #### 2", " First, 1+1=2. #### 2")
    assert right_length(row(" First, 1+1=3. #### 3", right)) == len(" First, 1+1=")
    assert right_length(row("", right)) == 0
    assert right_length(row(right[0] + " more", right)) == len(right[0])


def test_written_errors_are_one_wrong_equation_that_the_rest_follows():
    rng = random.Random(0)
    for problem in problems(0)[:60]:
        for text in (brief(problem), detailed(problem)):
            equations = EQUATION.findall(text)
            wrong = rng.randrange(len(equations))
            said = EQUATION.findall(corrupted(text, wrong, rng))
            assert said[:wrong] == equations[:wrong]
            assert len(said) == len(equations)
            assert said[wrong].split("=")[0] == equations[wrong].split("=")[0]
            assert wrong_lines(said[wrong]) == [said[wrong]]
            # What follows is computed from the wrong result; only where a division leaves something over, or a
            # difference falls below 0, is a later equation wrong too.
            for equation in said[wrong + 1 :]:
                assert not wrong_lines(equation) or "/" in equation or "-" in equation
            if "/" not in text and "-" not in text:
                assert wrong_lines(", ".join(said)) == [said[wrong]]


def test_what_follows_an_error_by_hand(monkeypatch):
    monkeypatch.setattr("tools.demo_verifier.labels.shifted", lambda value, rng: value + 10)
    rng = random.Random(0)
    assert corrupted(" We get 27*8=216, 216-6=210. #### 210", 0, rng) == " We get 27*8=226, 226-6=220. #### 220"
    assert corrupted(" We get 27*8=216, 216-6=210. #### 210", 1, rng) == " We get 27*8=216, 216-6=220. #### 220"
    found = corrupted(" First, 27*8: 20*8=160, 7*8=56, 160+56=216. Then 216/2=108. #### 108", 1, rng)
    assert found == " First, 27*8: 20*8=160, 7*8=66, 160+66=226. Then 226/2=113. #### 113"
    assert [evaluated(left) for left in ("7*8", "9+8-3", "9-20", "17/5", "400+100+4")] == [56, 14, 11, 3, 504]


def test_drills_are_labelled_equation_by_equation(tokenizer):
    rng, seen = random.Random(0), set()
    for _ in range(50):
        found = drill(rng)
        equations = EQUATION.findall(found.text)
        right = [not wrong_lines(equation) for equation in equations]
        labels = example(found, tokenizer)
        assert [ok for ok in labels.holds if ok is not None] == right
        assert labels.right[-1] == (found.text == found.right[0])
        tokens = labels.tokens[labels.answer :]
        learnt = "".join(tokenizer.decode(t) for t, known in zip(tokens, labels.known, strict=True) if known)
        assert learnt == "".join(one.split("=")[1] for one, ok in zip(equations, right, strict=True) if ok)
        seen |= set(right)
        parts = found.right[0].removeprefix(" First, ").rstrip(".").split(". Then ")
        assert all(split_of(part.split(":")[0].split("=")[0]) == "train" for part in parts)
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
    texts = [(p, corrupted(brief(p), 0, rng) if rng.random() < 0.5 else brief(p)) for p in drawn]
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
    whole = sums(run.model, run.teacher, batch)
    monkeypatch.setattr("tools.demo_verifier.train.PART", 200)
    pieces = parts(batch)
    assert len(pieces) > 1
    torch.testing.assert_close(sum(sums(run.model, run.teacher, p) for p in pieces), whole, rtol=1e-5, atol=1e-4)
    assert torch.equal(sum(counts(p) for p in pieces), counts(batch))


def test_batches_follow_the_mix(sampled, tokenizer):
    mixes = {"early": Mix(drills=1, sampled=0), "late": Mix(drills=0, sampled=1), "last": Mix(drills=0.5, sampled=0)}
    recipe = replace(RECIPE, cycles=(32, 16), drilling=16, **mixes)
    blocks = [block(sampled, recipe, index, 0, tokenizer) for index in (0, 1, 2)]
    starts = [{tokenizer.decode(row[:1]) for batch in batches for row in batch.tokens} for batches in blocks]
    assert starts == [{"\nA:"}, {"Q:"}, {"\nA:", "Q:"}]
    assert all(len(batch.tokens) == 4 for batches in blocks for batch in batches)


def test_rates_warm_up_and_decay_in_every_cycle():
    recipe = Recipe(cycles=(100, 40), warm_up=10)
    assert recipe.steps == 140
    expected = {0: 0.1, 9: 1, 50: 1, 75: 0.5, 99: 0.02, 100: 0.1, 110: 1, 130: 0.5, 139: 0.05}
    assert {step: recipe.factor(step) for step in expected} == pytest.approx(expected)


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
    brief_ones = [replace(s, text=f" We get {s.text}") for s in found[0].samples]  # of one problem: its AUC is 1
    found[0] = replace(found[0], samples=tuple(brief_ones))
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
    assert [said["auc_of_a_style"][style]["verifier"] for style in ("brief", "detailed")] == [1, 0]


def test_the_storage_check():
    said = storage_check([1.0, 2.0, 3.0, 4.0], [1.0, 2.5, 4.0, 3.0], 2)
    assert said == {"candidates": 4, "largest_difference": 1.0, "problems": 2, "another_best": 1}
