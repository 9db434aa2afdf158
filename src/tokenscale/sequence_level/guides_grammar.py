"""Constraints by context-free grammars, through llguidance."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from tokenscale.core.errors import ArgumentError, CapabilityError
from tokenscale.sequence_level.guides import TextGuide
from tokenscale.sequence_level.guides_vocabulary import CONSTRAINTS, Vocabulary, keep


def llguidance() -> Any:
    """The library. Raises CapabilityError where it is not installed."""
    try:
        return importlib.import_module("llguidance")
    except ImportError:
        message = "Constrained(grammar=...) needs llguidance, which is not installed"
        raise CapabilityError(message, "pip install 'tokenscale[grammar]'") from None


def check_grammar(grammar: str) -> None:
    """Refuses what is no Lark grammar, where the library is there to tell. Raises ArgumentError with the place."""
    try:
        matcher = llguidance().LLMatcher
    except CapabilityError:
        return
    wrong, messages = matcher.validate_grammar_with_warnings(matcher.grammar_from_lark(grammar))
    if wrong:
        message = f"Constrained(grammar=...) is no Lark grammar: {messages[0].strip()}"
        raise ArgumentError(message, 'write rules such as start: "yes" | /[0-9]+/')


class _Tokens:
    """A vocabulary in the form that llguidance reads, which knows one token for each text.

    `first[token]` stands for all tokens of the same text. Single bytes that are no tokens follow behind the
    vocabulary (`byte` are the ids of all 256), so that a guide can take a part of a token; the last id stands
    for the end of a text.
    """

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        ids: dict[bytes, int] = {}
        size = len(vocabulary.texts)
        self.first = np.array([ids.setdefault(t, i) if t else i for i, t in enumerate(vocabulary.texts)])
        kept = [text if text and ids[text] == i else b"" for i, text in enumerate(vocabulary.texts)]
        missing = [bytes([b]) for b in range(256) if bytes([b]) not in ids]
        ids.update((byte, size + place) for place, byte in enumerate(missing))
        self.byte = [ids[bytes([b])] for b in range(256)]
        self.tokens = [*kept, *missing, b""]
        self.eos_token_id = len(self.tokens) - 1
        self.special_token_ids = [i for i, text in enumerate(self.tokens) if not text]

    def __call__(self, text: bytes) -> list[int]:
        return [self.byte[byte] for byte in text]


class _Shared(NamedTuple):
    vocabulary: Vocabulary
    tokens: _Tokens
    tokenizer: Any


class GrammarGuide(TextGuide):
    """A parser of llguidance; a token that the grammar refuses leaves it dead."""

    def __init__(self, shared: _Shared, matcher: Any) -> None:
        self._shared, self._matcher = shared, matcher
        self._mask: Bool[Tensor, " vocab"] | None = None

    @staticmethod
    def of(vocabulary: Vocabulary, grammar: str) -> GrammarGuide:
        """The first state. The tokenizer is read once per model; a parser is built each time."""
        library = llguidance()

        def read() -> _Shared:
            tokens = _Tokens(vocabulary)
            tokenizer = library.LLTokenizer(library.TokenizerWrapper(tokens), eos_token=tokens.eos_token_id)
            return _Shared(vocabulary, tokens, tokenizer)

        shared = keep(vocabulary.kept, "llguidance", read, CONSTRAINTS)
        lark = library.LLMatcher.grammar_from_lark(grammar)
        return GrammarGuide(shared, library.LLMatcher(shared.tokenizer, lark, log_level=0))

    def _spelled(self) -> Bool[Tensor, " vocab"]:
        """The tokens that go on with the text."""
        if self._mask is None:
            first = self._shared.tokens.first
            if self._matcher.is_error() or self._matcher.is_stopped():
                self._mask = torch.zeros(len(first), dtype=torch.bool)
            else:
                bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
                allowed = np.unpackbits(bits, bitorder="little").astype(np.bool_)[first]
                self._mask = torch.from_numpy(allowed) & self._shared.vocabulary.spelling
        return self._mask

    def allowed(self) -> Bool[Tensor, " vocab"]:
        spelled = self._spelled()
        return spelled | self._shared.vocabulary.ends if self.met else spelled

    def advance(self, token: int) -> None:
        if self._shared.vocabulary.texts[token]:
            self._take([int(self._shared.tokens.first[token])])

    def feed(self, text: bytes) -> None:
        self._take(self._shared.tokens(text))

    def _take(self, tokens: list[int]) -> None:
        self._mask = None
        if not self._matcher.is_error():
            self._matcher.consume_tokens(tokens)

    def fork(self) -> GrammarGuide:
        return GrammarGuide(self._shared, self._matcher.deep_copy())

    @property
    def met(self) -> bool:
        return not self._matcher.is_error() and bool(self._matcher.is_accepting())

    @property
    def over(self) -> bool:
        return not bool(self._spelled().any())
