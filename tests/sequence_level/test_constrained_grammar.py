"""Grammars against automata of the same language, and against a parser of brackets."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import pytest

from tests.sequence_level.constraining import Speller, demo, reachable, tokens, walk
from tests.sequence_level.test_constrained_tokenizers import byte_level, sentencepiece
from tokenscale.core.errors import ArgumentError, CapabilityError
from tokenscale.models.toy import ToyModel
from tokenscale.sequence_level.constrained import Constrained

BRACKETS = 'start: "(" start* ")" | "x"'
SAME = [
    ('start: "a" | "ab"', "a|ab"),
    ('start: "-"? /[0-9]{1,3}/', "-?[0-9]{1,3}"),
    ('start: word (" " word)*\nword: /[a-zé日]+/', "[a-zé日]+( [a-zé日]+)*"),
]


@pytest.fixture(autouse=True)
def _library() -> None:
    pytest.importorskip("llguidance")


@pytest.mark.parametrize(("grammar", "pattern"), SAME)
@pytest.mark.parametrize("tokenizer", ["demo", "byte level", "sentencepiece"])
def test_a_regular_grammar_allows_what_its_pattern_does(tokenizer: str, grammar: str, pattern: str) -> None:
    lm: Any = demo()
    if tokenizer != "demo":
        made = {"byte level": byte_level, "sentencepiece": lambda: sentencepiece(0)}[tokenizer]()
        lm = Speller(made, [made.eos_token_id], size=len(made) + 3)
    for seed in range(4):
        one, two = Constrained(grammar=grammar).start(lm), Constrained(regex=pattern).start(lm)
        for token in walk(lm, two.fork(), seed, 8)[0]:
            assert tokens(one, lm.vocab_size) == tokens(two, lm.vocab_size)
            assert (one.met, one.over) == (two.met, two.over)
            one, two = one.fork(), two.fork()
            one.advance(token)
            two.advance(token)
        assert (one.met, one.over) == (two.met, two.over)


def balanced(text: str) -> bool:
    for _ in range(len(text)):
        text = text.replace("()", "x").replace("(xx", "(x").replace("(x)", "x")
    return text == "x"


def test_brackets_close() -> None:
    lm = ToyModel(("(", ")", "x", "((", "))", ")x", "()"), spelling="")
    found = reachable(lm, Constrained(grammar=BRACKETS).start(lm), 6)
    assert {"x", "()", "(x)", "((x))", "(()())", "(xx)"} <= found
    assert all(balanced(text) for text in found)


def test_a_grammar_begins_behind_a_marker_too() -> None:
    lm = ToyModel(("(", ")", "x", "#(", "#", "x#x", "x#)"), spelling="")
    guide = Constrained(grammar=BRACKETS, after="##").start(lm)
    found = reachable(lm, guide, 5)
    assert {"##x", "x##x", "##(x)", "##()"} <= found
    assert all(balanced(text.partition("##")[2]) for text in found)
    guide.advance(lm.tokenizer.encode("#")[0])
    assert lm.tokenizer.encode("#(")[0] in tokens(guide, lm.vocab_size)


def test_forks_of_grammars_are_independent() -> None:
    lm = ToyModel(("(", ")", "x"), spelling="")
    guide = Constrained(grammar=BRACKETS).start(lm)
    guide.advance(1)
    before, other = tokens(guide, lm.vocab_size), guide.fork()
    other.advance(2)
    assert other.met
    assert not guide.met
    assert tokens(guide, lm.vocab_size) == before


def test_a_refused_token_leaves_the_parser_dead() -> None:
    lm = ToyModel(("(", ")", "x"), spelling="")
    guide = Constrained(grammar=BRACKETS).start(lm)
    guide.advance(2)
    guide.advance(3)
    assert guide.over
    assert not guide.met
    assert not tokens(guide, lm.vocab_size)


WRONG = [
    ('start: "a" c', 'unknown name: "c"'),
    ("start: (", "1(9): Expected token"),
    ('other: "a"', "no start rule"),
    ("start: /(/", "unclosed group"),
]


@pytest.mark.parametrize(("grammar", "message"), WRONG)
def test_what_is_no_grammar_is_refused_with_its_place(grammar: str, message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        Constrained(grammar=grammar)
    assert "is no Lark grammar" in caught.value.message
    assert message in caught.value.message
    assert "start:" in caught.value.hint


def test_a_grammar_that_cannot_be_spelled_is_refused() -> None:
    with pytest.raises(ArgumentError, match="can spell no text"):
        Constrained(grammar='start: "y"').start(ToyModel(("(", ")", "x"), spelling=""))


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ImportError):
        importlib.import_module("llguidance")
    constraint = Constrained(grammar='start: "x" "x"')  # one that no other test has parsed
    with pytest.raises(CapabilityError, match="not installed") as caught:
        constraint.start(ToyModel(("(", ")", "x"), spelling=""))
    assert caught.value.hint == "pip install 'tokenscale[grammar]'"
