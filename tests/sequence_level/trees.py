"""A made-up model for tests of searches: what follows a text is a function of the text and the stream."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenscale.core.data import Ask, Candidate
from tokenscale.core.noise import Stream
from tokenscale.core.prompt import Prompt
from tokenscale.core.scorer import Requests, Scorer

END = 0
ASK = Ask(Prompt(text="Q"), Stream((0, "problem")), max_new_tokens=50)


def number(*parts: object) -> int:
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=6).digest())


def token(prefix: tuple[int, ...], stream: Stream) -> int:
    """One of 0 (the end, one time in six) to 5."""
    return number(prefix, stream.path) % 6


def one(ask: Ask) -> Candidate:
    """Tokens up to the step's end (3 or above), the text's end, or the length."""
    ids: tuple[int, ...] = ()
    reason = "length"
    while len(ids) < ask.max_new_tokens:
        ids += (token((*ask.prefix_ids, *ids), ask.stream),)
        if ids[-1] == END:
            reason = "eos"
        elif ask.pauses and ids[-1] >= 3 and len(ids) < ask.max_new_tokens:
            reason = "pause"
        if reason != "length":
            break
    text = " ".join(map(str, (*ask.prefix_ids, *ids)))
    stopped = ask.pauses[-1] if reason == "pause" else ""
    return Candidate(text, ids, (-1.0,) * len(ids), reason, ask.stream, stopped_by=stopped)


def respond(ask: Ask) -> list[Candidate]:
    return [one(copy) for copy in ask.copies()]


def hashed(ids: Sequence[int]) -> float:
    return number("score", tuple(ids)) % 1000 / 1000


@dataclass(frozen=True)
class Hashed(Scorer):
    """A score that is a function of all tokens so far."""

    def grade(self, ask: Ask, candidates: Sequence[Candidate]) -> Requests:
        yield from ()
        return [hashed(c.token_ids) for c in candidates]


def drive(strategy: Any, ask: Ask = ASK, respond: Any = respond) -> tuple[list[list[Ask]], Candidate]:
    """All rounds of asks, and the one candidate."""
    generator, rounds = strategy.solve(ask), []
    try:
        asks = next(generator)
        while True:
            rounds.append(asks)
            asks = generator.send([respond(a) for a in asks])
    except StopIteration as end:
        [winner] = end.value
        return rounds, winner
