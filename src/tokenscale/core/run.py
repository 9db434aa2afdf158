"""The runner: drives every problem's strategies and keeps the backend's batch full.

A problem is a tree of running strategies. The outermost is asked first; its asks go to the next one
inside, and the innermost's to the backend, where the asks of all problems share one batch. Nothing
here depends on which ask completes first: draws come from streams, and the bill is made after the
problem's end, in logical time.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

from tokenscale.core.backend import Backend, Completion
from tokenscale.core.context import check_ids, room
from tokenscale.core.cost import Cost, Ledger, Usage
from tokenscale.core.data import Ask, Candidate, Prompt, Result, RoutingStats
from tokenscale.core.errors import PipelineError
from tokenscale.core.model import LanguageModel
from tokenscale.core.noise import Stream, prompt_key
from tokenscale.core.strategy import Asks, Kind, SequenceStrategy

Progress = Callable[[int, int], None]
OnResult = Callable[[int, Result], None]


@dataclass
class _Served:
    """An ask that the backend answered (or will): `candidates` and what each of them ran."""

    candidates: list[Candidate] | None = None
    usages: list[Usage] = field(default_factory=list)


@dataclass
class _Node:
    """One running strategy: its generator and, per round of asks, what answers them.

    A round is a list with one entry an ask; an entry is the list of the parts that answer it (one
    for each copy where the inner strategy takes one at a time).
    """

    generator: Asks
    parent: _Node | None
    wanted: int = 1
    rounds: list[list[list[_Node | _Served]]] = field(default_factory=list)
    missing: int = 0
    candidates: list[Candidate] | None = None


@dataclass
class _Problem:
    """One prompt's place in the output and the root of its tree."""

    index: int
    prompt: Prompt
    root: _Node | _Served


class _Runner:
    """All problems of one call. `finished` holds those whose root has its candidates."""

    def __init__(self, backend: Backend, strategies: Sequence[SequenceStrategy]) -> None:
        self._backend, self._strategies = backend, strategies
        self._waiting: dict[int, tuple[_Problem, _Served, _Node | None]] = {}

    @property
    def outstanding(self) -> bool:
        return bool(self._waiting)

    def open(self, problem: _Problem, ask: Ask) -> list[_Problem]:
        """Starts a problem; returns it if it is complete without a single ask."""
        [problem.root] = self._serve(problem, ask, len(self._strategies) - 1, None)
        return [] if problem.root.candidates is None else [problem]

    def _serve(self, problem: _Problem, ask: Ask, level: int, parent: _Node | None) -> list[_Node | _Served]:
        """What will answer an ask: strategy `level`, or the backend below the innermost."""
        if level < 0:
            served = _Served()
            self._waiting[self._backend.submit(ask)] = (problem, served, parent)
            return [served]
        strategy = self._strategies[level]
        # Prompting strategies hand any k on; the others answer one copy at a time.
        asks = [ask] if strategy.kind is Kind.PROMPTING or ask.k == 1 else ask.copies()
        nodes: list[_Node | _Served] = []
        for one in asks:
            node = _Node(_started(strategy, one), parent, one.k)
            self._advance(problem, node, None, level)
            nodes.append(node)
        return nodes

    def _advance(self, problem: _Problem, node: _Node, answers: list[list[Candidate]] | None, level: int) -> None:
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

    def take(self, completion: Completion) -> list[_Problem]:
        """Hands a completion to whoever waits for it; returns the problem if that ends it."""
        problem, served, node = self._waiting.pop(completion.ticket)
        served.candidates, served.usages = completion.candidates, completion.usages
        level = 0
        while node is not None:
            node.missing -= 1
            if node.missing:
                break
            self._advance(problem, node, _answers(node.rounds[-1]), level)
            if node.candidates is None:
                break
            node, level = node.parent, level + 1
        return [] if problem.root.candidates is None else [problem]

    def close(self) -> None:
        """Cancels what is outstanding and closes the generators that wait for it, innermost first."""
        for ticket, (_, _, node) in self._waiting.items():
            self._backend.cancel(ticket)
            while node is not None:
                node.generator.close()
                node = node.parent
        self._waiting.clear()


def _started(strategy: SequenceStrategy, ask: Ask) -> Asks:
    generator = strategy.solve(ask)
    if isinstance(generator, Generator):
        return generator
    message = f"{type(strategy).__name__}.solve returned {generator!r:.60}, which is no generator"
    raise PipelineError(message, "ask in it: `answers = yield [ask]`")


def _check_yielded(strategy: SequenceStrategy, asks: object) -> None:
    if not (isinstance(asks, list) and all(isinstance(ask, Ask) for ask in asks)):
        message = f"{type(strategy).__name__}.solve yielded {asks!r:.60}, which is no list of asks"
        raise PipelineError(message, "yield a list: `answers = yield [ask]`")


