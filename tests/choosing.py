"""Strategies that choose, driven without a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from tokenscale.core.data import Ask, Candidate
from tokenscale.core.noise import Stream
from tokenscale.core.prompt import Prompt
from tokenscale.core.scorer import Scorer
from tokenscale.core.strategy import Asks, SequenceStrategy

ROOT = Stream((0, "p"))
ASK = Ask(Prompt(text="Q: 1 + 1\nA:"), ROOT, max_new_tokens=8, stop_strings=("Q:",))

Responder = Callable[[Ask], Sequence[Candidate]]


def candidate(text: str, place: int = 0, log_prob: float = -1.0, **more: object) -> Candidate:
    return replace(Candidate(text, (place,), (log_prob,), "eos", ROOT.child(place)), **more)  # type: ignore[arg-type]


def drive(strategy: SequenceStrategy, respond: Responder, ask: Ask = ASK) -> tuple[list[list[Ask]], Candidate]:
    """The rounds of asks of a problem whose asks `respond` answers, and the one candidate that comes out."""
    rounds, [winner] = _drive(strategy.solve(ask), respond)
    return rounds, winner


def scores_of(
    scorer: Scorer, candidates: Sequence[Candidate], respond: Responder | None = None, ask: Ask = ASK
) -> tuple[list[list[Ask]], list[float]]:
    """The rounds of asks of a scorer, and its scores."""
    return _drive(scorer.grade(ask, candidates), respond or (lambda ask: []))  # type: ignore[arg-type]


def _drive(generator: Asks, respond: Responder) -> tuple[list[list[Ask]], list[Candidate]]:
    rounds, answers = list[list[Ask]](), None
    while True:
        try:
            asks = generator.send(answers) if answers is not None else next(generator)
        except StopIteration as end:
            return rounds, end.value
        assert all(isinstance(ask, Ask) for ask in asks)
        rounds.append(asks)  # type: ignore[arg-type]
        answers = [list(respond(ask)) for ask in asks]  # type: ignore[arg-type]


def served(candidates: Sequence[Candidate], reply: str = "") -> Responder:
    """Answers asks by their copies' places in `candidates` (shorter lists fall short), and questions by `reply`."""

    def respond(ask: Ask) -> Sequence[Candidate]:
        return [candidate(reply)] if ask.direct else candidates[ask.first : ask.first + ask.k]

    return respond


def choose(strategy: SequenceStrategy, candidates: Sequence[Candidate], reply: str = "") -> Candidate:
    """What a strategy makes of these candidates, which answer its asks by their copies' numbers."""
    return drive(strategy, served(candidates, reply))[1]
