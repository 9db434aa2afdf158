"""Seeded generator of arithmetic word problems with 1 to 4 operations.

The split of a problem is a hash of its *canonical form*: the arithmetic expression alone, such as
``(67*14-57)*2``, without names, objects or wording. So no expression of the validation or test split is
ever the whole of a training problem, in any wording, nor a bare drill: the splits are disjoint by
construction. An expression with one operation may still occur as a line inside a longer training
solution, as ``67*14`` does above.
"""

import hashlib
import random
import re
from dataclasses import dataclass

from tools.demo_model.templates import NAMES, OBJECTS, THEMES, Sentence

SPLIT_SHARES = (("train", 90), ("validation", 5), ("test", 5))  # per cent of all expressions


@dataclass(frozen=True)
class Term:
    """One step of the running total: an operator (+ - * /) and one operand, or two that are multiplied."""

    operator: str
    operands: tuple[int, ...]

    def __str__(self) -> str:
        return self.operator + "*".join(map(str, self.operands))

    def apply(self, total: int) -> int:
        """The running total after this term."""
        value = self.operands[0] * (self.operands[1] if len(self.operands) == 2 else 1)
        if self.operator == "/":
            return total // value
        return {"+": total + value, "-": total - value, "*": total * value}[self.operator]


@dataclass(frozen=True)
class Problem:
    """A question, its terms and its answer."""

    question: str
    templates: tuple[str, ...]
    terms: tuple[Term, ...]

    @property
    def answer(self) -> int:
        """The value of all terms in order, from 0."""
        total = 0
        for term in self.terms:
            total = term.apply(total)
        return total

    @property
    def canonical(self) -> str:
        """The arithmetic expression, which alone decides the split."""
        return expression(self.terms)

    @property
    def operations(self) -> int:
        """How many additions, subtractions, products and divisions the answer takes."""
        return sum(len(term.operands) for term in self.terms) - 1

    @property
    def split(self) -> str:
        """train, validation or test."""
        return split_of(self.canonical)


def expression(terms: tuple[Term, ...]) -> str:
    """The terms as one expression, with brackets where the order needs them."""
    text = ""
    for term in terms:
        if term.operator in "*/" and len(re.findall(r"[-+*/]", text)) > 1:
            text = f"({text.removeprefix('+')})"
        text += str(term)
    return text.removeprefix("+")


def split_of(canonical: str) -> str:
    """The split that the hash of a canonical form falls into."""
    bucket = int.from_bytes(hashlib.sha256(canonical.encode()).digest()[:8]) % 100
    for name, share in SPLIT_SHARES:
        if bucket < share:
            return name
        bucket -= share
    raise AssertionError("shares add up to 100")


@dataclass(frozen=True)
class Level:
    """How hard problems are: the weights of 1, 2, 3, 4 operations and the largest operands.

    ``addend`` bounds n; ``p*q`` is p up to ``factor`` times q up to 9 or, with probability ``long``,
    q of 12 to 19; ``total`` bounds the running total.
    """

    operations: tuple[int, int, int, int]
    addend: int
    factor: int
    long: float
    total: int


EASY = Level(operations=(50, 40, 10, 0), addend=30, factor=15, long=0.0, total=200)
MIDDLE = Level(operations=(30, 40, 20, 10), addend=99, factor=50, long=0.2, total=999)
HARD = Level(operations=(15, 40, 30, 15), addend=150, factor=99, long=0.4, total=1999)


def draw_operands(pattern: str, level: Level, rng: random.Random) -> list[Term]:
    """Random terms for a sentence's pattern."""
    terms = []
    for operator, kind in re.findall(r"([-+*/])(p\*q|n|k)", pattern):
        if kind == "n":
            operands: tuple[int, ...] = (rng.randint(2, level.addend),)
        elif kind == "p*q":
            small = rng.random() >= level.long
            operands = (rng.randint(3, level.factor), rng.randint(2, 9) if small else rng.randint(12, 19))
        else:
            operands = (rng.randint(2, 4 if operator == "*" else 6),)
        terms.append(Term(operator, operands))
    return terms


def legal(terms: list[Term], level: Level) -> bool:
    """Whether every running total stays positive, whole and below the level's bound."""
    total = 0
    for term in terms:
        if term.operator == "/" and (total % term.operands[0] or total > 600):
            return False
        total = term.apply(total)
        if not 0 < total <= level.total:
            return False
    return True


def cost(sentence: Sentence) -> int:
    """How many operations a sentence adds (an opening adds one less)."""
    return len(re.findall(r"[-+*/]", sentence.pattern))


def draw_sentences(operations: int, rng: random.Random) -> list[Sentence]:
    """An opening, events and a question that take exactly ``operations`` operations."""
    theme = rng.choices(THEMES, (2, 1))[0]
    while True:
        opening = rng.choice(theme.openings)
        left = operations - cost(opening) + 1
        final = rng.choice(theme.shares if rng.random() < 0.08 else theme.questions)
        left -= cost(final)
        sentences = [opening]
        while left > 0:
            sentences.append(rng.choice(theme.events))
            left -= cost(sentences[-1])
        if left == 0:
            return [*sentences, final]


def render(sentences: list[Sentence], operands: list[tuple[int, ...]], rng: random.Random) -> str:
    """The question in words, with random names and objects."""
    (name, pronoun), (friend, _) = rng.sample(NAMES, 2)
    words = {"name": name, "friend": friend, "things": rng.choice(OBJECTS)}
    parts = []
    for index, (sentence, numbers) in enumerate(zip(sentences, operands, strict=True)):
        they = pronoun if index == 1 or rng.random() < 0.7 else name
        parts.append(sentence.text.format(*numbers, They=they, **words))
    return " ".join(parts)


def draw_problem(level: Level, rng: random.Random) -> Problem:
    """One random problem of any split."""
    operations = rng.choices((1, 2, 3, 4), level.operations)[0]
    while True:
        sentences = draw_sentences(operations, rng)
        for _ in range(10):
            drawn = [draw_operands(sentence.pattern, level, rng) for sentence in sentences]
            terms = [term for group in drawn for term in group]
            if legal(terms, level):
                operands = [tuple(n for term in group for n in term.operands) for group in drawn]
                ids = tuple(sentence.id for sentence in sentences)
                return Problem(render(sentences, operands, rng), ids, tuple(terms))


def draw_from_split(split: str, level: Level, rng: random.Random) -> Problem:
    """One random problem of the named split."""
    while True:
        problem = draw_problem(level, rng)
        if problem.split == split:
            return problem


def held_out(split: str, count: int, level: Level = HARD) -> list[Problem]:
    """The first ``count`` different problems of a split; the same list on every machine."""
    rng = random.Random(f"tokenscale/{split}")
    found: dict[str, Problem] = {}
    while len(found) < count:
        problem = draw_from_split(split, level, rng)
        found.setdefault(problem.canonical, problem)
    return list(found.values())
