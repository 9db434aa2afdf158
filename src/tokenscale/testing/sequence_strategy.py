"""The suite for sequence strategies: drives `solve` with made-up candidates."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import replace

from tokenscale.core.data import Ask, Candidate
from tokenscale.core.noise import Stream, UniformReader
from tokenscale.core.prompt import Prompt
from tokenscale.core.reward import Grade
from tokenscale.core.signals import SIGNALS
from tokenscale.core.stage import Kind
from tokenscale.core.strategy import SequenceStrategy
from tokenscale.testing.expect import check_stage, expect

Responder = Callable[[Ask], list[Candidate]]
MOST_ROUNDS = 1000


def respond(ask: Ask) -> list[Candidate]:
    """Candidates that are a function of the ask: one of three answers each, drawn from its copy's stream."""
    return [_candidate(one) for one in ask.copies()]


def _candidate(ask: Ask) -> Candidate:
    draw = UniformReader(ask.stream).at(0)
    signals = {name: (draw, 0.5) for name in SIGNALS}
    stopped = ask.stop_rule is not None and ask.stop_rule.stops(signals[ask.stop_rule.signal])
    return Candidate(
        text=f" So the answer is {int(3 * draw)}.",
        token_ids=(int(1000 * draw), 1),
        log_probs=(-draw, -0.5),
        finish_reason="stop_rule" if stopped else "eos",
        stream=ask.stream,
        signals=tuple(signals.items()),
    )


def graded(grade: Grade) -> list[Candidate]:
    """The candidates with made-up scores of their steps, each a function of its text."""
    scores = (tuple(sum(map(ord, text)) % 101 / 100 for text in steps) for steps in grade.steps)
    return [replace(c, step_scores=s) for c, s in zip(grade.candidates, scores, strict=True)]


def check_sequence_strategy(
    strategy: SequenceStrategy, *, prompt: Prompt | None = None, respond: Responder = respond
) -> None:
    """What `SequenceStrategy.solve` promises, against a backend that answers with `respond`.

    It ends, returns k candidates, repeats itself, keeps no state between problems, draws every copy
    from a stream of its own below the ask's, and can be closed at any time. Raises AssertionError.
    """
    check_stage(strategy)
    asked = Ask(prompt or Prompt(text="Q: 1 + 1?\nA:"), Stream((0, "conformance")), max_new_tokens=16)
    name = type(strategy).__name__
    widths = (1, 3) if strategy.kind is Kind.PROMPTING else (1,)
    for k in widths:
        ask = replace(asked, k=k)
        asks, candidates = _drive(strategy, ask, respond)
        count = len(candidates) if isinstance(candidates, list) else repr(candidates)
        expect(count == k, f"{name}.solve returns a list of as many candidates as were asked for ({k}), not {count}")
        expect(all(isinstance(c, Candidate) for c in candidates), f"{name}.solve returns candidates")
        expect(_drive(strategy, ask, respond) == (asks, candidates), "the same twice")
        _check_streams(ask, asks)
    _check_closing(strategy, asked)
    _check_interleaving(strategy, asked, respond)


def _drive(strategy: SequenceStrategy, ask: Ask, respond: Responder) -> tuple[list[Ask], list[Candidate]]:
    """All asks that were made, and what came out."""
    generator, made, name = strategy.solve(ask), list[Ask](), type(strategy).__name__
    expect(isinstance(generator, Generator), f"{name}.solve is a generator: it yields asks and returns candidates")
    try:
        asks = next(generator)
        for _ in range(MOST_ROUNDS):
            expect(
                isinstance(asks, list) and all(isinstance(a, Ask | Grade) for a in asks),
                f"{name}.solve yields lists of asks",
            )
            made += [a for a in asks if isinstance(a, Ask)]
            asks = generator.send(_answers(asks, respond))
    except StopIteration as end:
        return made, end.value
    raise AssertionError(f"{name}.solve ends within {MOST_ROUNDS} rounds")


def _answers(requests: list[Ask | Grade], respond: Responder) -> list[list[Candidate]]:
    return [graded(r) if isinstance(r, Grade) else respond(r) for r in requests]


def _check_streams(ask: Ask, asks: list[Ask]) -> None:
    own = ask.stream.path
    expect(all(a.stream.path[: len(own)] == own for a in asks), "streams extend the ask's stream")
    copies = [(one.stream, one.prompt, one.prefix_ids) for a in asks for one in a.copies()]
    expect(len(set(copies)) == len(copies), "no two copies draw the same numbers for the same text")


def _check_closing(strategy: SequenceStrategy, ask: Ask) -> None:
    generator = strategy.solve(ask)
    next(generator, None)
    generator.close()


def _check_interleaving(strategy: SequenceStrategy, ask: Ask, respond: Responder) -> None:
    """Two problems at once, one step each in turn, end as they do alone."""
    problems = [ask, replace(ask, stream=Stream((1, "conformance")))]
    wanted = [_drive(strategy, problem, respond)[1] for problem in problems]
    running = {i: strategy.solve(problem) for i, problem in enumerate(problems)}
    answers: dict[int, list[list[Candidate]]] = {}
    found: dict[int, list[Candidate]] = {}
    while running:
        for i, generator in list(running.items()):
            try:
                asks = generator.send(answers[i]) if i in answers else next(generator)
                answers[i] = _answers(asks, respond)
            except StopIteration as end:
                found[i] = end.value
                del running[i]
    expect([found[0], found[1]] == wanted, "problems do not know of each other")
