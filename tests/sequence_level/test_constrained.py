"""Constrained over whole vocabularies: what can be written equals the language, by brute force."""

from __future__ import annotations

import itertools
import json
import re

import pytest
from outlines_core import Guide, Index
from outlines_core import Vocabulary as OutlinesVocabulary

from tests.sequence_level.constraining import demo, reachable, tokens, walk
from tokenscale.core.errors import ArgumentError, CapabilityError
from tokenscale.models.toy import ToyModel
from tokenscale.pipeline import Pipeline
from tokenscale.sequence_level.beam_search import BeamSearch
from tokenscale.sequence_level.constrained import Constrained
from tokenscale.sequence_level.guides import Marker
from tokenscale.sequence_level.guides_tokens import token_texts
from tokenscale.sequence_level.self_consistency import SelfConsistency
from tokenscale.token_level.decoders import Greedy, Sample
from tokenscale.token_level.roe import RoE


def toy(*words: str, **options: object) -> ToyModel:
    return ToyModel(words, spelling="", moe_layers=1, experts=2, top_k=1, width=2, **options)  # type: ignore[arg-type]


SYLLABLES = toy("a", "b", "ab", "ba", "aab", "é", "bé")
PATTERNS = ["a|ab", "(ab)*", "a*?b??a", "[ab]{2,3}|é+", "(a|b)*é(a|b)?", "[^a]+", ".{1,3}", "(?:ab|a)(?:ba)?", "aab|é"]


def texts(alphabet: str, longest: int) -> list[str]:
    return ["".join(text) for n in range(longest + 1) for text in itertools.product(alphabet, repeat=n)]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_can_be_written_is_the_language_of_the_pattern(pattern: str) -> None:
    language = {text for text in texts("abé", 4) if re.fullmatch(pattern, text)}
    assert reachable(SYLLABLES, Constrained(regex=pattern).start(SYLLABLES), 4) == language


@pytest.mark.parametrize("pattern", ["a(b|c)|bab", "a*c", "(ab?)+", "[abc]{3}"])
def test_a_vocabulary_with_gaps_never_leads_nowhere(pattern: str) -> None:
    lm = toy("a", "ab", "bab", "cc")
    spelled = {"".join(parts) for n in range(6) for parts in itertools.product(("a", "ab", "bab", "cc"), repeat=n)}
    language = {text for text in spelled if len(text) <= 5 and re.fullmatch(pattern, text)}
    assert language or pattern == "a*c"
    if language:
        assert reachable(lm, Constrained(regex=pattern).start(lm), 5) == language
    else:
        with pytest.raises(ArgumentError, match=r"of toy can spell no text of Constrained\(regex='a\*c'\)"):
            Constrained(regex=pattern).start(lm)


@pytest.mark.parametrize("choice", [("a", "ab"), ("ab", "a", "aab"), ("éa", "a"), ("aaa",)])
def test_a_choice_can_write_its_texts_and_no_others(choice: tuple[str, ...]) -> None:
    assert reachable(SYLLABLES, Constrained(choice=choice).start(SYLLABLES), 5) == set(choice)


def test_a_choice_means_its_characters() -> None:
    signs = r"\.+*?()|[]{}^$#&-~ é"
    lm = toy(*signs, "x", "\n")
    guide = Constrained(choice=(signs, "x.x", "\n")).start(lm)
    assert reachable(lm, guide, len(signs)) == {signs, "x.x", "\n"}


@pytest.mark.parametrize("marker", ["b", "ab", "aab", "aa", "éa"])
@pytest.mark.parametrize("pattern", ["a|ab", "b+", "(ba)*é"])
def test_behind_a_marker_the_pattern_holds_from_the_next_character(marker: str, pattern: str) -> None:
    language = {text for text in texts("abé", 5) if marker in text and re.fullmatch(pattern, text.partition(marker)[2])}
    guide = Constrained(regex=pattern, after=marker).start(SYLLABLES)
    assert not guide.met
    assert reachable(SYLLABLES, guide, 5) == language


@pytest.mark.parametrize("text", ["a", "aa", "aab", "aba", "abab", "aabaa", "abaab"])
def test_a_marker_is_found_however_the_text_is_cut(text: str) -> None:
    marker = Marker(text.encode())
    for read in texts("ab", 8):
        for cut in range(len(read) + 1):
            state = 1
            for byte in read[:cut].encode():
                state = int(marker.table[state, byte])
            end = state
            for byte in read[cut:].encode():
                end = int(marker.table[end, byte])
            assert (end == marker.found) == (text in read)
            if text in read and text not in read[:cut]:
                assert marker.rest(state, read[cut:].encode()).decode() == read.partition(text)[2]


