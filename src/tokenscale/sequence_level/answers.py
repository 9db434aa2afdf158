r"""Finds the answer in a text and brings it into one normal form, so that equal answers are equal strings.

Where the answer stands: the first of these rules that finds a value gives the answer, and where a
rule finds several values, the last of them counts.

1. `\boxed{...}`, braces nested (MATH);
2. `#### 42` (GSM8K);
3. "the answer is 42" or "Answer: 42", also with a sum before it: "the answer is 40 + 2 = 42";
4. for numbers, the last number of the text; for letters, the last letter in brackets, as in "(B)",
   else the one that the text begins with, as in "B. Paris", or consists of.

A text without a value has no answer: None. The normal form of a number is its exact value:
`$29.00`, `29.`, `29.0` and `+29` are `29`; `1,234.50` is `1234.5`; `-$5` is `-5`; `50%` is `50`; `1/2`,
`\frac{1}{2}`, `\frac12` and `.5` are `0.5`; `2/6` is `1/3`; `1 1/2` is `1.5`. A unit behind it is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain

from tokenscale.core.errors import unknown

# Longer runs of digits are a model that repeats itself, and slow to compute with.
_DIGITS = r"(?:\d{1,3}(?:,\d{3}){1,13}|\d{1,40})(?!\d)"
_NUMBER = rf"""
    (?<![\w.])                      # not inside a word or a longer number
    (?P<minus>(?<![)\]}}])-)?\+?    # behind a bracket (or a digit: above) a minus subtracts
    (?:(?:US)?[$€£]\ ?(?P<minus2>-)?)?
    (?:(?P<whole>{_DIGITS})\ +(?=\d+/\d))?
    (?P<top>{_DIGITS}(?:\.\d{{1,40}}(?!\d))?|\.\d{{1,40}}(?!\d))
    (?:/(?P<bottom>{_DIGITS})|e(?P<exponent>[-+]?\d{{1,2}})(?!\w))?
