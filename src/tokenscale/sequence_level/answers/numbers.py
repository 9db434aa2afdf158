r"""Numbers in a text, and their one normal form: the exact value as an integer, a finite decimal or a reduced fraction.

What is rewritten before a text is searched is the table REWRITES; what a number looks like then is NUMBER.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

# Longer runs of digits are a model that repeats itself, and slow to compute with.
_DIGITS = r"(?:\d{1,3}(?:,\d{3}){1,13}|\d{1,40})(?!\d)"
NUMBER = rf"""
    (?<!\w)(?<!\d\.)                # not inside a word or a longer number
    (?P<minus>(?<![)\]}}])-)?\+?    # behind a bracket (or a digit: above) a minus subtracts
    (?:(?:(?:US|A|C|HK|R)?[$€£¥₹₩₽]|USD|EUR|GBP|INR|Rs)\ ?(?P<minus2>-)?)?
    (?:(?P<whole>{_DIGITS})\ +(?=\d{{1,40}}/\d))?
    (?P<top>{_DIGITS}(?:\.\d{{1,40}}(?!\d))?|(?<!\.)\.\d{{1,40}}(?!\d))
    (?:\ ?/\ ?(?P<bottom>{_DIGITS})|[eE](?P<exponent>[-+]?\d{{1,2}})(?!\w))?
    (?:\s?(?i:(?P<scale>hundred|thousand|million|billion|trillion))(?!\w))?
