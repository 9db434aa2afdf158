"""The runner: drives every problem's strategies and keeps the backend's batch full.

A problem is a tree of running strategies. The outermost is asked first; its asks go to the next one
inside, and the innermost's to the backend, where the asks of all problems share one batch. Nothing
here depends on which ask completes first: draws come from streams, and the bill is made after the
problem's end, in logical time.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from tokenscale.core.backend import Backend, Completion
from tokenscale.core.context import check_ids, room
from tokenscale.core.data import Ask, Candidate, Result, RoutingStats, Served
from tokenscale.core.errors import PipelineError
from tokenscale.core.ledger import Ledger
from tokenscale.core.model import LanguageModel
from tokenscale.core.noise import Stream, prompt_key
from tokenscale.core.prompt import Prompt
from tokenscale.core.replay import Node, bill
from tokenscale.core.reward import Grade, graded
from tokenscale.core.stage import Kind
from tokenscale.core.strategy import Asks, SequenceStrategy

Progress = Callable[[int, int], None]
OnResult = Callable[[int, Result], None]


@dataclass
class _Problem:
    """One prompt's place in the output and the root of its tree."""

    index: int
    prompt: Prompt
    root: Node | Served


@dataclass(frozen=True)
class _Place:
    """Where an answer of the backend goes: to node `node` (of strategy `level`) of a problem."""

    problem: _Problem
    served: Served
    node: Node | None
    level: int


class _Runner:
    """All problems of one call. `finished` holds those whose root has its candidates."""

    def __init__(self, backend: Backend, strategies: Sequence[SequenceStrategy]) -> None:
        self._backend, self._strategies = backend, strategies
        self._waiting: dict[int, _Place] = {}
        self._grades: list[tuple[Grade, _Place]] = []

    @property
    def outstanding(self) -> bool:
        return bool(self._waiting or self._grades)

    def open(self, problem: _Problem, ask: Ask) -> list[_Problem]:
        """Starts a problem; returns it if it is complete without a single ask."""
        [problem.root] = self._serve(problem, ask, len(self._strategies) - 1, None)
        return [] if problem.root.candidates is None else [problem]

    def _serve(self, problem: _Problem, ask: Ask | Grade, level: int, parent: Node | None) -> list[Node | Served]:
        """What will answer a request: strategy `level`, the backend below the innermost, or a reward model."""
        if isinstance(ask, Grade) or level < 0 or ask.direct:
            place = _Place(problem, Served(), parent, level + 1)
            if isinstance(ask, Grade):
                self._grades.append((ask, place))
            else:
                self._waiting[self._backend.submit(ask)] = place
            return [place.served]
        strategy = self._strategies[level]
        # Prompting strategies hand any k on; the others answer one copy at a time, also where there is only
        # one, so that it is the first of several.
        whole = strategy.kind is Kind.PROMPTING or parent is None
        asks = [ask] if whole else ask.copies()
        nodes: list[Node | Served] = []
        for one in asks:
            node = Node(_started(strategy, one), parent, one.k)
            self._advance(problem, node, None, level)
            nodes.append(node)
        return nodes

    def _advance(self, problem: _Problem, node: Node, answers: list[list[Candidate]] | None, level: int) -> None:
        """Sends the answers of a round and serves the next, until one has to wait or the strategy ends."""
        while True:
            try:
                asks = node.generator.send(answers) if answers is not None else next(node.generator)
            except StopIteration as end:
                node.candidates = _returned(self._strategies[level], end.value, node.wanted)
                return
            _check_yielded(self._strategies[level], asks)
            node.rounds.append([self._serve(problem, ask, level - 1, node) for ask in asks])
            node.missing = sum(part.candidates is None for parts in node.rounds[-1] for part in parts)
            if node.missing:
                return
            answers = _answers(node.rounds[-1])

    def advance(self) -> list[_Problem]:
        """Lets the backend work a little, and has all waiting texts graded; the problems that end by it."""
        ended = [p for completion in self._backend.tick() for p in self._take(completion)]
        grades, self._grades = self._grades, []
        for (_, place), served in zip(grades, graded([grade for grade, _ in grades]), strict=True):
            ended += self._hand(place, served)
        return ended

    def _take(self, completion: Completion) -> list[_Problem]:
        place = self._waiting.pop(completion.ticket)
        return self._hand(place, Served(completion.candidates, completion.usages))

    def _hand(self, place: _Place, served: Served) -> list[_Problem]:
        """Gives an answer to whoever waits for it; returns the problem if that ends it."""
        place.served.candidates, place.served.usages = served.candidates, served.usages
        node, level = place.node, place.level
        while node is not None:
            node.missing -= 1
            if node.missing:
                break
            self._advance(place.problem, node, _answers(node.rounds[-1]), level)
            if node.candidates is None:
                break
            node, level = node.parent, level + 1
        return [] if place.problem.root.candidates is None else [place.problem]

    def close(self) -> None:
        """Cancels what is outstanding and closes the generators that wait for it, innermost first."""
        for ticket in self._waiting:
            self._backend.cancel(ticket)
        for place in [*self._waiting.values(), *(place for _, place in self._grades)]:
            node = place.node
            while node is not None:
                node.generator.close()
                node = node.parent
        self._waiting.clear()
        self._grades.clear()


