"""What the verifier learns from a solution.

After every token: is everything so far right; at the end: is the answer. Solutions of a problem are determined by
their style, so a text is right so far where it begins a worked solution. Besides, behind every equation: does it hold.
"""

import random
import re
from bisect import bisect_right
from dataclasses import dataclass

from tools.demo_model.documents import DETAIL_TRIGGER, TRIGGER, prompt
from tools.demo_model.problems import HARD, draw_from_split, split_of
from tools.demo_model.solutions import (
    DETAILED_START,
    add,
    brief,
    detailed,
    divide,
    multiply,
    product,
    read_answer,
    summands,
    wrong_lines,
)
from tools.demo_verifier.samples import Row, right_texts

ERROR = 0.5  # share of written solutions and computations with an error
DRILLED, ONE_GO = 4, 0.3  # computations of a drill, and the share of them in one go
SHIFTS = (10, 10, 10, 100, 100, 1, 2, 20, 30, 40)  # by which a result is wrong, as the demo models' results are
EQUATION = re.compile(r"(?<![\d+*/-])\d+(?:[+*-]\d+)*(?:/\d+)?=\d+")  # samples hold others too, such as 6/6/6=1


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


def corrupted(text: str, wrong: int, rng: random.Random) -> str:
    """A right text with a wrong result in equation number `wrong`; what is computed from it follows it."""
    new: dict[str, str] = {}

    def follow(part: str) -> str:
        return re.sub(r"\d+", lambda number: new.get(number.group(), number.group()), part)

    pieces, last = [], 0
    for index, found in enumerate(EQUATION.finditer(text)):
        left, result = found.group().split("=")
        followed = follow(left)
        value = int(result) if followed == left else evaluated(followed)
        if index == wrong:
            value = shifted(value, rng)
        if str(value) != result:
            new[result] = str(value)
        pieces += [follow(text[last : found.start()]), f"{followed}={value}"]
        last = found.end()
    return "".join([*pieces, follow(text[last:])])


def evaluated(left: str) -> int:
    """The value of a left side, without its sign and what a division leaves over."""
    numerator, _, divisor = left.partition("/")
    return abs(sum(sign * product(text) for sign, text in summands(numerator))) // int(divisor or 1)


def perhaps_corrupted(text: str, rng: random.Random) -> str:
    """A right text, with an error in a share ERROR of cases."""
    count = len(EQUATION.findall(text))
    return corrupted(text, rng.randrange(count), rng) if rng.random() < ERROR else text


def computation(rng: random.Random) -> str:
    """A detailed computation, or one equation in one go, whose left side is no expression of a held-out split."""
    while True:
        kind = rng.random()
        if kind < 0.4:
            x, y = rng.randint(3, 99), rng.choice((rng.randint(2, 9), rng.randint(12, 19)))
            head, value, lines = f"{x}*{y}", x * y, multiply(x, y)
        elif kind < 0.8:
            x, y = rng.randint(2, 1500), rng.randint(2, rng.choice((20, 150, 999)))
            sign = rng.choice("+-") if x > y else "+"
            head, value, lines = f"{x}{sign}{y}", x + y if sign == "+" else x - y, add(x, sign, y)
        else:
            value, y = rng.randint(2, 300), rng.randint(2, 6)
            head, lines = f"{value * y}/{y}", divide(value * y, y)
        if value <= HARD.total and split_of(head) == "train":
            return f"{head}={value}" if rng.random() < ONE_GO else ", ".join(lines)


def drill(rng: random.Random) -> Row:
    """Computations one after the other, each with an error in a share ERROR of them; no problem and no answer."""
    true = [computation(rng) for _ in range(DRILLED)]
    said = [perhaps_corrupted(one, rng) for one in true]
    right, text = (f"{DETAILED_START}{'. Then '.join(parts)}." for parts in (true, said))
    return Row("\nA:", text, (right,), "")


def written(rng: random.Random) -> Row:
    """A solution that was written, not sampled, of a fresh problem of the training split."""
    problem, kind = draw_from_split("train", HARD, rng), rng.random()
    right, answer = right_texts(problem), str(problem.answer)
    if kind < 0.05:
        guess = shifted(problem.answer, rng) if rng.random() < ERROR else problem.answer
        return Row(prompt(problem.question), f" #### {guess}", (f" #### {answer}",), answer)
    trigger = DETAIL_TRIGGER if kind < 0.1 else TRIGGER
    text = detailed(problem) if kind < 0.6 else brief(problem)
    return Row(prompt(problem.question, trigger), perhaps_corrupted(text, rng), right, answer)