"""
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}

_FRACTION = r"\\[dt]?frac\s?\{\s?([^{}\s]{1,50})\s?\}\s?\{\s?([^{}\s]{1,50})\s?\}"
_POWER = r"\s?\^\s?(?:\{\s?([-+]?\d{1,2})\s?\}|([-+]?\d{1,2})(?!\d))"
_TIMES = r"\s?(?:\\times|\\cdot|[\u00d7\u00b7\u22c5*x])\s?"
_FACTOR = r"(?:(?<![\w.])\d[\d.,]{0,40}\s?)?"
_VULGAR = {
    **{"½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5", "⅗": "3/5"},
    **{"⅘": "4/5", "⅙": "1/6", "⅚": "5/6", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8"},
}
_JOINT = "\ue000"
_CHARACTERS = str.maketrans(
    {
        **{char: _JOINT + fraction for char, fraction in _VULGAR.items()},
        **{chr(0xFF10 + digit): str(digit) for digit in range(10)},
        # The minus sign, and the dash that is often typed for it.
        **dict.fromkeys("\u2212\u2013\uff0d", "-"),
        **dict.fromkeys("\u00a0\u2009\u202f~", "\u00a0"),
        "\uff0e": ".",
        "\uff0c": ", ",
        "\uff04": "$",
        "\uff05": "%",
        "\u2044": "/",
    }
)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")


def _ratio(top: str, bottom: str) -> str:
    """A fraction with its minus, if it has one, in front."""
    if not bottom.startswith("-"):
        return f"{top}/{bottom}"
    return f"{top[1:] if top.startswith('-') else '-' + top}/{bottom[1:]}"


# Stands where something with digits is no number.
_NONE = " @ "

_By = str | Callable[[re.Match[str]], str]
# What must stand in a text for the rewriting to be tried ("" for any text), the pattern, and what replaces it.
REWRITES: tuple[tuple[str, re.Pattern[str], _By], ...] = tuple(
    (needle, re.compile(pattern, re.ASCII), by)
    for needle, pattern, by in (
        ("", r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]{1,8}", lambda match: f"^{{{match[0].translate(_SUPERSCRIPTS)}}}"),
        # Separators of thousands: 1{,}234 and 1\,234 of LaTeX, thin spaces, 1_234, 1'234, 1 000, 1.234,56.
        ("{,}", r"\{,\}", ","),
        ("\\", r"(?<=\d)\\[,!;:](?=\d{3}(?!\d))", ""),
        ("", "(?<=\\d)(?:[\u00a0_'\u2019](?=\\d{3}(?!\\d))| (?=000(?!\\d)))", ""),
        (",", r"(?<![\w.,])\d{1,3}(?:\.\d{3}){1,13},\d{1,2}(?![\w,])", lambda match: _from_continental(match[0])),
        ("\\", r"\\[,!;:]", " "),
        ("\u00a0", "\u00a0", " "),
        ("frac", r"\\[dt]?frac\s?(\d)\s?(\d)", r"\\frac{\1}{\2}"),
        ("frac", _FRACTION, lambda match: _JOINT + _ratio(match[1], match[2])),
        # A fraction behind a number makes a mixed one; behind anything else a minus may belong to it.
        (_JOINT, rf"(?<=\w){_JOINT}", " "),
        (_JOINT, _JOINT, ""),
        ("\\", r"\\(?:text|mathrm|mathbf|textbf|mbox)\s?\{([^{}]{0,200})\}", r"\1"),
        ("\\", r"\\([$%])", r"\1"),
        ("Rs.", r"\bRs\.\s?", "Rs "),
        # Scientific notation.
        ("10", rf"(?<=[\d.]){_TIMES}10{_POWER}", lambda match: f"e{match[1] or match[2]}"),
        ("10", rf"(?<![\w.^}}])(?<!\^\{{)10{_POWER}(?!\w)", lambda match: f"1e{match[1] or match[2]}"),
        ("\\circ", r"\^\s?(?:\{\s?\\circ\s?\}|\\circ(?![A-Za-z]))", "\u00b0"),
        # No numbers: dates, times, ratios, versions; powers, roots and multiples of pi; exponents of units, indices.
        ("", r"(?<![\w.,/:])\d{1,4}([./:])\d{1,4}(?:\1\d{1,4}){1,6}(?!\w)", _NONE),
        ("-", r"(?<![\w.-])(?:\d{4}-\d{1,2}-\d{1,2}|\d{1,2}-\d{1,2}-\d{4})(?!\w)", _NONE),
        (":", r"(?<![\w.,])\d{1,9}:\d{1,9}(?!\w)", _NONE),
        ("^", r"\([^()]{1,40}\)\s?\^\s?(?:\{[^{}]{0,40}\}|-?\d{1,40}|\S)", _NONE),
        ("^", r"(?<![\w.])(?<!\d,)\d[\d.,]{0,40}\s?\^\s?(?:\{[^{}]{0,40}\}|-?\d{1,40}|\S)", _NONE),
        ("\\sqrt", rf"{_FACTOR}\\sqrt\s?(?:\[\d\])?\s?(?:\{{[^{{}}]{{0,80}}\}}|\d)", _NONE),
        ("\u221a", rf"{_FACTOR}\u221a\s?\(?\d*", _NONE),
        ("\\pi", rf"{_FACTOR}\\pi(?![A-Za-z])", _NONE),
        ("\u03c0", rf"{_FACTOR}\u03c0", _NONE),
        ("", r"[\^_]\s?(?:\{[^{}]{0,40}\}|-?\d{1,3})", ""),
    )
)


def compiled(pattern: str) -> re.Pattern[str]:
    """A verbose pattern of ASCII digits and words."""
    return re.compile(pattern, re.VERBOSE | re.ASCII)


_READABLE = compiled(NUMBER)
# What may stand between "the answer is" and the number: signs, a sum that ends in "=", brackets.
_BEHIND = compiled(
    r"""[\s:=*_"'`(\[{\\$\u2248]{0,8}?(?:(?i:about|approximately|roughly|exactly|around|only)\s)?(?:[A-Za-z]\s?=\s?)?"""
    r"(?:(?:[-+*/\u00d7\u00f7x()\ \d$=]|[.,](?=\d)){0,80}=\s{0,8})?[*_(\[{\\]{0,4}" + NUMBER
)


def prepare(text: str) -> str:
    """The ways to write numbers in LaTeX and elsewhere, rewritten as plain text."""
    text = text.translate(_CHARACTERS)
    for needle, pattern, by in REWRITES:
        if needle in text:
            text = pattern.sub(by, text)
    return text


def last_number(text: str) -> str | None:
    """The last number of a prepared text, in normal form."""
    values = map(value, reversed([*_READABLE.finditer(text)]))
    return next((v for v in values if v is not None), None)


def number_at(text: str, place: int) -> str | None:
    """The number that a prepared text gives at `place`, where an answer is announced."""
    match = _BEHIND.match(text, place)
    return value(match) if match else None


def value(match: re.Match[str]) -> str | None:
    """The normal form of a matched number; None for a division by zero, or where it is too long to be read again."""
    digits = {name: (match[name] or "").replace(",", "") for name in ("whole", "top", "bottom", "exponent")}
    bottom = Fraction(digits["bottom"] or 1)
    if bottom == 0:
        return None
    number = Fraction(digits["whole"] or 0) + Fraction(digits["top"]) / bottom
    number *= Fraction(10) ** (int(digits["exponent"] or 0) + _SCALES.get((match["scale"] or "").lower(), 0))
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


def _from_continental(text: str) -> str:
    return text.replace(".", "").replace(",", ".")
