"""The suite for backends."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tokenscale.core.backend import Backend, Completion
from tokenscale.core.data import Ask
from tokenscale.core.noise import Stream
from tokenscale.core.prompt import Prompt
from tokenscale.testing.expect import expect

REASONS = {"eos", "stop_string", "length"}
NO_SUCH_TICKET = 10**6


def check_backend(make: Callable[[], Backend], prompts: Sequence[Prompt], *, max_new_tokens: int = 8) -> None:
    """What `Backend` promises; `make` opens a fresh one, and `prompts` are at least two that it can run.

    Everything that is submitted completes once, in whatever order; copy j draws from the ask's
    stream's child j, so more copies leave the first as they were; what else is outstanding changes
    no token. Raises AssertionError.
    """
    expect(len(prompts) >= 2, "the suite needs two prompts")
    asks = [
        Ask(prompt, Stream(("conformance", i)), max_new_tokens, k=1 + 2 * (i % 2)) for i, prompt in enumerate(prompts)
    ]
    together = _run(make(), asks)
    for ask, completion in zip(asks, together, strict=True):
        _check_completion(ask, completion)
    _check_nothing_outstanding(make())
    _check_independence(make, asks, together)
    _check_cancelling(make(), asks)


def _run(backend: Backend, asks: Sequence[Ask]) -> list[Completion]:
    """Completions in the order of the asks."""
    tickets = [backend.submit(ask) for ask in asks]
    expect(len(set(tickets)) == len(tickets), "every ask has a ticket of its own")
    done: dict[int, Completion] = {}
    while len(done) < len(tickets):
        completions = backend.advance()
        expect(bool(completions), "advance works until an ask is complete")
        for completion in completions:
            fresh = completion.ticket in tickets and completion.ticket not in done
            expect(fresh, "each ask completes once")
            done[completion.ticket] = completion
    expect(backend.advance() == [], "advance returns nothing where nothing is outstanding")
    return [done[ticket] for ticket in tickets]


def _tokens(completion: Completion) -> list[tuple[int, ...]]:
    return [c.token_ids for c in completion.candidates]


def _check_completion(ask: Ask, completion: Completion) -> None:
    expect(len(completion.candidates) == len(completion.usages) == ask.k, "k candidates, and what each ran")
    for one, candidate in zip(ask.copies(), completion.candidates, strict=True):
        expect(candidate.stream == one.stream, "copy j has the ask's stream's child j")
        expect(0 < len(candidate.token_ids) <= ask.max_new_tokens, "between one and max_new_tokens tokens")
        expect(len(candidate.log_probs) == len(candidate.token_ids), "one log-probability a token")
        expect(all(lp <= 0 for lp in candidate.log_probs), "log-probabilities are not positive")
        expect(candidate.finish_reason in REASONS, f"finish_reason is one of {sorted(REASONS)}")


def _check_nothing_outstanding(backend: Backend) -> None:
    expect(backend.hungry, "an idle backend is hungry")
    expect(backend.advance() == [], "advance returns nothing where nothing is outstanding")
    backend.cancel(NO_SUCH_TICKET)


def _check_independence(make: Callable[[], Backend], asks: list[Ask], together: list[Completion]) -> None:
    reverse = _run(make(), asks[::-1])[::-1]
    alone = [_run(make(), [ask])[0] for ask in asks]
    for wanted, other, single in zip(together, reverse, alone, strict=True):
        expect(_tokens(wanted) == _tokens(other), "the order of asks changes no token")
        expect(_tokens(wanted) == _tokens(single), "what else is outstanding changes no token")
    for ask, wanted in zip(asks, together, strict=True):
        [narrow] = _run(make(), [Ask(ask.prompt, ask.stream, ask.max_new_tokens, k=1)])
        expect(_tokens(narrow) == _tokens(wanted)[:1], "copy 0 of k is copy 0 of 1")
        last = ask.k - 1
        [later] = _run(make(), [Ask(ask.prompt, ask.stream, ask.max_new_tokens, first=last)])
        expect(_tokens(later) == _tokens(wanted)[last:], "copy 0 from `first` on is copy `first`")


def _check_cancelling(backend: Backend, asks: list[Ask]) -> None:
    first, second = (backend.submit(ask) for ask in asks[:2])
    backend.cancel(first)
    done = list[int]()
    while completions := backend.advance():
        done += [completion.ticket for completion in completions]
    expect(done == [second], "a cancelled ask never completes, and the others do")
    backend.cancel(second)
    expect(backend.advance() == [], "cancelling what is complete is nothing")