def _returned(strategy: SequenceStrategy, value: object, wanted: int) -> list[Candidate]:
    found = value if isinstance(value, list) else []
    if len(found) == wanted and all(isinstance(candidate, Candidate) for candidate in found):
        return found
    asked = f"{wanted} candidate{'s'[: wanted > 1]}"
    message = f"{type(strategy).__name__}.solve was asked for {asked}, and returned {value!r:.60}"
    raise PipelineError(message, "return a list of as many candidates as `ask.k` says, best first")


def _answers(parts: list[list[_Node | _Served]]) -> list[list[Candidate]]:
    """The candidates of a finished round, one list an ask."""
    return [[c for part in answer for c in part.candidates or ()] for answer in parts]


def bill(root: _Node | _Served, ledger: Ledger) -> Cost:
    """The problem's bill: every ask at the logical time at which its strategy made it.

    A strategy's next round begins when the last part of the round before has ended. Rounds are
    entered in the order of their time, so the first to need a prompt pays for its prefill.
    """
    top = _Node(generator=iter(()), parent=None, rounds=[[[root]]])  # type: ignore[arg-type]
    clock = _Clock(ledger)
    clock.enter(top, 0, None)
    clock.run()
    return ledger.bill()


@dataclass
class _Playing:
    """A node on the clock: its next round, the parts still running, the latest end so far."""

    node: _Node
    parent: _Playing | None
    round: int = 0
    running: int = 0
    end: int = 0


@dataclass
class _Clock:
    """Replays a finished tree in logical time; ties go in the order of entry."""

    ledger: Ledger
    _queue: list[tuple[int, int, _Playing]] = field(default_factory=list)
    _entered: int = 0

    def enter(self, node: _Node, time: int, parent: _Playing | None) -> None:
        self._push(_Playing(node, parent), time)

    def _push(self, playing: _Playing, time: int) -> None:
        heapq.heappush(self._queue, (time, self._entered, playing))
        self._entered += 1

    def run(self) -> None:
        while self._queue:
            time, _, playing = heapq.heappop(self._queue)
            if playing.round == len(playing.node.rounds):
                self._leave(playing.parent, time)
            else:
                self._play(playing, time)

    def _play(self, playing: _Playing, time: int) -> None:
        parts = [part for answer in playing.node.rounds[playing.round] for part in answer]
        playing.round += 1
        playing.running, playing.end = len(parts), time
        for part in parts:
            if isinstance(part, _Node):
                self.enter(part, time, playing)
            else:
                self._leave(playing, self.ledger.add(part.usages, time))
        if not parts:
            self._push(playing, time)

    def _leave(self, playing: _Playing | None, time: int) -> None:
        if playing is None:
            return
        playing.running -= 1
        playing.end = max(playing.end, time)
        if not playing.running:
            self._push(playing, playing.end)


def run_problems(
    lm: LanguageModel,
    backend: Backend,
    strategies: Sequence[SequenceStrategy],
    prompts: Sequence[Prompt],
    *,
    seed: int,
    max_new_tokens: int,
    stop_strings: tuple[str, ...] = (),
    progress: Progress | None = None,
    on_result: OnResult | None = None,
) -> list[Result]:
    """Answers every prompt; results in the order of the prompts.

    `strategies` go from inner to outer. A problem's stream is (seed, key), the key being the prompt's
    own or the hash of its token ids and the number of its repeat. New problems are opened while the
    backend is hungry. As each problem ends, in whatever order, `on_result(number of its prompt, result)`
    is called, and then `progress(done, total)`, which is called at the start too.
    Whatever ends the call early (an error, Ctrl-C) first cancels what is outstanding.
    Raises PipelineError for a strategy whose `solve` breaks its promise, by name, and
    PromptError before any decoding for a prompt that cannot be encoded or fills the context; one
    that a strategy makes too long is refused when its turn comes.
    """
    asks = deque(_asks(lm, prompts, seed, max_new_tokens, stop_strings))
    results: list[Result | None] = [None] * len(prompts)
    runner, done = _Runner(backend, strategies), 0
    report = progress or (lambda done, total: None)
    tell = on_result or (lambda index, result: None)
    report(done, len(prompts))
    try:
        while asks or runner.outstanding:
            ended: list[_Problem] = []
            while asks and (backend.hungry or not runner.outstanding):
                index, ask = asks.popleft()
                ended += runner.open(_Problem(index, prompts[index], _Served()), ask)
            for completion in backend.advance() if runner.outstanding else ():
                ended += runner.take(completion)
            for problem in ended:
                results[problem.index] = result = _result(problem, Ledger(), seed)
                tell(problem.index, result)
                done += 1
                report(done, len(prompts))
    finally:
        runner.close()
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
