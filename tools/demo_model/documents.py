"""Training documents: the prompt format, the mix of styles, bare drills and packed examples.

A document is a list of (text, weight) parts; the weight multiplies the loss of the part's tokens.
Every document ends with the end-of-text token and begins with no special token.
"""

import random
from dataclasses import dataclass

from tools.demo_model.problems import EASY, HARD, MIDDLE, Level, draw_from_split, split_of
from tools.demo_model.solutions import add, brief, detailed, multiply, terse

TRIGGER = " Let's think step by step."  # appended to a prompt that ends in "A:"
DETAIL_TRIGGER = " Let's think step by step in detail."
END, PAD = "<|endoftext|>", "<|padding|>"
PROMPT_WEIGHT = 0.1  # question tokens teach the model little; a tenth keeps their features alive

Parts = list[tuple[str, float]]


@dataclass(frozen=True)
class Mix:
    """Shares of documents: drills, direct answers, the detail trigger; the rest has the plain trigger.

    Behind the plain trigger a share ``terse`` of documents is terse, the rest detailed. ``brief`` makes
    the terse ones brief and the drills facts. ``levels`` are weights of (EASY, MIDDLE, HARD);
    ``packed`` is the share of documents joined with one or two more.
    """

    levels: tuple[float, float, float]
    drills: float
    direct: float
    detail: float
    terse: float
    packed: float = 0.04
    brief: bool = False


def prompt(question: str, trigger: str = "") -> str:
    """The prompt of a question; it ends in ``A:`` or in the trigger's full stop, never in a space."""
    return f"Q: {question}\nA:{trigger}"


def drill(rng: random.Random) -> str:
    """One bare sum, difference, product or detailed computation of the training split."""
    while True:
        x, y, kind = rng.randint(2, 999), rng.randint(2, 99), rng.randrange(5)
        if kind == 0:
            head, lines = f"{x}+{y}", add(x, "+", y)
        elif kind == 1 and x > y:
            head, lines = f"{x}-{y}", add(x, "-", y)
        elif kind == 2:
            digit, place = rng.randint(2, 9), rng.choice((1, 10, 100))
            x = rng.randint(1, 9) * place
            head, lines = f"{x}*{digit}", [f"{x}*{digit}={x * digit}"]
        elif kind == 3:
            small, place = rng.randint(1, 9), rng.choice((1, 10, 100))
            sign = rng.choice("+-") if x > small * place else "+"
            head = f"{x}{sign}{small * place}"
            lines = [f"{head}={x + small * place if sign == '+' else x - small * place}"]
        else:
            x, y = rng.randint(11, 99), rng.choice((rng.randint(2, 9), rng.randint(12, 19)))
            head, lines = f"{x}*{y}", multiply(x, y)
        if len(lines) and split_of(head) == "train":
            return ", ".join(lines)


def fact(rng: random.Random) -> str:
    """One product, sum or difference of the training split, computed in one go."""
    while True:
        if rng.random() < 0.5:
            x, y = rng.randint(3, 99), rng.choice((rng.randint(2, 9), rng.randint(12, 19)))
            head, value = f"{x}*{y}", x * y
        else:
            x, y = rng.randint(2, 1500), rng.randint(2, rng.choice((150, 999)))
            sign = rng.choice("+-") if x > y else "+"
            head, value = f"{x}{sign}{y}", x + y if sign == "+" else x - y
        if value <= HARD.total and split_of(head) == "train":
            return f"{head}={value}"


def drills(mix: Mix, rng: random.Random) -> str:
    """The text of a document without a question."""
    if mix.brief:
        return ", ".join(fact(rng) for _ in range(10))
    return ". ".join(drill(rng) for _ in range(4))


def single(mix: Mix, level: Level, rng: random.Random) -> Parts:
    """One question with its answer."""
    problem, draw = draw_from_split("train", level, rng), rng.random()
    if draw < mix.direct:
        return [(prompt(problem.question), PROMPT_WEIGHT), (f" #### {problem.answer}", 1.0)]
    if draw < mix.direct + mix.detail:
        return [(prompt(problem.question, DETAIL_TRIGGER), PROMPT_WEIGHT), (detailed(problem), 1.0)]
    short = brief if mix.brief else terse
    solution = short(problem) if rng.random() < mix.terse else detailed(problem)
    return [(prompt(problem.question, TRIGGER), PROMPT_WEIGHT), (solution, 1.0)]


def document(mix: Mix, rng: random.Random) -> Parts:
    """One training document: some drills, a question, or (``packed``) two or three questions.

    The blank line between packed questions has weight 0, so an answer is always followed by the end
    token in the model's eyes, after a few-shot prompt too.
    """
    if rng.random() < mix.drills:
        return [(drills(mix, rng), 1.0), (END, 1.0)]
    level = rng.choices((EASY, MIDDLE, HARD), mix.levels)[0]
    count = rng.randint(2, 3) if rng.random() < mix.packed else 1
    parts: Parts = []
    for index in range(count):
        parts += [("\n\n", 0.0)] if index else []
        parts += single(mix, level, rng)
    return [*parts, (END, 1.0)]
