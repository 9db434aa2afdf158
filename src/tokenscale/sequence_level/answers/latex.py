r"""Mathematical answers: a number where the whole is one, else a normalised LaTeX expression.

The normal form evens out how an expression is typed (white space, sizes of brackets, `\dfrac`, `\cdot` and
`\times`, braces around one character, units behind a number, "x =" before a value), not how it is
calculated: `x + 1` and `1 + x` stay apart, which is what math-verify can judge.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tokenscale.sequence_level.answers.numbers import NUMBER, compiled, last_number, number_at, prepare, value
from tokenscale.sequence_level.answers.text import last_lines, normal_text, sentence

_WORDS = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mbox)\s?\{([^{}]{0,200})\}")
_FUNCTIONS = "arc(?:sin|cos|tan)|sin|cos|tan|cot|sec|csc|log|exp|max|min|lim|gcd|lcm|mod|det|inf|sup"
# Words: three letters or more that name no function, or one of a few that are no product of variables.
_PROSE = re.compile(
    rf"(?<![A-Za-z\\])(?!(?:{_FUNCTIONS})(?![A-Za-z]))[^\W\d_]{{3,}}|(?<!\S)(?i:is|it|so|of|we|to|if|in|as)(?=\s)"
)
_COMMANDS = re.compile(r"\\(?:(?:begin|end)\s?\{[A-Za-z*]{1,20}\}|[A-Za-z]+)")
# A longer expression is no answer, and slow to normalise.
LONGEST = 2000
# "The answer is all real numbers.": so many words are an answer of their own.
MOST_WORDS = 4

_KEPT = "\u00a7"  # stands before words that are marked as text, and for white space that means something
_UNIT = (
    r"(?:\s{0,3}(?:%|\u00b0|\^?\\circ(?![A-Za-z])|\\degree))?"
    r"(?:(?:\s{0,3}\u00a7\s{0,3}|\s{1,3}(?!pi\b|or\b|and\b)(?=[A-Za-z]{2}))[A-Za-z.]{1,20}"
    r"(?:[ /]{1,3}\u00a7?\s{0,3}[A-Za-z.]{1,20}){0,3})?\s{0,3}[.,;]?\s{0,3}"
)
_WHOLE = compiled(r"\s{0,3}(?:[A-Za-z]\s?=\s?)?" + NUMBER + _UNIT)
# An index or a power of a variable or a bracket makes an expression of a number.
_NO_NUMBER = re.compile(r"_|(?<![A-Za-z])[A-Za-z]\s?\^|[)\]]\s?\^")

_CLOSED_BY = {"$": "$", "$$": "$$", r"\(": r"\)", r"\[": r"\]"}
_DELIMITER = re.compile(r"(?<!\\)\$\$?|\\[()\[\]]")
_AROUND = re.compile(r"\A(?:[\s:*]|\\[(\[]|\$)+|(?:[\s.,;:*]|(?<!\\)\\[)\]]|(?<!\\)\$|\\\\)+\Z")

_SYMBOLS = str.maketrans(
    {
        "\u2212": "-",
        "\u2013": "-",
        "\u00b0": "",
        "\u00d7": r"\times ",
        "\u00b7": r"\cdot ",
        "\u22c5": r"\cdot ",
        "*": r"\cdot ",
        "\u03c0": r"\pi ",
        "\u03b8": r"\theta ",
        "\u221e": r"\infty ",
        "\u221a": r"\sqrt ",
        "\u2264": r"\le ",
        "\u2265": r"\ge ",
        "\u2260": r"\ne ",
        "\u222a": r"\cup ",
        "\u2229": r"\cap ",
        "\u2208": r"\in ",
        "\u00b1": r"\pm ",
        "\u2205": r"\emptyset ",
        **{char: f"^{digit}" for digit, char in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
    }
)
_END = r"(?![A-Za-z])"
_REWRITES = tuple(
    (re.compile(pattern), by)
    for pattern, by in (
        (rf"\\(?:left|right|[bB]igg?[lrm]?){_END}\s?\.?", ""),
        (rf"\\(?:[,;:! ]|(?:q?quad|displaystyle|textstyle|limits){_END})|~", " "),
        (rf"\^\s?(?:\{{\s?\\circ\s?\}}|\\circ{_END})|\\degree{_END}|\\?%|\\?\$", ""),
        (rf"\\[dtc]frac{_END}", r"\\frac "),
        (rf"\\leq(?:slant)?{_END}", r"\\le "),
        (rf"\\geq(?:slant)?{_END}", r"\\ge "),
        (rf"\\neq{_END}", r"\\ne "),
        (rf"\\(?:times|ast){_END}", r"\\cdot "),
        (rf"\\varnothing{_END}", r"\\emptyset "),
        (rf"\\lbrace{_END}", r"\\{"),
        (rf"\\rbrace{_END}", r"\\}"),
        (r"\\operatorname\*?\s?\{([A-Za-z]{1,20})\}", r"\\\1 "),
        (rf"\\boxed{_END}\s?", ""),
        (rf"\\(?:mathbf|boldsymbol|mathit){_END}\s?\{{([A-Za-z])\}}", r"\1"),
        # White space means something only between a command and a letter.
        (r"(\\[A-Za-z]{1,20})\s+(?=[A-Za-z])", rf"\1{_KEPT}"),
        (r"\s+", ""),
        (_KEPT, " "),
        (r"(?<=\d)\{,\}(?=\d{3})", ""),
        (r"\{\}", ""),
        (r"\\frac(\\[A-Za-z]{1,20})(\d)", r"\\frac{\1}{\2}"),
        (r"\\frac(\w)(\w)", r"\\frac{\1}{\2}"),
        (r"\\frac(\w)\{", r"\\frac{\1}{"),
        (r"(\\frac\{[^{}]{1,80}\})(\w)", r"\1{\2}"),
        (r"\\sqrt(\w)", r"\\sqrt{\1}"),
        (r"([\^_])\{(\w)\}", r"\1\2"),
        (
            r"(?<![\w.}/)])(\d{1,40}|[A-Za-z]|\\pi|\\sqrt\{\w{1,40}\})/(\d{1,40}|[A-Za-z])(?![\w.{/(])",
            r"\\frac{\1}{\2}",
        ),
    )
)
# Brackets around one letter or number, and "x in" before a set.
_ONE = re.compile(r"\((\w|-?\d{1,40}(?:\.\d{1,40})?)\)")
_MEMBER = re.compile(r"\A[A-Za-z]\\in(?![A-Za-z]) ?")


def normal_math(text: str) -> str | None:
    """The normal form of an answer that is nothing but the answer; None where nothing is left.

    Words are kept as LaTeX text, in the normal form of free text: `no solution` is `\\text{no solution}`.
    """
    if len(text) > LONGEST:
        return None
    text = _AROUND.sub("", text)
    number = _number(text)
    if number is not None:
        return number
    if is_prose(text):
        words = normal_text(text)
        return words and rf"\text{{{words}}}"
    parts = _WORDS.split(text)
    parts[::2] = [_normal_part(part) for part in parts[::2]]
    parts[1::2] = [_as_words(part) for part in parts[1::2]]
    expression = _result(_MEMBER.sub("", "".join(parts).strip(" .,;:")))
    one = _ONE.fullmatch(expression)
    # A formula that is cut off has no value.
    whole = expression.count("{") == expression.count("}")
    return one[1] if one else expression if expression and whole else None


def math_at(text: str, place: int) -> str | None:
    """What stands at `place`: a formula, a number, or an expression or few words up to the end of the sentence."""
    opening = _DELIMITER.search(text, place, place + 16)
    if opening and not text[place : opening.start()].strip(" \t\n:*_"):
        span = next(_formulas(text, opening.start(), opening.start() + 2000), None)
        if span:
            return normal_math(text[span[0] : span[1]])
    said = sentence(text, place)
    alone = _alone(said) or number_at(prepare(said[:LONGEST]), 0)
    return alone or (normal_math(said) if len(said.split()) <= MOST_WORDS else None)


def math_in_text(text: str) -> str | None:
    """The last line where it is nothing but an answer, else the last formula or number, whichever stands last."""
    line = next((line for line in last_lines(text) if normal_text(line) is not None), "")
    alone = _alone(line)
    if alone is not None:
        return alone
    formula = [(0, 0), *_formulas(text, 0, len(text))][-1]
    number = _last_number(text[formula[1] :])
    return number if number is not None else normal_math(text[slice(*formula)])


def is_prose(text: str) -> bool:
    """Whether a text has words that are no names of functions and not marked as text."""
    return _PROSE.search(_COMMANDS.sub(" ", _WORDS.sub(" ", text))) is not None


def _alone(line: str) -> str | None:
    """The normal form of a line that is nothing but an answer: a number, an expression or one word."""
    bare = _AROUND.sub("", line) if len(line) <= LONGEST else ""
    if not bare or (is_prose(bare) and len(bare.split()) > 1 and _number(bare) is None):
        return None
    return normal_math(bare)


def _number(text: str) -> str | None:
    """The normal form of a text that is a number, with its unit, and nothing else."""
    match = None if _NO_NUMBER.search(text) else _WHOLE.fullmatch(prepare(_WORDS.sub(rf" {_KEPT} \1 ", text)))
    return value(match) if match else None


def _last_number(text: str) -> str | None:
    return last_number(prepare(text))


def _normal_part(text: str) -> str:
    text = text.translate(_SYMBOLS)
    for pattern, by in _REWRITES:
        text = pattern.sub(by, text)
    return text


def _as_words(text: str) -> str:
    words = normal_text(text)
    if words is None:
        return ""
    letter = re.fullmatch(r"\W*([A-Za-z])\W*", text)
    return letter[1] if letter else rf"\text{{{words}}}"


def _result(expression: str) -> str:
    """What a calculation comes to, and the value of a variable: the right side; an equation stays as it is."""
    sides = expression.split("=")
    left = _COMMANDS.sub("", sides[0])
    if "," in expression or r"\text" in expression or len(sides) == 1 or not sides[-1]:
        return expression
    calculated = len(sides) > 2 or len(left) == 1 or not re.search("[A-Za-z]", left)
    return sides[-1] if calculated else expression


def _formulas(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Spans of what stands between delimiters of formulas and is no prose: `$5 and $x$` has one formula."""
    opening: re.Match[str] | None = None
    for found in _DELIMITER.finditer(text, start, end):
        if opening and found[0] == _CLOSED_BY[opening[0]]:
            inside = text[opening.end() : found.start()]
            if inside.strip() and "\n\n" not in inside and not is_prose(inside):
                yield opening.end(), found.start()
                opening = None
                continue
        if found[0] in _CLOSED_BY:
            opening = found