"""
# Repeats of what may stand between are bounded, so that no text takes quadratic time.
_LETTER = r"[^\w\n]{0,8}(?<!\w)(?P<letter>[A-J])(?!\w)"
_MARK = r"\#{4}\s{0,8}"
_SAYS = r"""(?i:answer)[*_]{0,3}(?:\s{1,8}is|\s{0,8}[:=])[\s:=*_"'`(\[{\\$]{0,8}?"""
_SUM = r"(?:(?:[-+*/\u00d7\u00f7x()\ \d$=]|[.,](?=\d)){0,80}=\s{0,8})?"


def _pattern(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.VERBOSE | re.ASCII)


_READABLE = _pattern(_NUMBER)
_BRACE = re.compile(r"\\boxed\s{0,8}\{|\\.|[{}]", re.DOTALL)
_FRACTION = r"\\[dt]?frac\s?\{\s?([^{}\s]{1,50})\s?\}\s?\{\s?([^{}\s]{1,50})\s?\}"
_REWRITES = tuple(
    (re.compile(pattern), by)
    for pattern, by in (
        (r"\\[dt]?frac\s?(\d)\s?(\d)", r"\\frac{\1}{\2}"),
        # A minus belongs to the fraction behind it; a number before it makes it a mixed one.
        (rf"(?<=[-\u2212\u2013]){_FRACTION}", r"\1/\2"),
        (_FRACTION, r" \1/\2"),
        (r"\\(?:text|mathrm|mathbf|textbf)\s?\{([^{}]{0,200})\}", r"\1"),
        (r"\{,\}", ","),
        (r"\\[,!;]", ""),
        (r"\\([$%])", r"\1"),
        # The minus sign, and the dash that is often typed for it.
        (r"[\u2212\u2013]", "-"),
    )
)


@dataclass(frozen=True)
class _Rules:
    """How one kind of answer is found: within a box, and in a text by each of the other rules in turn."""

    in_box: re.Pattern[str]
    in_text: tuple[re.Pattern[str], ...]
    value: Callable[[re.Match[str]], str | None]

    def last(self, rule: re.Pattern[str], text: str) -> str | None:
        values = [self.value(match) for match in rule.finditer(text)]
        return next((v for v in reversed(values) if v is not None), None)


def extract(text: str, kind: str = "number") -> str | None:
    """The answer that `text` gives, in normal form; None where it gives none.

    `kind` is "number" or "letter" (A to J, for multiple choice). A reference answer given by itself
    ("1,234") comes into the same normal form, so that both can be compared. Raises UnknownNameError.
    """
    rules = KINDS.get(kind)
    if rules is None:
        raise unknown("kind of answer", kind, KINDS)
    plain = _plain(text)
    in_boxes = (rules.last(rules.in_box, _plain(box)) for box in reversed(boxed(text)))
    in_text = (rules.last(rule, plain) for rule in rules.in_text)
    return next((found for found in chain(in_boxes, in_text) if found is not None), None)


def _plain(text: str) -> str:
    """LaTeX's ways to write numbers and words, rewritten as plain text."""
    for pattern, by in _REWRITES:
        text = pattern.sub(by, text)
    return text


def boxed(text: str) -> list[str]:
    r"""The contents of every complete `\boxed{...}` that is in no other, in order."""
    open_braces: list[int | None] = []
    spans: list[tuple[int, int]] = []
    for match in _BRACE.finditer(text):
        if match[0] == "}" and open_braces:
            start = open_braces.pop()
            if start is not None:
                spans = _without_inner(spans, start)
                spans.append((start, match.start()))
        elif match[0].endswith("{") and match[0] != r"\{":
            open_braces.append(match.end() if len(match[0]) > 1 else None)
    return [text[start:end] for start, end in spans]


def _without_inner(spans: list[tuple[int, int]], start: int) -> list[tuple[int, int]]:
    while spans and spans[-1][0] > start:
        spans.pop()
    return spans


def _value(match: re.Match[str]) -> str | None:
    """The normal form of a matched number; None for a division by zero, or where it is too long to be read again."""
    digits = {name: (match[name] or "").replace(",", "") for name in ("whole", "top", "bottom", "exponent")}
    bottom = Fraction(digits["bottom"] or 1)
    if bottom == 0:
        return None
    number = Fraction(digits["whole"] or 0) + Fraction(digits["top"]) / bottom
    number *= Fraction(10) ** int(digits["exponent"] or 0)
    normal = _normal(-number if bool(match["minus"]) != bool(match["minus2"]) else number)
    return normal if _READABLE.fullmatch(normal) else None


def _normal(number: Fraction) -> str:
    """An integer, a finite decimal, or a reduced fraction."""
    places, rest = 0, number.denominator
    while rest % 10 == 0:
        places, rest = places + 1, rest // 10
    for factor in (2, 5):
        while rest % factor == 0:
            places, rest = places + 1, rest // factor
    if rest != 1:
        return str(number)
    if places == 0:
        return str(number.numerator)
    digits = str(abs(number.numerator) * 10**places // number.denominator).rjust(places + 1, "0")
    return f"{'-' if number < 0 else ''}{digits[:-places]}.{digits[-places:]}"


KINDS: Mapping[str, _Rules] = {
    "number": _Rules(
        in_box=_READABLE,
        in_text=(
            _pattern(_MARK + _NUMBER),
            _pattern(_SAYS + _SUM + r"[*_(\[{\\]{0,4}" + _NUMBER),
            _READABLE,
        ),
        value=_value,
    ),
    "letter": _Rules(
        in_box=_pattern(_LETTER),
        in_text=(
            _pattern(_MARK + _LETTER),
            _pattern(_SAYS + _LETTER),
            _pattern(r"\((?P<letter>[A-J])\)"),
            _pattern(rf"\A\s*{_LETTER}(?:[.):]|\W*\Z)"),
        ),
        value=lambda match: match["letter"],
    ),
}