def _started(strategy: SequenceStrategy, ask: Ask) -> Asks:
    generator = strategy.solve(ask)
    if isinstance(generator, Generator):
        return generator
    message = f"{type(strategy).__name__}.solve returned {generator!r:.60}, which is no generator"
    raise PipelineError(message, "ask in it: `answers = yield [ask]`")


def _check_yielded(strategy: SequenceStrategy, asks: object) -> None:
    if not (isinstance(asks, list) and all(isinstance(ask, Ask | Grade) for ask in asks)):
        message = f"{type(strategy).__name__}.solve yielded {asks!r:.60}, which is no list of asks"
        raise PipelineError(message, "yield a list: `answers = yield [ask]`")


def _returned(strategy: SequenceStrategy, value: object, wanted: int) -> list[Candidate]:
    found = value if isinstance(value, list) else []
    # A beam search may find fewer texts than it was asked for, which its first candidate says.
    if 1 <= len(found) <= wanted and all(isinstance(candidate, Candidate) for candidate in found):
        return found
    asked = f"{wanted} candidate{'s'[: wanted > 1]}"
    message = f"{type(strategy).__name__}.solve was asked for {asked}, and returned {value!r:.60}"
    raise PipelineError(message, "return a list of as many candidates as `ask.k` says, best first")


def _answers(parts: list[list[Node | Served]]) -> list[list[Candidate]]:
    """The candidates of a finished round, one list an ask."""
    return [[c for part in answer for c in part.candidates or ()] for answer in parts]


def solve_problems(
    lm: LanguageModel,
    backend: Backend,
    strategies: Sequence[SequenceStrategy],
    prompts: Sequence[Prompt],
    *,
    seed: int,
    max_new_tokens: int,
    stop_strings: tuple[str, ...] = (),
) -> Generator[list[tuple[int, Result]], None, None]:
    """Answers every prompt; after each step of the backend the problems that it ended, if any, with their numbers.

    `strategies` go from inner to outer. A problem's stream is (seed, key), the key being the prompt's
    own or the hash of its token ids and the number of its repeat. New problems are opened while the
    backend is hungry. Whatever ends the iteration early (an error, Ctrl-C, closing it) first cancels what is
    outstanding.
    Raises PipelineError for a strategy whose `solve` breaks its promise, by name, and
    PromptError before any decoding for a prompt that cannot be encoded or fills the context; one
    that a strategy makes too long is refused when its turn comes.
    """
    asks = deque(_asks(lm, prompts, seed, max_new_tokens, stop_strings))
    return _solve(backend, strategies, prompts, asks, seed)


def _solve(
    backend: Backend,
    strategies: Sequence[SequenceStrategy],
    prompts: Sequence[Prompt],
    asks: deque[tuple[int, Ask]],
    seed: int,
) -> Generator[list[tuple[int, Result]], None, None]:
    runner = _Runner(backend, strategies)
    try:
        while asks or runner.outstanding:
            ended: list[_Problem] = []
            while asks and (backend.hungry or not runner.outstanding):
                index, ask = asks.popleft()
                ended += runner.open(_Problem(index, prompts[index], Served()), ask)
            if runner.outstanding:
                ended += runner.advance()
            yield [(problem.index, _result(problem, Ledger(), seed)) for problem in ended]
    finally:
        runner.close()


def run_problems(
    lm: LanguageModel,
    backend: Backend,
    strategies: Sequence[SequenceStrategy],
    prompts: Sequence[Prompt],
    *,
    progress: Progress | None = None,
    on_result: OnResult | None = None,
    **options: Any,
) -> list[Result]:
    """The results of `solve_problems`, which takes `options`, in the order of the prompts.

    As each problem ends, in whatever order, `on_result(number of its prompt, result)` is called, and then
    `progress(done, total)`, which is called at the start too.
    """
    results: list[Result | None] = [None] * len(prompts)
    report = progress or (lambda done, total: None)
    tell = on_result or (lambda index, result: None)
    steps = solve_problems(lm, backend, strategies, prompts, **options)
    done = 0
    report(done, len(prompts))
    with closing(steps):
        for ended in steps:
            for index, result in ended:
                results[index] = result
                tell(index, result)
                done += 1
                report(done, len(prompts))
    return [result for result in results if result is not None]


def _asks(
    lm: LanguageModel, prompts: Sequence[Prompt], seed: int, max_new_tokens: int, stop_strings: tuple[str, ...]
) -> list[tuple[int, Ask]]:
    """Every prompt's first ask, with its number."""
    repeats: Counter[tuple[int, ...]] = Counter()
    asks = []
    for index, prompt in enumerate(prompts):
        ids = lm.encode(prompt)
        check_ids(lm, ids)
        room(lm, len(ids))
        key = prompt.key if prompt.key is not None else prompt_key(ids, repeats[ids])
        repeats[ids] += prompt.key is None
        asks.append((index, Ask(prompt, Stream((seed, key)), max_new_tokens, stop_strings=stop_strings)))
    return asks


def _result(problem: _Problem, ledger: Ledger, seed: int) -> Result:
    candidates = problem.root.candidates or []
    winner = candidates[0]
    leaves = tuple(winner.leaves())
    return Result(
        prompt=problem.prompt,
        text=winner.text,
        answer=winner.answer,
        candidates=leaves,
        winner=winner,
        cost=bill(problem.root, ledger),
        seed=seed,
        routing=sum((c.routing for c in leaves), RoutingStats()),
        notes=winner.notes,
    )
