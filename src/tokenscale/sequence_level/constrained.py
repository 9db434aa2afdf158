"""Text that a pattern, a schema, a list of choices or a grammar allows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenscale.core.constraint import Constraint, Guide
from tokenscale.core.errors import ArgumentError
from tokenscale.core.model import LanguageModel
from tokenscale.sequence_level.guides import After, AfterGuide, Index, Marker, RegexGuide, TextGuide
from tokenscale.sequence_level.guides_automaton import compile_regex
from tokenscale.sequence_level.guides_grammar import GrammarGuide, check_grammar
from tokenscale.sequence_level.guides_schema import canonical, schema_regex
from tokenscale.sequence_level.guides_vocabulary import CONSTRAINTS, Vocabulary, keep

_FORMS = ("regex", "json_schema", "choice", "grammar")
_SPECIAL = re.compile(r"[\\.+*?()|\[\]{}^$]")


@dataclass(frozen=True)
class Constrained(Constraint):
    r"""Masks the tokens with which the text could not become what is asked for.

        Pipeline(Constrained(regex="[0-9]+"))                      # a whole number, and nothing else
        Constrained(choice=("yes", "no")) | SelfConsistency(k=5)
        Constrained(json_schema='{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}')
        ChainOfThought() | Constrained(regex=" [0-9]+", after="####")  # reasons freely, then answers

    One of four says what: `regex`, which the whole text matches, in Python's syntax without lookaround,
    references, anchors within the text and (?i); `json_schema`, a dict or JSON text, by way of outlines
    (properties come in their order; keywords that it would ignore, such as `minimum`, are refused by name);
    `choice`, one of some texts; `grammar`, context-free in Lark's form, through llguidance (the extra
    `grammar`). With `after` the text is free, special tokens included, until the marker stands in it; the
    constraint holds from the character behind it, in the middle of a token too, and a blank there has to
    be part of it. Before the marker the text cannot end.

    The mask goes over the aggregated log-probabilities once per step. A text ends with an end token where
    it may, or with the finish reason "constraint" where nothing else could follow; one that runs out of
    tokens has "constraint_unmet". What a tokenizer drops when it decodes, the first space
    of SentencePiece, is no part of the text (with `grammar` it is). A token that is part of a character is
    allowed where the character is.

    Cost, in processor time of one core: the vocabulary is read once per model and process, 622 tokens of the
    packaged demo model in 4 ms; a pattern is compiled once per process, ` ?[0-9]+` in 1 ms, .{0,200} in 27
    ms, \w{1,30} in 0.4 s, with 1 KiB a state. What a state allows is found when it is first met, and takes
    0.1 ms (a few tokens) to 1.4 ms (most of them) with 50,000 tokens, 0.4 to 3.5 ms with 150,000 (both made
    up, no model's); a state met before is looked up, 1 to 2 us for a step of one beam. Masks take a byte a
    token and state, 64 MiB at most for one constraint. A grammar is parsed at every step; not measured.

    Raises ArgumentError for wrong input when it is made, and at the start for what the model's vocabulary
    cannot spell; CapabilityError, at the start, without a tokenizer or llguidance. Source: Willard and
    Louf, "Efficient Guided Generation for Large Language Models", arXiv 2307.09702, section 3, over bytes.
    """

    regex: str | None = None
    json_schema: str | Mapping[str, Any] | None = None
    choice: tuple[str, ...] | None = None
    grammar: str | None = None
    after: str | None = None

    def __post_init__(self) -> None:
        given = [name for name in _FORMS if getattr(self, name) is not None]
        if len(given) != 1:
            message = f"Constrained takes one of {', '.join(_FORMS)}, got {' and '.join(given) or 'none'}"
            raise ArgumentError(message, 'write Constrained(regex="[0-9]+"), say')
        if self.json_schema is not None:
            if not isinstance(self.json_schema, str | Mapping):
                raise _wrong("json_schema", self.json_schema, "JSON text or a dict", '{"type": "integer"}')
            object.__setattr__(self, "json_schema", canonical(self.json_schema))
        if self.choice is not None:
            object.__setattr__(self, "choice", _choices(self.choice))
        for name in ("regex", "json_schema", "grammar", "after"):
            if getattr(self, name) is not None:
                _check_text(name, getattr(self, name))
        if self.grammar is not None:
            check_grammar(self.grammar)
        else:
            compile_regex(*self._pattern())

    def _pattern(self) -> tuple[str, str]:
        """The regular expression, and what errors call it."""
        if self.choice is not None:
            return "|".join(_SPECIAL.sub(r"\\\g<0>", text) for text in self.choice), "Constrained(choice=...)"
        if self.json_schema is not None:
            return schema_regex(str(self.json_schema)), "Constrained(json_schema=...)"
        return self.regex or "", "Constrained(regex=...)"

    def start(self, lm: LanguageModel) -> Guide:
        vocabulary = Vocabulary.of(lm)
        if self.after is None:
            inner = self._guide(vocabulary, vocabulary.drops_first_space)
            if inner.over and not inner.met:
                raise self._unspelled(lm)
            return inner
        after = keep(vocabulary.kept, self, lambda: self._after(vocabulary), CONSTRAINTS)
        if not after.reachable:
            raise self._unspelled(lm)
        return AfterGuide(after)

    def _after(self, vocabulary: Vocabulary) -> After:
        return After(vocabulary, Marker((self.after or "").encode()), self._guide(vocabulary, False))

    def _guide(self, vocabulary: Vocabulary, drops_first_space: bool) -> TextGuide:
        if self.grammar is not None:
            grammar = self.grammar
            made: TextGuide = keep(vocabulary.kept, grammar, lambda: GrammarGuide.of(vocabulary, grammar), CONSTRAINTS)
            return made.fork()
        pattern, owner = self._pattern()

        def build() -> Index:
            automaton = compile_regex(pattern, owner)
            return Index(vocabulary, automaton.without_first_space() if drops_first_space else automaton)

        index = keep(vocabulary.kept, (pattern, drops_first_space), build, CONSTRAINTS)
        return RegexGuide(index, index.automaton.start)

    def _unspelled(self, lm: LanguageModel) -> ArgumentError:
        name = next(name for name in _FORMS if getattr(self, name) is not None)
        after = f", after={self.after!r:.80}" if self.after is not None else ""
        what = f"Constrained({name}={getattr(self, name)!r:.200}{after})"
        message = f"the vocabulary of {lm.name} can spell no text of {what}"
        return ArgumentError(message, "use characters that the model's tokenizer has")


def _choices(given: object) -> tuple[str, ...]:
    if isinstance(given, str) or not isinstance(given, tuple | list):
        raise _wrong("choice", given, "a tuple of texts", '("yes", "no")')
    if not given:
        raise _wrong("choice", given, "at least one text", '("yes", "no")')
    for text in given:
        _check_text("choice", text)
    twice = next((text for place, text in enumerate(given) if text in given[:place]), None)
    if twice is not None:
        raise ArgumentError(f"Constrained(choice=...) has {twice!r:.80} twice", "keep one of them")
    return tuple(given)


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise _wrong(name, value, "text", '"..."')
    if not value:
        raise _wrong(name, value, "text that is not empty", '"..."')
    try:
        value.encode()
    except UnicodeEncodeError as error:
        message = f"Constrained({name}=...) has half a character at place {error.start + 1}: {value!r:.80}"
        raise ArgumentError(message, "write whole characters: they have to be written in UTF-8") from None


def _wrong(name: str, value: object, wanted: str, example: str) -> ArgumentError:
    return ArgumentError(f"Constrained({name}={value!r:.80}): {name} must be {wanted}", f"write {name}={example}")
