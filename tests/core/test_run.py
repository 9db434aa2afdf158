"""The runner against a direct recursive evaluation, whatever completes first."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenscale.core.backend import Backend, Completion
from tokenscale.core.cost import Cached, Lane, Prefill, Usage
from tokenscale.core.data import Ask, Candidate, Result
from tokenscale.core.errors import PipelineError, PromptError
from tokenscale.core.ledger import Ledger
from tokenscale.core.noise import Stream
from tokenscale.core.prompt import Prompt
from tokenscale.core.run import run_problems
from tokenscale.core.stage import Kind
from tokenscale.core.strategy import Asks, SequenceStrategy
from tokenscale.models.toy import ToyModel

LM = ToyModel()


def candidate(ask: Ask) -> tuple[Candidate, Usage]:
    """A pure function of the ask's stream and prompt: its text names both, its length is drawn from them."""
    steps = 1 + int(ask.stream.key[0] % 5)
    shape = (steps, LM.shape.moe_layers, -(-LM.shape.experts // 8))
    experts = np.random.default_rng(ask.stream.key).integers(0, 256, shape, np.uint8)
    cached = Cached("toy", LM.shape, LM.encode(ask.prompt), Prefill(experts[0], 7))
    ones = (1,) * steps
    usage = Usage((Lane(cached, ones, ones, ones, experts),))
    text = f"{ask.prompt.text}/{'.'.join(map(str, ask.stream.path[2:]))}"
    return Candidate(text, (2,) * steps, (-1.0,) * steps, "eos", ask.stream), usage


@dataclass
class Shuffled(Backend):
    """Completes asks in an order of its own and remembers what was cancelled."""

    random: Random
    limit: int
    waiting: dict[int, Ask] = field(default_factory=dict)
    tickets: int = 0
    cancelled: list[int] = field(default_factory=list)

    def submit(self, ask: Ask) -> int:
        self.tickets += 1
        self.waiting[self.tickets] = ask
        return self.tickets

    def advance(self) -> list[Completion]:
        if not self.waiting:
            return []
        ticket = self.random.choice(sorted(self.waiting))
        done = [candidate(one) for one in self.waiting.pop(ticket).copies()]
        return [Completion(ticket, [c for c, _ in done], [u for _, u in done])]

    def cancel(self, ticket: int) -> None:
        self.waiting.pop(ticket, None)
        self.cancelled.append(ticket)

    @property
    def hungry(self) -> bool:
        return len(self.waiting) < self.limit


@dataclass(frozen=True)
class Rounds(SequenceStrategy):
    """Asks `widths[i]` times in round i, twice under different prompts, and joins what it got."""

    widths: tuple[int, ...]
    kind: ClassVar[Kind] = Kind.CHOOSING

    def solve(self, ask: Ask) -> Asks:
        assert ask.k == 1
        members: list[Candidate] = []
        for number, width in enumerate(self.widths):
            stream = ask.stream.child(number)
            asks = [replace(ask, k=width, stream=stream.child(part), prompt=ask.prompt.append(part)) for part in "ab"]
            for found in (yield asks):
                assert len(found) == width
                members += found
        joined = "+".join(c.text for c in members)
        return [Candidate(joined, (), (), "eos", ask.stream, members=tuple(members))]


@dataclass(frozen=True)
class Prefix(SequenceStrategy):
    """Hands any k on."""

    kind: ClassVar[Kind] = Kind.PROMPTING

    def solve(self, ask: Ask) -> Asks:
        [found] = yield [replace(ask, prompt=ask.prompt.append("p"))]
        return found


@dataclass(frozen=True)
class Nothing(SequenceStrategy):
    """Answers without asking."""

    kind: ClassVar[Kind] = Kind.SEARCH

    def solve(self, ask: Ask) -> Asks:
        yield []
        return [Candidate("nothing", (), (), "eos", ask.stream)]


def recursive(ask: Ask, strategies: tuple[SequenceStrategy, ...], root: bool = True) -> list[Candidate]:
    """What the strategies make of an ask, evaluated depth first."""
    if not strategies:
        return [candidate(one)[0] for one in ask.copies()]
    *inner, strategy = strategies
    whole = strategy.kind is Kind.PROMPTING or root
    found: list[Candidate] = []
    for one in [ask] if whole else ask.copies():
        generator, answers = strategy.solve(one), None
        while True:
            try:
                asks = generator.send(answers) if answers is not None else next(generator)
            except StopIteration as end:
                found += end.value
                break
            answers = [recursive(a, tuple(inner), root=False) for a in asks]
    return found


def run(strategies: tuple[SequenceStrategy, ...], prompts: list[str], seed: int, limit: int) -> list[Result]:
    backend = Shuffled(Random(seed), limit)
    asked = [Prompt(text=p, key=f"{p}{i}") for i, p in enumerate(prompts)]
    results = run_problems(LM, backend, strategies, asked, seed=9, max_new_tokens=5)
    assert not backend.waiting
    assert not backend.cancelled
    return results


stages = st.lists(
    st.one_of(
        st.builds(Rounds, st.lists(st.integers(1, 3), min_size=1, max_size=2).map(tuple)),
        st.just(Prefix()),
        st.just(Nothing()),
    ),
    max_size=3,
).map(tuple)


@given(stages, st.integers(1, 4), st.integers(0, 99), st.integers(1, 9))
def test_results_are_those_of_a_recursive_evaluation_in_any_order(
    strategies: tuple[SequenceStrategy, ...], problems: int, seed: int, limit: int
) -> None:
    prompts = ["x", "yy", "x", "z"][:problems]
    results = run(strategies, prompts, seed, limit)
    again = run(strategies, prompts, seed + 1, 16)
    for index, (prompt, result) in enumerate(zip(prompts, results, strict=True)):
        ask = Ask(Prompt(text=prompt, key=f"{prompt}{index}"), Stream((9, f"{prompt}{index}")), 5)
        assert result.text == recursive(ask, strategies)[0].text
        assert result == again[index]  # the bill included


@pytest.mark.parametrize("prompt", ["x", "y", "z", "xy", "yz", "zx"])
def test_a_round_begins_when_the_round_before_has_ended(prompt: str) -> None:
    [result] = run((Rounds((2, 1)),), [prompt], seed=0, limit=4)
    steps = {leaf.stream.path: len(leaf.token_ids) for leaf in result.candidates}
    first = max(n for path, n in steps.items() if path[2] == 0)
    second = max(n for path, n in steps.items() if path[2] == 1)
    # Both rounds ask the same two prompts, which are prefilled once, in the first forward; they differ in one token.
    assert result.cost.sequential_steps == 1 + first + second
    assert result.cost.prompt_tokens == len(LM.encode(Prompt(text=prompt + "a"))) + 1
    assert result.cost.new_tokens == sum(steps.values())


def test_one_ask_is_billed_as_its_candidate() -> None:
    [result] = run((), ["xyz"], seed=0, limit=1)
    [copy] = Ask(Prompt(text="xyz"), Stream((9, "xyz0")), 5).copies()
    ledger = Ledger()
    ledger.add([candidate(copy)[1]], 0)
    assert result.cost == ledger.bill()


def test_equal_prompts_without_keys_draw_differently() -> None:
    backend = Shuffled(Random(0), 4)
    asked = [Prompt(text="x"), Prompt(text="y"), Prompt(text="x")]
    first, other, repeat = run_problems(LM, backend, (), asked, seed=1, max_new_tokens=5)
    assert first.winner.stream != repeat.winner.stream
    alone = run_problems(LM, Shuffled(Random(0), 4), (), [Prompt(text="x"), Prompt(text="x")], seed=1, max_new_tokens=5)
    assert [r.winner.stream for r in alone] == [first.winner.stream, repeat.winner.stream]
    assert other.winner.stream.path[0] == 1


@dataclass(frozen=True)
class Fails(SequenceStrategy):
    """Raises after its first round."""

    kind: ClassVar[Kind] = Kind.SEARCH
    closed: ClassVar[list[str]] = []

    def solve(self, ask: Ask) -> Asks:
        try:
            yield [ask]
            if ask.prompt.text == "bad":
                raise KeyboardInterrupt
            yield [ask]
        finally:
            self.closed.append(str(ask.prompt.text))
        return [Candidate("", (), (), "eos", ask.stream)]


def test_whatever_ends_the_call_cancels_the_rest() -> None:
    Fails.closed.clear()
    backend = Shuffled(Random(3), 8)
    asked = [Prompt(text=t) for t in ("good", "bad", "fine")]
    with pytest.raises(KeyboardInterrupt):
        run_problems(LM, backend, (Fails(),), asked, seed=0, max_new_tokens=5)
    assert not backend.waiting
    assert sorted(Fails.closed) == ["bad", "fine", "good"]


def test_a_prompt_that_is_too_long_is_refused_before_anything_is_asked() -> None:
    backend = Shuffled(Random(0), 1)
    asked = [Prompt(text="x"), Prompt(text="1" * LM.context_length)]
    with pytest.raises(
        PromptError, match=r"(?s)the prompt has 512 tokens, and the context of toy holds 512.*fix: shorten"
    ):
        run_problems(LM, backend, (), asked, seed=0, max_new_tokens=5)
    assert backend.tickets == 0


@dataclass(frozen=True)
class Faulty(SequenceStrategy):
    """Gives `value` back from a plain function, or yields or returns it from a generator."""

    where: str
    value: Any
    kind: ClassVar[Kind] = Kind.CHOOSING

    def solve(self, ask: Ask) -> Any:
        return self.value if self.where == "plain" else self._generator(ask)

    def _generator(self, ask: Ask) -> Any:
        answers = yield (self.value if self.where == "yielded" else [ask])
        return self.value if self.where == "returned" else answers[0]


A = Candidate("a", (), (), "eos", Stream(("x",)))


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("plain", [A], r"Faulty.solve returned \[Candidate.*, which is no generator\n.*`answers = yield \[ask\]`"),
        ("plain", [], r"Faulty.solve returned \[\], which is no generator"),
        ("yielded", A, "Faulty.solve yielded Candidate.*, which is no list of asks"),
        ("yielded", [A], r"Faulty.solve yielded \[Candidate.*, which is no list of asks"),
        ("returned", [], r"Faulty.solve was asked for 1 candidate, and returned \[\]\n.*list of as many"),
        ("returned", None, "Faulty.solve was asked for 1 candidate, and returned None"),
        ("returned", A, "Faulty.solve was asked for 1 candidate, and returned Candidate"),
        ("returned", [A, A], r"Faulty.solve was asked for 1 candidate, and returned \[Candidate"),
        ("returned", ["a"], r"Faulty.solve was asked for 1 candidate, and returned \['a'\]"),
    ],
)
@pytest.mark.parametrize("outer", [(), (Rounds((2,)),)])
def test_a_strategy_that_breaks_its_promise_is_named(
    where: str, value: Any, message: str, outer: tuple[SequenceStrategy, ...]
) -> None:
    with pytest.raises(PipelineError, match=message):
        run((Faulty(where, value), *outer), ["x", "y"], seed=0, limit=2)


def test_progress_counts_problems() -> None:
    seen: list[Any] = []
    asked = [Prompt(text=t) for t in "abc"]
    backend = Shuffled(Random(0), 2)
    run_problems(LM, backend, (), asked, seed=0, max_new_tokens=5, progress=lambda *args: seen.append(args))
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_each_result_is_told_once_as_it_ends_before_the_progress() -> None:
    told: list[Any] = []
    asked = [Prompt(text=t) for t in "abcdef"]
    results = run_problems(
        LM,
        Shuffled(Random(0), 2),
        (),
        asked,
        seed=0,
        max_new_tokens=5,
        progress=lambda done, total: told.append(done),
        on_result=lambda index, result: told.append((index, result)),
    )
    assert told[::2] == list(range(7))
    ended = dict(told[1::2])
    assert [ended[i] for i in range(6)] == results
    assert list(ended) != sorted(ended)  # ends are in no order
