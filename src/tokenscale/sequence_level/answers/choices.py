"""Answers from a short list: the letters of a multiple choice, and yes or no."""

from __future__ import annotations

import re

from tokenscale.sequence_level.answers.places import last_match

_LETTER = r"(?<!\w)(?P<letter>[A-J])(?!\w)"
_IN_BOX = re.compile(rf"[^\w\n]{{0,8}}(?:{_LETTER}|\A\W{{0,8}}(?P<small>[a-j])\W{{0,8}}\Z)", re.ASCII)
_BEHIND_LETTER = re.compile(
    rf"[^\w\n]{{0,8}}(?:(?i:option|choice|letter)\s)?[^\w\n]{{0,8}}"
    rf"(?:{_LETTER}|(?P<small>[a-j])(?:\)|[.*]{{0,3}}[ \t]{{0,4}}(?:\n|\Z)))",
    re.ASCII,
)
_BRACKETED = re.compile(r"\((?P<letter>[A-J])\)(?P<small>)", re.ASCII)
_FIRST = re.compile(rf"\A\s*[^\w\n]{{0,8}}(?:{_LETTER}(?:[.):]|\W*\Z)|(?P<small>[a-j])\W{{0,8}}\Z)", re.ASCII)

# "true" is yes; "not true" and "isn't true" are no. A bare "no" before a word is a determiner, not an answer.
_WORD = r"(?P<not>\bnot\s{1,4}|n't\s{1,4})?\b(?P<word>yes|true|false|no(?!\s{1,4}\w))\b"
_BOOLEAN = re.compile(_WORD, re.ASCII | re.IGNORECASE)
_BEHIND_BOOLEAN = re.compile(rf"[^\w\n]{{0,8}}{_WORD}", re.ASCII | re.IGNORECASE)
_FIRST_BOOLEAN = re.compile(rf"\A[^\w]{{0,8}}{_WORD}(?=\W{{0,4}}(?:[.,;:!\n]|\Z))", re.ASCII | re.IGNORECASE)


def letter_in_box(text: str) -> str | None:
    """The last letter of what is in a box; a small one where it stands alone."""
    return _last_letter(_IN_BOX, text)


def letter_at(text: str, place: int) -> str | None:
    """The letter that stands at `place`: "B", "(b)", "option B"."""
    match = _BEHIND_LETTER.match(text, place)
    return _letter(match) if match else None


def letter_in_text(text: str) -> str | None:
    """The last letter in brackets, as in "(B)", else the one that the text begins with or consists of."""
    return _last_letter(_BRACKETED, text) or _last_letter(_FIRST, text)


def boolean_in_box(text: str) -> str | None:
    """The last yes, no, true or false of what is in a box."""
    return _last_boolean(text)


def boolean_at(text: str, place: int) -> str | None:
    """The yes, no, true or false that stands at `place`."""
    match = _BEHIND_BOOLEAN.match(text, place)
    return _boolean(match) if match else None


def boolean_in_text(text: str) -> str | None:
    """The yes or no that the text begins with, as in "No, because ...", else the last one."""
    first = _FIRST_BOOLEAN.match(text)
    return _boolean(first) if first else _last_boolean(text)


def _last_letter(rule: re.Pattern[str], text: str) -> str | None:
    found = last_match(rule, text)
    return _letter(found) if found else None


def _letter(match: re.Match[str]) -> str:
    letter: str = match["letter"] or match["small"]
    return letter.upper()


def _last_boolean(text: str) -> str | None:
    found = last_match(_BOOLEAN, text)
    return _boolean(found) if found else None


def _boolean(match: re.Match[str]) -> str:
    positive = match["word"].lower() in ("yes", "true")
    return "yes" if positive != bool(match["not"]) else "no"