def test_before_the_marker_all_is_free_but_the_end() -> None:
    guide = Constrained(regex="aa", after="é").start(SYLLABLES)
    assert tokens(guide, SYLLABLES.vocab_size) == set(range(1, SYLLABLES.vocab_size))
    guide = Constrained(regex="aa", after="b").start(SYLLABLES)
    wrong = SYLLABLES.tokenizer.encode("bé")[0]  # the marker, and at once what the pattern forbids
    assert tokens(guide, SYLLABLES.vocab_size) == set(range(1, SYLLABLES.vocab_size)) - {wrong}


def test_a_marker_that_cannot_be_spelled_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"can spell no text of Constrained\(regex='a', after='x'\)"):
        Constrained(regex="a", after="x").start(SYLLABLES)
    lm = toy("a", "#b")  # the marker is always followed by what the constraint forbids
    with pytest.raises(ArgumentError, match="can spell no text"):
        Constrained(regex="a", after="#").start(lm)


def test_forks_are_independent() -> None:
    for constraint in (Constrained(regex="(ab)*é"), Constrained(regex="(ab)*é", after="b")):
        guide = constraint.start(SYLLABLES)
        guide.advance(SYLLABLES.tokenizer.encode("ab")[0])
        before = tokens(guide, SYLLABLES.vocab_size)
        other = guide.fork()
        other.advance(SYLLABLES.tokenizer.encode("é")[0])
        assert other.met
        assert other.over
        assert not guide.met
        assert tokens(guide, SYLLABLES.vocab_size) == before != tokens(other, SYLLABLES.vocab_size)


def test_a_refused_token_leaves_the_guide_dead() -> None:
    guide = Constrained(regex="ab").start(SYLLABLES)
    guide.advance(SYLLABLES.tokenizer.encode("b")[0])
    guide.advance(SYLLABLES.tokenizer.encode("ab")[0])
    assert guide.over
    assert not guide.met
    assert not tokens(guide, SYLLABLES.vocab_size)


def test_end_and_suppressed_tokens_spell_nothing() -> None:
    lm = toy("a", "b", suppressed_ids=(2,))
    assert reachable(lm, Constrained(regex="[ab]{2}").start(lm), 2) == {"aa"}
    with pytest.raises(ArgumentError, match="can spell no text"):
        Constrained(regex="b").start(lm)


def test_text_is_needed() -> None:
    with pytest.raises(CapabilityError, match="came without a tokenizer") as caught:
        Constrained(regex="a").start(toy("a", with_tokenizer=False))
    assert "tokenizer=" in caught.value.hint


DEMO_PATTERNS = [
    " ?[0-9]{1,3}",
    "[a-z]+( [a-z]+){0,3}",
    "[é-ü日-本]{1,4}",
    r"-?\d+(\.\d\d)?",
    "[^a-zA-Z]{3,6}",
    "(?s:.){2,4}",
]


@pytest.mark.parametrize("pattern", DEMO_PATTERNS)
def test_walks_over_the_demo_vocabulary_match(pattern: str) -> None:
    lm = demo()
    for seed in range(10):
        ids, met = walk(lm, Constrained(regex=pattern).start(lm), seed, 40)
        text = lm.decode(ids)
        assert met == (re.fullmatch(pattern, text) is not None)
        assert met or len(ids) == 40


def test_outlines_own_guide_allows_the_same() -> None:
    # Patterns whose texts, once they may end, go on by single bytes or not at all: others it cuts short.
    lm = demo()
    spelled: dict[bytes, list[int]] = {}
    for token, text in enumerate(token_texts(lm)):
        if text is not None:
            spelled.setdefault(text, []).append(token)
    [end] = lm.eos_ids
    vocabulary = OutlinesVocabulary(end, spelled)
    for pattern in (" [0-9]{1,3}", "[a-z]{2}( [a-z]+)+!", "[日-本]{2}é", '"([^"\\\\]|\\\\["n])*"', "[^0-9]{4}"):
        index = Index(pattern, vocabulary)
        for seed in range(3):
            own, theirs = Constrained(regex=pattern).start(lm), Guide(index)
            for token in walk(lm, own.fork(), seed, 20)[0]:
                assert tokens(own, lm.vocab_size) == set(theirs.get_tokens())
                own.advance(token)
                theirs.advance(token)
            assert own.met == theirs.is_finished()


