"""Strategies that choose, driven without a model."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from tokenscale.core.data import Ask, Candidate
from tokenscale.core.noise import Stream
from tokenscale.core.prompt import Prompt
from tokenscale.core.reward import Grade
from tokenscale.core.scorer import Scorer
from tokenscale.core.strategy import SequenceStrategy

ROOT = Stream((0, "p"))
ASK = Ask(Prompt(text="Q: 1 + 1\nA:"), ROOT, max_new_tokens=8, stop_strings=("Q:",))

T = TypeVar("T")
Responder = Callable[[Ask], Sequence[Candidate]]


def candidate(text: str, place: int = 0, log_prob: float = -1.0, **more: Any) -> Candidate:
    return replace(Candidate(text, (place,), (log_prob,), "eos", ROOT.child(place)), **more)


def drive(strategy: SequenceStrategy, respond: Responder, ask: Ask = ASK) -> tuple[list[list[Ask]], Candidate]:
    """The rounds of asks of a problem whose asks `respond` answers, and the one candidate that comes out."""
    rounds, [winner] = _drive(strategy.solve(ask), respond)
    return rounds, winner


def scores_of(
    scorer: Scorer, candidates: Sequence[Candidate], respond: Responder | None = None, ask: Ask = ASK
) -> tuple[list[list[Ask]], list[float]]:
    """The rounds of asks of a scorer, and its scores."""
    return _drive(scorer.grade(ask, candidates), respond or (lambda ask: []))


def _drive(
    generator: Generator[list[Ask | Grade], list[list[Candidate]], T], respond: Responder
) -> tuple[list[list[Ask]], T]:
    rounds, answers = list[list[Ask]](), None
    while True:
        try:
            asks = generator.send(answers) if answers is not None else next(generator)
        except StopIteration as end:
            found: T = end.value
            return rounds, found
        plain = [ask for ask in asks if isinstance(ask, Ask)]
        assert len(plain) == len(asks)
        rounds.append(plain)
        answers = [list(respond(ask)) for ask in plain]


def served(candidates: Sequence[Candidate], reply: str = "") -> Responder:
    """Answers asks by their copies' places in `candidates` (shorter lists fall short), and questions by `reply`."""

    def respond(ask: Ask) -> Sequence[Candidate]:
        return [candidate(reply)] if ask.direct else candidates[ask.first : ask.first + ask.k]

    return respond


def choose(strategy: SequenceStrategy, candidates: Sequence[Candidate], reply: str = "") -> Candidate:
    """What a strategy makes of these candidates, which answer its asks by their copies' numbers."""
    return drive(strategy, served(candidates, reply))[1]
