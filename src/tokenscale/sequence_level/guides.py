"""The state of a constraint for one text: behind a regular expression's automaton, or behind a marker."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool
from numpy.typing import NDArray
from torch import Tensor

from tokenscale.core.constraint import Guide
from tokenscale.sequence_level.guides_automaton import DEAD, Automaton, can_end
from tokenscale.sequence_level.guides_vocabulary import Vocabulary

MASK_BYTES = 64 << 20  # of masks kept per constraint and model


class TextGuide(Guide):
    """A guide that can be fed text too, so that it can take over in the middle of a token."""

    @abstractmethod
    def feed(self, text: bytes) -> None:
        """Takes a part of the text that is no token."""

    @abstractmethod
    def fork(self) -> TextGuide:
        """An independent copy."""

    def takes(self, text: bytes) -> bool:
        """Whether this part of a text may come next."""
        trial = self.fork()
        trial.feed(text)
        return trial.met or not trial.over


class _Row(NamedTuple):
    mask: Bool[Tensor, " vocab"]
    over: bool


class Index:
    """Which tokens every state of an automaton allows: found when the state is first met, then kept.

    Where a byte that tokens have is no token by itself and the automaton needs it, states that the vocabulary
    cannot end are found first, by a walk from all of them.
    """

    def __init__(self, vocabulary: Vocabulary, automaton: Automaton) -> None:
        self.vocabulary, self.automaton = vocabulary, automaton
        self._rows: dict[int, _Row] = {}

    @cached_property
    def _live(self) -> NDArray[np.bool_]:
        automaton, vocabulary = self.automaton, self.vocabulary
        table = np.where(vocabulary.used, automaton.table, np.int32(DEAD))
        live = can_end(np.repeat(np.arange(len(table)), 256), table.ravel(), automaton.accepting)
        needed = live[table[live]].any(0)
        if vocabulary.single[needed].all():
            return live
        targets = [np.unique(vocabulary.walk(table, state)) for state in range(len(table))]
        sources = np.repeat(np.arange(len(table)), [len(t) for t in targets])
        return can_end(sources, np.concatenate(targets), automaton.accepting)

    def row(self, state: int) -> _Row:
        if state not in self._rows:
            if len(self._rows) * len(self.vocabulary.texts) > MASK_BYTES:
                self._rows.clear()
            self._rows[state] = self._row(state)
        return self._rows[state]

    def _row(self, state: int) -> _Row:
        mask = torch.from_numpy(self._live[self.vocabulary.walk(self.automaton.table, state)])
        over = not bool(mask.any())
        return _Row(mask | self.vocabulary.ends if self.automaton.accepting[state] else mask, over)


class RegexGuide(TextGuide):
    """The state of an automaton; a token that it refuses leaves it dead."""

    def __init__(self, index: Index, state: int) -> None:
        self._index, self._state = index, state

    def allowed(self) -> Bool[Tensor, " vocab"]:
        return self._index.row(self._state).mask

    def advance(self, token: int) -> None:
        self.feed(self._index.vocabulary.texts[token] or b"")

    def feed(self, text: bytes) -> None:
        self._state = self._index.automaton.after(self._state, text)

    def fork(self) -> RegexGuide:
        return RegexGuide(self._index, self._state)

    @property
    def met(self) -> bool:
        return bool(self._index.automaton.accepting[self._state])

    @property
    def over(self) -> bool:
        return self._index.row(self._state).over


class Marker:
    """The states of looking for `text`: state 1 + k where its first k bytes are the last ones read; `found`, and on."""

    def __init__(self, text: bytes) -> None:
        self.text, self.found = text, len(text) + 1
        self.table = np.zeros((len(text) + 2, 256), np.int32)
        self.table[1] = 1
        self.table[1, text[0]] = 2
        shorter = 1  # the state of what was read without its first byte
        for place, byte in enumerate(text[1:], 2):
            self.table[place] = self.table[shorter]
            self.table[place, byte] = place + 1
            shorter = int(self.table[shorter, byte])
        self.table[self.found] = self.found

    def rest(self, state: int, text: bytes) -> bytes:
        """What follows the marker where `text`, read from `state`, completes it."""
        return (self.text[: state - 1] + text).partition(self.text)[2]


@dataclass(frozen=True, eq=False)
class After:
    """A constraint that begins behind a marker: what its guides share. `inner` is the constraint's first state."""

    vocabulary: Vocabulary
    marker: Marker
    inner: TextGuide

    @cached_property
    def masks(self) -> dict[int, Bool[Tensor, " vocab"]]:
        """Per state of the marker, all tokens but end tokens and those that go on wrongly behind the marker."""
        return {}

    def mask(self, state: int) -> Bool[Tensor, " vocab"]:
        if state not in self.masks:
            mask = ~self.vocabulary.ends
            for token in np.flatnonzero(self._walk(state) == self.marker.found).tolist():
                rest = self.marker.rest(state, self.vocabulary.texts[token] or b"")
                mask[token] = not rest or self.inner.takes(rest)
            self.masks[state] = mask
        return self.masks[state]

    def _walk(self, state: int) -> NDArray[np.int32]:
        return self.vocabulary.walk(self.marker.table, state)

    @cached_property
    def reachable(self) -> bool:
        """Whether tokens can spell the marker so that the constraint may follow."""
        seen, waiting = {1}, [1]
        while waiting:
            state = waiting.pop()
            reached = self._walk(state)[self.mask(state).numpy()]
            new = set(np.unique(reached).tolist()) - seen - {DEAD}
            seen |= new
            waiting += new - {self.marker.found}
        return self.marker.found in seen


class AfterGuide(Guide):
    """Free text up to the marker, which may begin and end within tokens; then the constraint."""

    def __init__(self, shared: After, state: int = 1, inner: TextGuide | None = None) -> None:
        self._shared, self._state, self._inner = shared, state, inner

    def allowed(self) -> Bool[Tensor, " vocab"] | None:
        return self._shared.mask(self._state) if self._inner is None else self._inner.allowed()

    def advance(self, token: int) -> None:
        if self._inner is not None:
            self._inner.advance(token)
            return
        text = self._shared.vocabulary.texts[token] or b""
        before, marker = self._state, self._shared.marker
        for byte in text:
            self._state = int(marker.table[self._state, byte])
        if self._state == marker.found:
            self._inner = self._shared.inner.fork()
            self._inner.feed(marker.rest(before, text))

    def fork(self) -> AfterGuide:
        inner = self._inner.fork() if self._inner is not None else None
        return AfterGuide(self._shared, self._state, inner)

    @property
    def met(self) -> bool:
        return self._inner is not None and self._inner.met

    @property
    def over(self) -> bool:
        return self._inner is not None and self._inner.over
