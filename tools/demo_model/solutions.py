"""Worked solutions of a problem in three styles, and a checker that evaluates every line of them.

*Terse*: one line per sentence, products inlined (``67*14-57=881``): short and error-prone for a small
model. *Brief*: one line per operation (``67*14=938, 938-57=881``): less so; it begins as terse does.
*Detailed*: products and sums are spelled out place by place, every equation an easy one.
"""

import re

from tools.demo_model.problems import Problem, Term, expression

TERSE_START, DETAILED_START = " We get ", " First, "  # different first tokens: the style is chosen once


def places(number: int) -> list[int]:
    """The parts of a number, place by place: 307 -> [300, 7]."""
    digits = str(number)
    parts = [int(digit) * 10 ** (len(digits) - 1 - i) for i, digit in enumerate(digits)]
    return [part for part in parts if part]


def headed(head: str, lines: list[str]) -> list[str]:
    """Lines under the expression that they evaluate; a single line needs no head."""
    return lines if len(lines) == 1 else [f"{head}: {lines[0]}", *lines[1:]]


def add(total: int, operator: str, number: int) -> list[str]:
    """Lines for total + number or total - number, one place of the number at a time."""
    lines, head = [], f"{total}{operator}{number}"
    for part in places(number):
        result = total + part if operator == "+" else total - part
        lines.append(f"{total}{operator}{part}={result}")
        total = result
    return headed(head, lines)


def multiply(number: int, factor: int) -> list[str]:
    """Lines for number * factor; each product has one non-zero digit on a side, or is by 10."""
    if factor > 10:
        tens, ones = 10, factor - 10
        lines = [f"{number}*{tens}={number * tens}", *multiply(number, ones)]
        lines += add(number * tens, "+", number * ones)
        return headed(f"{number}*{factor}", lines)
    parts = places(number)
    lines = [f"{part}*{factor}={part * factor}" for part in parts]
    total = parts[0] * factor
    for part in parts[1:]:
        lines.append(f"{total}+{part * factor}={total + part * factor}")
        total += part * factor
    return headed(f"{number}*{factor}", lines)


def divide(total: int, divisor: int) -> list[str]:
    """Lines for total / divisor, one place of the quotient at a time."""
    parts = places(total // divisor)
    lines = [f"{part * divisor}/{divisor}={part}" for part in parts]
    quotient = parts[0]
    for part in parts[1:]:
        lines.append(f"{quotient}+{part}={quotient + part}")
        quotient += part
    if len(lines) > 1:
        lines.insert(0, "+".join(str(part * divisor) for part in parts) + f"={total}")
    return headed(f"{total}/{divisor}", lines)


def term_lines(total: int, term: Term) -> list[str]:
    """Detailed lines of one term; empty for an opening with a single number."""
    if term.operator == "*":
        return multiply(total, term.operands[0])
    if term.operator == "/":
        return divide(total, term.operands[0])
    product = len(term.operands) == 2
    lines = multiply(*term.operands) if product else []
    value = term.operands[0] * term.operands[1] if product else term.operands[0]
    return lines + add(total, term.operator, value) if total else lines


def detailed(problem: Problem) -> str:
    """The detailed solution, from the leading space to the answer."""
    total, blocks = 0, []
    for term in problem.terms:
        if lines := term_lines(total, term):
            blocks.append(", ".join(lines))
        total = term.apply(total)
    return f"{DETAILED_START}{'. Then '.join(blocks)}. #### {problem.answer}"


def terse(problem: Problem) -> str:
    """The terse solution: the first two terms in one line, then a line per term."""
    terms = list(problem.terms)
    first = 2 if len(terms) > 1 and terms[1].operator in "+-" else 1
    total = 0
    for term in terms[:first]:
        total = term.apply(total)
    lines = [f"{expression(tuple(terms[:first]))}={total}"]
    if first == 1 and len(terms[0].operands) == 1:
        lines = []  # an opening with a single number has nothing to compute
    for term in terms[first:]:
        lines.append(f"{total}{term}={term.apply(total)}")
        total = term.apply(total)
    return f"{TERSE_START}{', '.join(lines)}. #### {problem.answer}"


def brief(problem: Problem) -> str:
    """The brief solution: a line per operation, each computed in one go."""
    total, lines = 0, []
    for term in problem.terms:
        value = term.operands[0]
        if len(term.operands) == 2:
            value *= term.operands[1]
            lines.append(f"{term.operands[0]}*{term.operands[1]}={value}")
        if total:
            lines.append(f"{total}{term.operator}{value}={term.apply(total)}")
        total = term.apply(total)
    return f"{TERSE_START}{', '.join(lines)}. #### {problem.answer}"


def wrong_lines(solution: str) -> list[str]:
    """The equations of a solution that do not hold, each side evaluated on its own."""
    wrong = []
    for left, right in re.findall(r"([\d+*/-]+)=(\d+)", solution):
        numerator, _, divisor = left.partition("/")
        value = sum(sign * product(text) for sign, text in summands(numerator))
        if value != int(right) * int(divisor or 1):
            wrong.append(f"{left}={right}")
    return wrong


def summands(text: str) -> list[tuple[int, str]]:
    """The signed summands of a bracket-free expression."""
    return [(-1 if sign == "-" else 1, body) for sign, body in re.findall(r"([-+]?)([\d*]+)", text)]


def product(text: str) -> int:
    """The value of factors joined by ``*``."""
    value = 1
    for factor in text.split("*"):
        value *= int(factor)
    return value


def read_answer(text: str) -> str | None:
    """The number after the first ``####``, or None."""
    found = re.search(r"#### ?(-?\d+)", text)
    return found.group(1) if found else None
