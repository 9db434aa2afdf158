"""The generator: right answers, one split per expression, the same problems every time."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.demo_model.problems import (
    EASY,
    HARD,
    MIDDLE,
    SPLIT_SHARES,
    Term,
    draw_from_split,
    draw_problem,
    held_out,
    split_of,
)

LEVELS = (EASY, MIDDLE, HARD)


@pytest.fixture(scope="module")
def problems():
    rng = random.Random("problems")
    return [draw_problem(level, rng) for level in LEVELS for _ in range(1500)]


def test_answer_is_the_value_of_the_expression(problems):
    # Python's own parser and precedence are the oracle; divisions are exact by construction.
    for problem in problems:
        assert eval(problem.canonical) == problem.answer


def test_question_names_the_operands_of_the_expression(problems):
    for problem in problems:
        words = problem.question.replace("$", " ").replace(".", " ").replace("?", " ").split()
        numbers = Counter(word for word in words if word.isdigit())
        assert numbers == Counter(str(n) for term in problem.terms for n in term.operands)


def test_levels_bound_operations_and_totals(problems):
    for index, level in enumerate(LEVELS):
        for problem in problems[1500 * index : 1500 * (index + 1)]:
            assert level.operations[problem.operations - 1] > 0
            total = 0
            for term in problem.terms:
                total = term.apply(total)
                assert 0 < total <= level.total


def test_split_is_a_function_of_the_expression_alone():
    rng = random.Random("splits")
    splits: dict[str, set[str]] = {}
    wordings: dict[str, set[str]] = {}
    for _ in range(6000):
        problem = draw_problem(EASY, rng)
        splits.setdefault(problem.canonical, set()).add(problem.split)
        wordings.setdefault(problem.canonical, set()).add(problem.question)
    assert all(len(found) == 1 for found in splits.values())
    assert max(map(len, wordings.values())) > 10  # the claim is not empty: one expression, many wordings


@given(st.text(alphabet="0123456789+-*/()", min_size=1, max_size=20))
def test_every_expression_has_one_split(canonical):
    assert split_of(canonical) in [name for name, _ in SPLIT_SHARES]
    assert split_of(canonical) == split_of(canonical)


def test_split_shares_are_as_stated():
    # Fixed inputs, so it cannot fail by chance; six standard deviations for a fair hash.
    counts = Counter(split_of(f"{x}+{y}") for x in range(200) for y in range(100))
    for name, share in SPLIT_SHARES:
        expected = 200 * share
        assert abs(counts[name] - expected) < 6 * (expected * (100 - share) / 100) ** 0.5


def test_held_out_problems_are_different_and_of_their_split():
    validation, test = held_out("validation", 300), held_out("test", 300)
    assert {problem.split for problem in validation} == {"validation"}
    assert {problem.split for problem in test} == {"test"}
    assert len({problem.canonical for problem in [*validation, *test]}) == 600


def test_held_out_list_is_deterministic_and_grows_at_its_end():
    assert held_out("test", 50) == held_out("test", 80)[:50]
    # A known problem: another machine or Python version must draw the same.
    first = held_out("test", 1)[0]
    assert (first.question, first.answer) == (
        "Nina has $24. She earns $105 more. How many dollars does Nina have in the end?",
        129,
    )


def test_draw_from_split_keeps_to_the_split():
    rng = random.Random(0)
    assert {draw_from_split("test", HARD, rng).split for _ in range(50)} == {"test"}


@pytest.mark.parametrize(
    ("terms", "canonical", "value"),
    [
        ((Term("+", (67, 14)), Term("-", (57,)), Term("*", (2,))), "(67*14-57)*2", 1762),
        ((Term("+", (24,)), Term("*", (3,))), "24*3", 72),
        ((Term("+", (30,)), Term("+", (7, 6)), Term("/", (4,))), "(30+7*6)/4", 18),
    ],
)
def test_expression_puts_brackets_where_the_order_needs_them(terms, canonical, value):
    from tools.demo_model.problems import expression

    assert expression(terms) == canonical
    assert eval(canonical) == value
