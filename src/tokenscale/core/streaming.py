"""Text that is shown while it is decided: the events of a stream, and tokens turned into safe pieces of text."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass

from tokenscale.core.data import Result
from tokenscale.core.decode import LocalBackend
from tokenscale.core.model import LanguageModel

BROKEN = "\ufffd"  # what decoding makes of the bytes of half a character


@dataclass(frozen=True)
class Piece:
    """More of the answer's text, as soon as nothing can take it back."""

    text: str


@dataclass(frozen=True)
class Progress:
    """What has been decoded where the text is decided at the end: tokens so far, and searches that have ended."""

    tokens: int
    ended: int


Event = Piece | Progress | Result


class TextStream:
    """Pieces of a text whose tokens come one by one; together they are the text that the candidate gets.

    Held back are thoughts, half characters, and an end that a stop string or a think tag may begin with (an
    end of thoughts whose beginning was nowhere takes back what was shown: the result has the last word).
    Costs the decoding of the tokens since the last whole piece; of a model with think tags, of all tokens.
    One that is not `live` gets no tokens, and is shown at the end. `prompt` are the ids of what is continued.
    """

    def __init__(
        self, lm: LanguageModel, stop_strings: Sequence[str], prompt: Sequence[int] = (), live: bool = True
    ) -> None:
        self._lm, self._stops, self._prompt, self.live = lm, tuple(stop_strings), prompt, live
        self._begun = (*self._stops, *(tag for pair in lm.think_tags for tag in pair))
        self._ids: list[int] = []
        self._from, self._read = 0, 0
        self._text = ""
        self._shown = 0

    def add(self, token: int) -> None:
        """Takes the next token."""
        if token in self._lm.eos_ids:
            return
        self._ids.append(token)
        if self._lm.think_tags:
            self._text = self._lm.read(self._prompt, self._ids)[1].rstrip(BROKEN)
            return
        # Tokens are decoded behind those of the piece before, since a tokenizer may join or drop blanks.
        before = self._lm.decode(self._ids[self._from : self._read])
        text = self._lm.decode(self._ids[self._from :])
        if len(text) > len(before) and not text.endswith(BROKEN):
            self._text += text[len(before) :]
            self._from, self._read = self._read, len(self._ids)

    def piece(self) -> str:
        """The text that is safe to show now and was not shown before."""
        start, self._shown = self._shown, max(self._shown, self._safe())
        return self._text[start : self._shown]

    def rest(self, text: str) -> str:
        """What was not shown of the finished text."""
        start, self._shown = self._shown, max(self._shown, len(text))
        return text[start:]

    def _safe(self) -> int:
        """The length of the text that no stop string or tag, begun or whole, can cut."""
        text = self._text
        held = 0
        for stop in self._stops:
            if (place := text.find(stop)) >= 0:
                held = max(held, len(text) - place)
        for mark in self._begun:
            begun = (n for n in range(min(len(mark), len(text)), 0, -1) if text.endswith(mark[:n]))
            held = max(held, next(begun, 0))
        return len(text) - held


def events(
    steps: Generator[list[tuple[int, Result]], None, None],
    backend: LocalBackend,
    text: TextStream,
    finish: Callable[[Result], Result],
) -> Generator[Event, None, None]:
    """The events of one problem that `steps` solves on `backend`, whose tokens go to `text` where it is live."""
    ended = 0
    with closing(steps):
        for done in steps:
            if not text.live and backend.ended > ended:
                ended = backend.ended
                yield Progress(backend.tokens, ended)
            pieces = [text.rest(result.text) for _, result in done] or [text.piece()]
            yield from (Piece(piece) for piece in pieces if piece)
            yield from (finish(result) for _, result in done)
