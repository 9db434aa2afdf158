"""Worked solutions: every line of every style holds, and the checker finds lines that do not."""

import random
import re

import pytest

from tools.demo_model.problems import EASY, HARD, MIDDLE, draw_problem
from tools.demo_model.solutions import (
    DETAILED_START,
    TERSE_START,
    add,
    brief,
    detailed,
    divide,
    multiply,
    places,
    read_answer,
    terse,
    wrong_lines,
)


@pytest.fixture(scope="module")
def problems():
    rng = random.Random("solutions")
    return [draw_problem(level, rng) for level in (EASY, MIDDLE, HARD) for _ in range(1500)]


def equations(text: str) -> list[str]:
    return [piece for piece in re.split(r"[^\d+*/=-]+", text) if "=" in piece]


@pytest.mark.parametrize("style", [terse, brief, detailed])
def test_every_line_of_a_solution_holds(problems, style):
    for problem in problems:
        solution = style(problem)
        lines = equations(solution)
        assert lines
        assert wrong_lines(solution) == []
        # A second opinion on the checker: Python's parser.
        assert all(eval(left) == int(right) for left, right in (line.split("=") for line in lines))
        assert read_answer(solution) == str(problem.answer)


@pytest.mark.parametrize("style", [terse, brief, detailed])
def test_last_line_gives_the_answer(problems, style):
    for problem in problems:
        assert int(equations(style(problem))[-1].split("=")[1]) == problem.answer


def test_styles_differ_from_their_first_words(problems):
    assert all(style(problem).startswith(TERSE_START) for problem in problems for style in (terse, brief))
    assert all(detailed(problem).startswith(DETAILED_START) for problem in problems)


def test_a_brief_solution_has_a_line_per_operation(problems):
    for problem in problems:
        lines = equations(brief(problem))
        assert len(lines) == problem.operations
        assert all(len(re.findall(r"[-+*/]", line)) == 1 for line in lines)


def test_each_product_of_a_detailed_solution_is_an_easy_one(problems):
    # One non-zero digit on a side, which includes a factor of 10.
    for problem in problems:
        for left, right in re.findall(r"(?<![\d*+/-])(\d+)\*(\d+)=", detailed(problem)):
            assert min(len(number.rstrip("0")) for number in (left, right)) == 1, detailed(problem)


@pytest.mark.parametrize("seed", range(20))
def test_checker_finds_any_changed_result(seed):
    rng = random.Random(seed)
    problem = draw_problem(HARD, rng)
    solution = detailed(problem)
    result = rng.choice(list(re.finditer(r"=(\d+)", solution)))
    changed = f"{solution[: result.start()]}={int(result.group(1)) + rng.choice((-1, 1, 10))}{solution[result.end() :]}"
    assert len(wrong_lines(changed)) == 1


def test_pieces_of_arithmetic():
    assert places(307) == [300, 7]
    assert add(126, "+", 47) == ["126+47: 126+40=166", "166+7=173"]
    assert add(126, "-", 40) == ["126-40=86"]
    assert multiply(67, 4) == ["67*4: 60*4=240", "7*4=28", "240+28=268"]
    assert divide(72, 3) == ["72/3: 60+12=72", "60/3=20", "12/3=4", "20+4=24"]
    for number in range(3, 100):
        for factor in [*range(2, 10), *range(12, 20)]:
            assert multiply(number, factor)[-1].endswith(f"={number * factor}")


@pytest.mark.parametrize(
    ("text", "answer"),
    [(" We get 2+2=4. #### 4", "4"), ("#### -3 and #### 5", "-3"), ("####7", "7"), ("no mark 4", None)],
)
def test_answer_is_the_number_after_the_first_mark(text, answer):
    assert read_answer(text) == answer
