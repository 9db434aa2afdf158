"""The suite for scorers."""

from __future__ import annotations

import math
from collections.abc import Callable

from tokenscale.core.data import Ask, Candidate
from tokenscale.core.noise import Stream
from tokenscale.core.prompt import Prompt
from tokenscale.core.reward import Grade
from tokenscale.core.scorer import Scorer
from tokenscale.core.stage import Kind
from tokenscale.testing.expect import check_stage, expect
from tokenscale.testing.sequence_strategy import graded, respond

MOST_ROUNDS = 1000


def check_scorer(
    scorer: Scorer, *, prompt: Prompt | None = None, respond: Callable[[Ask], list[Candidate]] = respond
) -> None:
    """What `Scorer.grade` promises, on made-up candidates, against a backend that answers with `respond`.

    It ends with one number per candidate, in order, none of them NaN, below 0 only where it says `signed`;
    repeats itself; gives a candidate the same score in other company; and may be closed at any time. Raises
    AssertionError.
    """
    check_stage(scorer)
    name = type(scorer).__name__
    expect(scorer.kind is Kind.SCORER, f"{name} is of the kind Kind.SCORER")
    ask = Ask(prompt or Prompt(text="Q: 1 + 1?\nA:"), Stream((0, "conformance")), max_new_tokens=16)
    candidates = respond(Ask(ask.prompt, ask.stream, ask.max_new_tokens, k=5))
    scores = _scores(scorer, ask, candidates, respond)
    expect(_scores(scorer, ask, candidates, respond) == scores, "the same twice")
    for place, candidate in enumerate(candidates):
        expect(_scores(scorer, ask, [candidate], respond) == scores[place : place + 1], "company changes no score")
    expect(_scores(scorer, ask, [], respond) == [], "no score for no candidate")
    expect(all(isinstance(note, str) for note in scorer.notes(scores)), "notes are texts")
    generator = scorer.grade(ask, candidates)
    next(generator, None)
    generator.close()


def _scores(
    scorer: Scorer, ask: Ask, candidates: list[Candidate], respond: Callable[[Ask], list[Candidate]]
) -> list[float]:
    generator, name = scorer.grade(ask, candidates), type(scorer).__name__
    try:
        requests = next(generator)
        for _ in range(MOST_ROUNDS):
            answers = [graded(r) if isinstance(r, Grade) else respond(r) for r in requests]
            requests = generator.send(answers)
    except StopIteration as end:
        scores: list[float] = list(end.value)
    else:
        raise AssertionError(f"{name}.grade ends within {MOST_ROUNDS} rounds")
    expect(len(scores) == len(candidates), f"{name}.grade returns one score per candidate")
    expect(not any(math.isnan(score) for score in scores), f"{name}.grade returns numbers, not NaN")
    expect(scorer.signed or all(score >= 0 for score in scores), f"{name} gives scores below 0, and is not `signed`")
    return scores
