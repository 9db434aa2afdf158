"""What the verifier learns from a solution.

After every token: is everything so far right; at the end: is the answer. Solutions of a problem are determined by
their style, so a text is right so far where it begins a worked solution. Besides, behind every equation: does it hold.
"""

import random
import re
from bisect import bisect_right
from dataclasses import dataclass

from tools.demo_model.documents import DETAIL_TRIGGER, TRIGGER, prompt
from tools.demo_model.problems import HARD, Problem, draw_from_split, split_of
from tools.demo_model.solutions import TERSE_START, detailed, read_answer, wrong_lines
from tools.demo_verifier.samples import Row, right_texts

ERROR = 0.5  # share of worked solutions in which one operation is made wrong
DRILLED, DRILLED_WRONG = 8, 0.35  # equations of a drill, and the share of them that are wrong
SHIFTS = (10, 10, 10, 100, 100, 1, 2, 20, 30, 40)  # by which a result is wrong, as the demo models' results are
EQUATION = re.compile(r"[\d+*/-]+=\d+")


@dataclass(frozen=True)
class Example:
    """A text in tokens, the answer's beginning at token `answer`; lists have one entry per token of the answer.

    `right[i]`: the answer up to token i is a right beginning (the last: its result is right). `known[i]`: the
    next-token loss may learn token i (of a drill: of right results alone). `holds[i]`: whether the equation that
    token i follows holds; None: no such.
    """

    tokens: list[int]
    answer: int
    right: list[bool]
    known: list[bool]
    holds: list[bool | None]


def right_length(row: Row) -> int:
    """Characters that the text has in common with the worked solution that it follows longest."""
    longest = 0
    for solution in row.right:
        pairs = zip(row.text, solution, strict=False)
        longest = max(longest, next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(row.text), len(solution))))
    return longest


def example(row: Row, tokenizer) -> Example:
    """Tokens and labels of one solution or drill."""
    start, whole = len(row.prompt), row.prompt + row.text
    encoding = tokenizer(whole, return_offsets_mapping=True)
    ends = [end - start for _, end in encoding["offset_mapping"]]
    answer = sum(end <= 0 for end in ends)
    ends, upto = ends[answer:], right_length(row)
    right = [end <= upto for end in ends]
    holds: list[bool | None] = [None] * len(ends)
    results = [False] * len(ends)
    for found in EQUATION.finditer(row.text):
        ok, behind = not wrong_lines(found.group()), bisect_right(ends, found.end())
        if behind < len(ends):
            holds[behind] = ok
        for token in range(bisect_right(ends, found.start() + found.group().index("=") + 1), behind):
            results[token] = ok
    known = list(right) if row.answer else results
    if right and row.answer:
        right[-1] = read_answer(row.text) == row.answer
    return Example(encoding["input_ids"], answer, right, known, holds)


def shifted(value: int, rng: random.Random) -> int:
    """A wrong result in place of a right one; never below 1."""
    shift = rng.choice(SHIFTS)
    return value + (shift if value <= shift or rng.random() < 0.5 else -shift)


def brief_with_error(problem: Problem, wrong: int | None, rng: random.Random) -> str:
    """The brief solution; operation number `wrong` has a wrong result, and what follows goes on from there."""
    total, lines = 0, []

    def line(left: str, value: int) -> int:
        if len(lines) == wrong:
            value = shifted(value, rng)
        lines.append(f"{left}={value}")
        return value

    for term in problem.terms:
        value = term.operands[0]
        if len(term.operands) == 2:
            value = line(f"{term.operands[0]}*{term.operands[1]}", value * term.operands[1])
        total = line(f"{total}{term.operator}{value}", _apply(total, term.operator, value)) if total else value
    return f"{TERSE_START}{', '.join(lines)}. #### {total}"


def _apply(total: int, operator: str, value: int) -> int:
    if operator == "/":
        return total // value
    return {"+": total + value, "-": total - value, "*": total * value}[operator]


def equation(rng: random.Random) -> str:
    """A right equation whose left side is no expression of a held-out split."""
    while True:
        kind = rng.random()
        if kind < 0.6:
            x, y = rng.randint(3, 99), rng.choice((rng.randint(2, 9), rng.randint(12, 19)))
            head, value = f"{x}*{y}", x * y
        elif kind < 0.85:
            x, y = rng.randint(2, 1500), rng.randint(2, rng.choice((150, 999)))
            sign = rng.choice("+-") if x > y else "+"
            head, value = f"{x}{sign}{y}", x + y if sign == "+" else x - y
        elif kind < 0.93:
            x, y = rng.randint(5, 600), rng.randint(2, 4)
            head, value = f"{x}*{y}", x * y
        else:
            value, y = rng.randint(2, 300), rng.randint(2, 6)
            head = f"{value * y}/{y}"
        if value <= HARD.total and split_of(head) == "train":
            return f"{head}={value}"


def drill(rng: random.Random) -> Row:
    """Equations one by one, some of them wrong; there is no problem and no answer."""
    true = [equation(rng) for _ in range(DRILLED)]
    said = []
    for one in true:
        left, value = one.split("=")
        said.append(f"{left}={shifted(int(value), rng)}" if rng.random() < DRILLED_WRONG else one)
    right, text = (f"{TERSE_START}{', '.join(lines)}." for lines in (true, said))
    return Row("\nA:", text, (right,), "")


def written(rng: random.Random) -> Row:
    """A solution that was written, not sampled, of a fresh problem of the training split."""
    kind = rng.random()
    problem = draw_from_split("train", HARD, rng)
    right, answer = right_texts(problem), str(problem.answer)
    if kind < 0.1:
        guess = shifted(problem.answer, rng) if rng.random() < ERROR else problem.answer
        return Row(prompt(problem.question), f" #### {guess}", (f" #### {answer}",), answer)
    if kind < 0.2:
        return Row(prompt(problem.question, DETAIL_TRIGGER), detailed(problem), right, answer)
    if kind < 0.3:
        return Row(prompt(problem.question, TRIGGER), detailed(problem), right, answer)
    wrong = rng.randrange(problem.operations) if rng.random() < ERROR and problem.operations else None
    return Row(prompt(problem.question, TRIGGER), brief_with_error(problem, wrong, rng), right, answer)
