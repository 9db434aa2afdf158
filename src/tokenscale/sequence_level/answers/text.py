"""Free text as an answer, and its normal form: what is left when two people write the same answer."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from itertools import islice

from tokenscale.sequence_level.answers.places import LAST

_WRAPPED = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|emph|boldsymbol)\s?\{([^{}]{0,200})\}")
_SPACING = re.compile(r"\\boxed\s?\{\s?\}|\\[,;:! ]|\\q?quad\b|~")
_DELIMITERS = re.compile(r"\\[()\[\]]|(?<!\\)\$")
_ESCAPED = re.compile(r"\\([$%&#_{}])")
_EMPHASIS = re.compile(r"\*\*|__|`")
_QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2212": "-"})
_ARTICLES = re.compile(r"(?:(?:a|an|the) )+(?=\S)")
_BRACKETED = re.compile(r"\(([^()]*)\)|\[([^\[\]]*)\]|\{([^{}]*)\}|<([^<>]*)>")
_AROUND = " .,;:!?\"'*_\u00ab\u00bb\u2026\u3002\uff0c\u3001\uff1b\uff1a\uff01\uff1f\u300c\u300d\u300e\u300f"
# A full stop ends a sentence behind a word of three letters or more, a number or a bracket: not in "St. Louis".
_SENTENCE = re.compile(r"""(?:(?<=[^\W\d_]{3})|(?<=[\d)\]}"'*$%]))[.!?\u3002](?=["'*_)]{0,4}(?:\s|\Z))""")


def normal_text(text: str) -> str | None:
    """One form of a text, whatever its case, white space, leading articles, LaTeX, emphasis and punctuation around.

    None where nothing is left. What stands within the text stays, so "vitamin A" and "vitamin B" differ.
    """
    text = unicodedata.normalize("NFKC", text.translate(_QUOTES))
    text = _SPACING.sub(" ", unwrapped(text))
    text = _EMPHASIS.sub("", _ESCAPED.sub(r"\1", _DELIMITERS.sub("", text)))
    text = " ".join(text.casefold().split()).strip(_AROUND)
    if whole := _BRACKETED.fullmatch(text):
        text = next(group for group in whole.groups() if group is not None).strip(_AROUND)
    articles = _ARTICLES.match(text)
    return (text[articles.end() :] if articles else text) or None


def unwrapped(text: str) -> str:
    r"""A text without the commands that LaTeX wraps words in: `\text{(B)}` is `(B)`."""
    return _WRAPPED.sub(r"\1", text)


def text_at(text: str, place: int) -> str | None:
    """The rest of the sentence that begins at `place`, in normal form."""
    return normal_text(sentence(text, place))


def sentence(text: str, place: int) -> str:
    """What stands at `place` up to the end of its sentence or line; a line break before it is passed over."""
    line = _line_at(text, place)
    end = _SENTENCE.search(line)
    return line[: end.start()] if end else line


def _line_at(text: str, place: int) -> str:
    while place < len(text) and text[place].isspace():
        place += 1
    end = text.find("\n", place)
    return text[place : end if end >= 0 else len(text)]


def last_line(text: str) -> str | None:
    """The last line that has a normal form, in it: the whole text where it is one line."""
    forms = (normal_text(line) for line in last_lines(text))
    return next((form for form in forms if form is not None), None)


def last_lines(text: str) -> Iterator[str]:
    """The last lines that are not blank, the last one first."""
    lines = (line for line in reversed(text.splitlines()) if line and not line.isspace())
    return islice(lines, LAST)
