"""Automata of regular expressions against Python's own `re.fullmatch`."""

import itertools
import re
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenscale.core.errors import ArgumentError
from tokenscale.sequence_level import guides_automaton, guides_regex
from tokenscale.sequence_level.guides_automaton import DEAD, Automaton, can_end, compile_regex
from tokenscale.sequence_level.guides_utf8 import LAST, Steps, complement, merged, utf8

ALPHABET = "ab\né中"
TEXTS = ["".join(text) for length in range(4) for text in itertools.product(ALPHABET, repeat=length)]
ATOMS = [
    "a",
    "b",
    "é",
    "中",
    "[ab]",
    "[^a]",
    "[^\\n中]",
    ".",
    "(?s:.)",
    "\\w",
    "\\s",
    "[é-中]",
    "\\n",
    "(?:)",
    "[^\\W]",
]
REPEATS = ["*", "+", "?", "*?", "+?", "??", "{2}", "{1,2}", "{0,2}?", "{,1}", "{2,}"]


def takes(automaton: Automaton, text: str) -> bool:
    return bool(automaton.accepting[automaton.after(automaton.start, text.encode())])


def larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda pair: f"({pair[0]}|{pair[1]})"),
        st.tuples(inner, st.sampled_from(REPEATS)).map(lambda pair: f"(?:{pair[0]}){pair[1]}"),
    )


PATTERNS = st.recursive(st.sampled_from(ATOMS), larger, max_leaves=6)


@settings(max_examples=60)
@given(PATTERNS)
def test_every_text_is_taken_exactly_where_re_takes_it(pattern: str) -> None:
    try:
        automaton = compile_regex(pattern, "regex")
    except ArgumentError:
        assert re.fullmatch(pattern, "")
        assert not any(re.fullmatch(pattern, text) for text in TEXTS if text)
        return
    for text in TEXTS:
        assert takes(automaton, text) == (re.fullmatch(pattern, text) is not None), text


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("a|ab", ["a", "ab"], ["", "b", "abb"]),  # outlines_core's own index drops "ab"
        ("^(ab|cd)$", ["ab", "cd"], ["abcd"]),
        ("^a|b$", ["a", "b"], ["ab"]),
        (r"\Aa{2,3}\Z", ["aa", "aaa"], ["a", "aaaa"]),
        (r"[^\"\\]+", ["ü", "\U0001f600"], ['"', "\\"]),
        ("(?x) a b # blanks", ["ab"], ["a b"]),
        ("(?a:\\d)\\d", ["12", "1٢"], ["٢1"]),
        ("(?P<n>a)(?:b(?P<m>c))?", ["a", "abc"], ["ab"]),
    ],
)
def test_the_dialect_is_pythons(pattern: str, yes: list[str], no: list[str]) -> None:
    automaton = compile_regex(pattern, "regex")
    assert all(takes(automaton, text) and re.fullmatch(pattern, text) for text in yes)
    assert not any(takes(automaton, text) or re.fullmatch(pattern, text) for text in no)


@pytest.mark.parametrize("flags", ["", "(?a)"])
@pytest.mark.parametrize("category", ["\\d", "\\D", "\\s", "\\S", "\\w", "\\W"])
def test_categories_hold_the_characters_that_re_says(flags: str, category: str) -> None:
    automaton, own = compile_regex(flags + category, "regex"), re.compile(flags + category)
    codes = [*range(0x800), *range(0x800, 0xD800, 41), *range(0xE000, LAST + 1, 1009), LAST]
    for text in map(chr, codes):
        assert takes(automaton, text) == (own.fullmatch(text) is not None), hex(ord(text))


def writes(steps: Steps, data: bytes) -> bool:
    """Whether there is a way for these bytes; there must never be two."""
    ways: Steps | None = steps
    for byte in data:
        found = [rest for low, high, rest in ways or () if low <= byte <= high]
        assert len(found) <= 1
        if not found:
            return False
        ways = found[0]
    return ways is None


CODES = st.one_of(st.integers(0, LAST), st.sampled_from([0x7F, 0x80, 0x7FF, 0x800, 0xD7FF, 0xE000, 0xFFFF, 0x10000]))


@settings(max_examples=30)
@given(st.lists(st.tuples(CODES, CODES).map(sorted).map(tuple), min_size=1, max_size=4))
def test_the_bytes_of_a_set_write_its_characters_and_no_others(ranges: list[tuple[int, int]]) -> None:
    kept = merged(ranges)
    assert merged([*kept, *complement(kept)]) == ((0, LAST),)
    edges = {code + shift for pair in kept for code in pair for shift in (-64, -1, 0, 1, 64)}
    for code in edges:
        if 0 <= code <= LAST and not 0xD800 <= code <= 0xDFFF:
            assert writes(utf8(kept), chr(code).encode()) == any(low <= code <= high for low, high in kept)


@pytest.mark.parametrize("pattern", ["(ab*c|a*d)+", '"[^"]*"', "\\w{1,3}", "(?:x[0-9]{2}|y)é"])
def test_from_every_state_the_text_can_be_ended(pattern: str) -> None:
    automaton = compile_regex(pattern, "regex")
    sources = np.repeat(np.arange(len(automaton.table)), 256)
    assert can_end(sources, automaton.table.ravel(), automaton.accepting)[1:].all()
    assert not automaton.table[DEAD].any()


WRONG = [
    ("[0-9", "unterminated character set, at character 1\n  [0-9\n  ^", "Python's re"),
    ("a(b", "missing ), unterminated subpattern, at character 2", "Python's re"),
    ("ab**", "multiple repeat, at character 4\n  ab**\n     ^", "Python's re"),
    ("x{99999999999}", "repetition number is too large", "Python's re"),
    ("ab(?=c)", "regex has '(?=', at character 3\n  ab(?=c)\n    ^", "looking ahead"),
    ("(?<!a)b", "regex has '(?<!', at character 1", "looking ahead"),
    (r"(a)\1", r"regex has '\\1', at character 4", "again"),
    ("(?P<n>a)(?P=n)", "regex has '(?P=', at character 9", "again"),
    ("(a)?(?(1)b|c)", r"regex has '(?(', at character 5", "again"),
    ("a^b", "regex has '^', at character 2", "from end to end"),
    (r"[^a]a\b", r"regex has '\\b', at character 6", "from end to end"),
    ("(?i)yes", "regex has '(?i', at character 1", "both cases"),
    ("a(?m:b$)c", "regex has '(?m', at character 2", "both cases"),
    ("a++", "regex has '++', at character 2", "leave the + out"),
    ("(?>a)", "regex has '(?>', at character 1", "(?:...)"),
    ("[^\\s\\S]", "regex matches no text at all", "some text"),
    ("a[^\\s\\S]|b[^\\s\\S]*[^\\w\\W]", "regex matches no text at all", "some text"),
    ("(?:)|^$", "regex matches the empty text alone", "with text"),
]


@pytest.mark.parametrize(("pattern", "message", "hint"), WRONG)
def test_what_is_no_automaton_is_refused_with_its_place(pattern: str, message: str, hint: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        compile_regex(pattern, "regex")
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(("module", "pattern"), [(guides_automaton, ".*a.{20}"), (guides_regex, "(x{100}){100}")])
def test_automata_that_explode_are_refused(module: ModuleType, pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_STATES", 1000)
    with pytest.raises(ArgumentError, match="more than 1000 states") as caught:
        compile_regex(pattern, "regex")
    assert "repeat less" in caught.value.hint
