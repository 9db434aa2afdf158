"""Problems, their sample, prompts and grades."""

import json
from importlib import resources

import pytest

from tokenscale.core.errors import RecipeError
from tokenscale.experiments.tasks import BUILT_IN, Arithmetic, digest, draw, find_task, prompts, reported
from tokenscale.models.toy import ToyModel
from tokenscale.recipe_sections import TASKS, PromptSection, TaskSection

TASK = Arithmetic()
PINNED = ["test-1240", "test-0372", "test-0380"]


def test_recipes_know_exactly_the_built_in_tasks():
    sizes = {name: {split: len(task.problems(split)) for split in TASKS[name]} for name, task in BUILT_IN.items()}
    assert sizes == TASKS
    with pytest.raises(RecipeError, match="unknown task 'arithmetics'") as caught:
        find_task("arithmetics")
    assert "did you mean 'arithmetic'?" in caught.value.hint


@pytest.mark.parametrize("split", ["validation", "test"])
def test_every_problem_has_an_answer_that_its_own_solution_gives(split):
    problems = TASK.problems(split)
    assert len(problems) == len({p.id for p in problems}) >= 2000
    for problem in problems[::5]:
        assert TASK.grade(problem, TASK.solve(problem)) == 1.0


def test_splits_share_no_question():
    questions = [{p.question for p in TASK.problems(split)} for split in ("validation", "test")]
    assert not questions[0] & questions[1]


def test_samples_are_nested_random_and_fixed():
    small, large = draw(TASK, "test", 50), draw(TASK, "test", 300)
    assert small == large[:50]
    assert len({p.id for p in large}) == 300
    everything = draw(TASK, "test", None)
    assert sorted(p.id for p in everything) == sorted(p.id for p in TASK.problems("test"))
    places = [TASK.problems("test").index(p) for p in small]
    # Never the first N: 50 of 2,000 have their mean place within 6 standard errors of the middle (2e-9).
    assert abs(sum(places) / 50 - 1000) < 6 * 2000 / (12 * 50) ** 0.5
    assert digest(small) == digest(reported("arithmetic", TaskSection(limit=50)))
    # Published figures rest on this sample: it must not change.
    assert [p.id for p in small[:3]] == PINNED


def test_a_limit_beyond_the_split_is_refused():
    with pytest.raises(
        RecipeError, match=r"999999 problems are asked for, and the test split of .* has 2000"
    ) as caught:
        draw(TASK, "test", 999_999)
    assert caught.value.hint == "ask for 2000 or fewer"


@pytest.mark.parametrize(
    ("text", "score"), [(" So 5+2=7. #### 7", 1.0), ("#### 7.0", 1.0), ("#### 8", 0.0), ("no idea", 0.0), ("", 0.0)]
)
def test_grades(text, score):
    problem = TASK.problems("test")[0].__class__("x", "5+2?", "7")
    assert TASK.grade(problem, text) == score


def test_a_problem_without_a_readable_answer_is_never_right():
    problem = TASK.problems("test")[0].__class__("x", "why?", "because")
    assert TASK.grade(problem, "because") == 0.0


def test_plain_prompts():
    problems = draw(TASK, "test", 2)
    built = prompts(TASK, problems, PromptSection(), ToyModel())
    assert [p.text for p in built] == [f"Q: {p.question}\nA:" for p in problems]
    assert [p.key for p in built] == [p.id for p in problems]


def test_system_and_examples_stand_above_a_plain_prompt():
    [problem] = draw(TASK, "test", 1)
    first, second = draw(TASK, "validation", 2)
    [built] = prompts(TASK, [problem], PromptSection(system="Be exact.", few_shot=2), ToyModel())
    assert built.text == (
        f"Be exact.\n\nQ: {first.question}\nA: #### {first.answer}\n\nQ: {second.question}\nA: #### {second.answer}"
        f"\n\nQ: {problem.question}\nA:"
    )


@pytest.mark.parametrize(("chat", "template"), [(True, None), ("auto", "{{ messages }}")])
def test_chat_prompts(chat, template):
    [problem] = draw(TASK, "test", 1)
    [example] = draw(TASK, "validation", 1)
    lm = ToyModel()
    lm.tokenizer.chat_template = template
    [built] = prompts(TASK, [problem], PromptSection(chat=chat, system="Be exact.", few_shot=1), lm)
    assert built.chat() == [
        {"role": "system", "content": "Be exact."},
        {"role": "user", "content": example.question},
        {"role": "assistant", "content": f"#### {example.answer}"},
        {"role": "user", "content": problem.question},
    ]


def test_chat_false_stays_plain():
    lm = ToyModel()
    lm.tokenizer.chat_template = "{{ messages }}"
    [built] = prompts(TASK, draw(TASK, "test", 1), PromptSection(chat=False), lm)
    assert built.text is not None


def test_the_packaged_files_are_what_the_task_reads():
    path = resources.files("tokenscale.experiments") / "data" / "arithmetic" / "test.jsonl"
    first = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    assert TASK.problems("test")[0].question == first["question"]
