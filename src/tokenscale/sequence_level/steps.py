"""Answers that grow piece by piece: what the strategies that go on with a text share."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

from tokenscale.core.data import Ask, Candidate, Trace
from tokenscale.core.errors import ArgumentError
from tokenscale.core.noise import Stream
from tokenscale.core.reward import Grade
from tokenscale.core.scorer import Scorer
from tokenscale.sequence_level.scorers.scored import scored

MOST_STEPS = 40
GIVEN = 0.0

Growing = Generator[list[Ask | Grade], list[list[Candidate]], list[list[Candidate]]]


@dataclass(frozen=True)
class Branch:
    """A text to go on with (None: from the beginning), and the random stream of its continuations."""

    begun: Candidate | None
    stream: Stream


def grow(ask: Ask, branches: Sequence[Branch], k: int, pauses: tuple[str, ...], scorer: Scorer, number: int) -> Growing:
    """k continuations of every branch up to one of `pauses`, whole and scored, all asked for at once.

    `number` is that of the step: judges draw from a stream of their own in each.
    """
    answers = yield [_going_on(ask, branch, k, pauses) for branch in branches]
    joined = [[join(branch.begun, c) for c in found] for branch, found in zip(branches, answers, strict=True)]
    judged = replace(ask, stream=ask.stream.child("score").child(number))
    flat = yield from scored(scorer, judged, [c for found in joined for c in found])
    rest = iter(flat)
    return [[next(rest) for _ in found] for found in joined]


def _going_on(ask: Ask, branch: Branch, k: int, pauses: tuple[str, ...]) -> Ask:
    asked = replace(ask, k=k, first=0, stream=branch.stream, pauses=(*ask.pauses, *pauses))
    if branch.begun is None:
        return asked
    ids = branch.begun.token_ids
    left = max(1, ask.max_new_tokens - len(ids))
    return replace(asked, prefix_ids=(*ask.prefix_ids, *ids), suffix="", max_new_tokens=left)


def step_stream(ask: Ask, number: int, place: int) -> Stream:
    """The stream of the continuations of branch `place` in step `number`: one of its own for each."""
    return ask.stream.child("step").child(number).child(place)


def is_open(candidate: Candidate, ask: Ask) -> bool:
    """Whether a candidate only pauses, at a step's end that is not one of the asker's own pauses."""
    return candidate.finish_reason == "pause" and candidate.stopped_by not in ask.pauses


def score_of(candidate: Candidate) -> float:
    """The score that `grow` has filled in."""
    assert candidate.score is not None
    return candidate.score


def join(first: Candidate | None, second: Candidate) -> Candidate:
    """A text and its continuation as one candidate.

    `second` was asked with the tokens of `first` behind the prefix, so its text already holds all of it. Tokens,
    log-probabilities, signals and traces stand one behind the other, counts and costs add up, all else is
    the second's. Tokens that were given (the second's `suffix_ids`) were not chosen: log-probability 0, the
    signals of the token before them, no rows.
    """
    begun = first or replace(second, token_ids=(), log_probs=(), signals=(), trace=None)
    given = len(second.suffix_ids)
    whole = replace(
        second,
        token_ids=(*begun.token_ids, *second.suffix_ids, *second.token_ids),
        log_probs=(*begun.log_probs, *(GIVEN,) * given, *second.log_probs),
        suffix_ids=(),
        signals=_joined_signals(begun, given, second),
        trace=_joined_trace(begun, given, second),
    )
    if first is None:
        return whole
    return replace(
        whole,
        cost=first.cost + second.cost,
        near_ties=first.near_ties + second.near_ties,
        fallbacks=first.fallbacks + second.fallbacks,
        routing=first.routing + second.routing,
        members=(),
        votes=(),
        notes=tuple(dict.fromkeys((*first.notes, *second.notes))),
    )


def _joined_signals(begun: Candidate, given: int, second: Candidate) -> tuple[tuple[str, tuple[float, ...]], ...]:
    before, after = dict(begun.signals), dict(second.signals)
    joined = []
    for name in {**before, **after}:
        head, tail = before.get(name, ()), after.get(name, ())
        near = (*head[-1:], *tail[:1])
        missing = len(begun.token_ids) + given - len(head)
        joined.append((name, (*head, *near[:1] * missing, *tail)))
    return tuple(joined)


def _joined_trace(begun: Candidate, given: int, second: Candidate) -> Trace | None:
    parts = (begun, second)
    if all(c.trace is None for c in parts) or any(c.trace is None and c.token_ids for c in parts):
        return None
    head, tail = (c.trace or Trace((), (), (), ()) for c in parts)
    return Trace(
        entropy=(*head.entropy, *(0.0,) * given, *tail.entropy),
        disagreement=(*head.disagreement, *(0.0,) * given, *tail.disagreement),
        rows=(*head.rows, *(0,) * given, *tail.rows),
        distinct_experts=(*head.distinct_experts, *(0.0,) * given, *tail.distinct_experts),
    )


def without_ending(candidate: Candidate) -> Candidate:
    """The candidate without the tokens that go beyond its text, to be gone on with behind its `rest`.

    What they cost stays on its bill, and so do their counts.
    """
    kept = len(candidate.token_ids) - candidate.ending
    trace = candidate.trace
    if trace is not None:
        some = slice(kept)
        trace = Trace(trace.entropy[some], trace.disagreement[some], trace.rows[some], trace.distinct_experts[some])
    return replace(
        candidate,
        token_ids=candidate.token_ids[:kept],
        log_probs=candidate.log_probs[:kept],
        signals=tuple((name, values[:kept]) for name, values in candidate.signals),
        trace=trace,
        ending=0,
    )


def separators(owner: str, step: object) -> tuple[str, ...]:
    """What ends a step, as a tuple. Raises ArgumentError."""
    given = (step,) if isinstance(step, str) else step
    if isinstance(given, tuple | list) and given and all(isinstance(s, str) and s for s in given):
        return tuple(given)
    message = f"{owner}(step={step!r:.80}): step must be a text that ends a step, or several"
    raise ArgumentError(message, r'write step="\n\n", or step=(", ", ". ")')


def check_scorer(owner: str, scorer: object) -> None:
    """Refuses what is no scorer. Raises ArgumentError."""
    if not isinstance(scorer, Scorer):
        message = f"{owner}(scorer={scorer!r:.80}): scorer must be a scorer"
        raise ArgumentError(message, f"write {owner}(..., scorer=LogProb()), or another scorer")


def one_step_note(found: Sequence[Candidate], ask: Ask, ends: Sequence[str]) -> tuple[str, ...]:
    """What the user should know where no first step ended with a separator, so that nothing was searched."""
    if any(is_open(c, ask) for c in found):
        return ()
    shown = " or ".join(map(repr, ends))
    return (f"no answer had a second step: none of {len(found)} first steps ended with {shown}; name another `step`",)