WRONG = [
    ({}, "takes one of regex, json_schema, choice, grammar, got none", "regex="),
    ({"after": "##"}, "got none", "regex="),
    ({"regex": "a", "choice": ("b",)}, "got regex and choice", "regex="),
    ({"regex": 5}, "regex must be text", "..."),
    ({"regex": ""}, "regex must be text that is not empty", "..."),
    (
        {"regex": "[a"},
        "Constrained(regex=...) is no regular expression: unterminated character set, at character 1",
        "re",
    ),
    ({"regex": "a\ud800"}, "half a character at place 2", "UTF-8"),
    ({"choice": "yes"}, "choice must be a tuple of texts", '("yes", "no")'),
    ({"choice": ()}, "choice must be at least one text", '("yes", "no")'),
    ({"choice": ("a", 1)}, "choice must be text", "..."),
    ({"choice": ("a", "")}, "not empty", "..."),
    ({"choice": ("a", "b", "a")}, "has 'a' twice", "keep one"),
    ({"regex": "a", "after": ""}, "after must be text that is not empty", "..."),
    ({"regex": "a", "after": 3}, "after must be text", "..."),
    ({"grammar": 3}, "grammar must be text", "..."),
    ({"json_schema": 3}, "json_schema must be JSON text or a dict", "integer"),
]


@pytest.mark.parametrize(("arguments", "message", "hint"), WRONG)
def test_wrong_input_is_refused_when_it_is_given(arguments: dict[str, object], message: str, hint: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        Constrained(**arguments)  # type: ignore[arg-type]
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_lists_and_dicts_are_frozen() -> None:
    assert Constrained(choice=["a", "b"]) == Constrained(choice=("a", "b"))  # type: ignore[arg-type]
    schema = {"type": "object", "properties": {"é": {"type": "null"}, "a": {"type": "null"}}}
    made = Constrained(json_schema=schema)
    assert made == Constrained(json_schema=str(made.json_schema))
    assert hash(made) == hash(Constrained(json_schema=schema))
    assert str(made.json_schema) == '{"type": "object", "properties": {"é": {"type": "null"}, "a": {"type": "null"}}}'


EXAMPLES = [
    Constrained(regex=" ?[0-9]+"),
    Constrained(regex='\\d\t"é\\\\\n', after="#### "),
    Constrained(choice=("yes",)),
    Constrained(choice=("yes", "no \"'|", "日本")),
    Constrained(json_schema={"properties": {"n": {"type": "integer"}, "é": {"const": 'a"\n'}}}),
    Constrained(grammar='start: "a" b\nb: /[0-9]+/', after="\n"),
]


@pytest.mark.parametrize("constraint", EXAMPLES, ids=str)
def test_text_and_spec_give_the_constraint_back(constraint: Constrained) -> None:
    pipe = Pipeline(RoE(n=2), constraint, SelfConsistency(k=3))
    assert Pipeline.parse(str(pipe)) == pipe
    assert Pipeline.from_spec(json.loads(json.dumps(pipe.to_spec()))) == pipe


def test_pipelines_write_what_is_allowed() -> None:
    constraint = Constrained(regex="(ab)+é", after="bé")
    for pipe in (
        constraint | Greedy(),
        RoE(n=2, clean_layers=0) | constraint | SelfConsistency(k=4),
        constraint | BeamSearch(width=3),
    ):
        for result in pipe.run(SYLLABLES, ["a", "ba", "é"], seed=1, max_new_tokens=12):
            for candidate in result.candidates:
                met = re.fullmatch("(ab)+é", candidate.text.partition("bé")[2]) is not None
                assert candidate.finish_reason == ("constraint" if met else "constraint_unmet")


def test_a_free_end_is_chosen_by_the_model() -> None:
    pipe = Pipeline(Constrained(regex="[ab]{1,3}"), Sample(temperature=2.0), SelfConsistency(k=20))
    [result] = pipe.run(SYLLABLES, ["a"], seed=1, max_new_tokens=5)
    assert {c.finish_reason for c in result.candidates} == {"eos", "constraint"}
    for candidate in result.candidates:
        assert re.fullmatch("[ab]{1,3}", candidate.text)
        assert candidate.finish_reason == ("constraint" if len(candidate.text) == 3 else "eos")
