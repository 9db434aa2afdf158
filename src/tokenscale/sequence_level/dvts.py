"""Diverse verifier tree search: several step-wise searches that do not know of each other."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from tokenscale.core.data import Ask, Candidate
from tokenscale.core.errors import at_least
from tokenscale.core.scorer import Scorer
from tokenscale.core.stage import Kind
from tokenscale.core.strategy import Asks, SequenceStrategy
from tokenscale.sequence_level.scorers.log_prob import LogProb
from tokenscale.sequence_level.steps import (
    MOST_STEPS,
    Branch,
    check_scorer,
    grow,
    is_open,
    one_step_note,
    score_of,
    separators,
    step_stream,
)


@dataclass(frozen=True)
class DVTS(SequenceStrategy):
    r"""Grows `subtrees` answers side by side, each by the best of `expand` next steps.

    Every subtree samples `expand` next steps, and goes on from the one that the scorer likes best (of equal
    scores the first), until that one has ended. A step ends behind `step` (a text, or several of which any
    will do); step number `max_steps` runs to the end of the text. The result is the answer with the highest
    score (of equal ones, that of the first subtree), and all subtrees' answers are its `members`.

    Use it where StepBeam's answers all grow from one beginning: subtrees never crowd each other out, so
    many of them bring more than a wider beam. For the demo model's steps: `DVTS(subtrees=4, expand=4,
    step=(", ", ". "))`; see StepBeam.

    Costs subtrees * expand continuations of one step each, times the steps, and what the scorer costs for each
    of them. Continuation j of subtree t in step s draws from `stream/step/s/t/j`, so the first two of four
    subtrees are those of two. Raises ArgumentError for parameters out of range.

    Source: Beeching, Tunstall and Rush 2024, "Scaling test-time compute with open models" (N = subtrees *
    expand, M = expand; at most 40 rounds).
    """

    kind = Kind.SEARCH
    reads_text = True

    subtrees: int
    expand: int
    scorer: Scorer = field(default_factory=LogProb)
    step: str | tuple[str, ...] = "\n\n"
    max_steps: int = MOST_STEPS

    def __post_init__(self) -> None:
        at_least("DVTS", "subtrees", self.subtrees, 1)
        at_least("DVTS", "expand", self.expand, 1)
        at_least("DVTS", "max_steps", self.max_steps, 1)
        check_scorer("DVTS", self.scorer)
        separators("DVTS", self.step)

    @property
    def signals(self) -> frozenset[str]:
        return self.scorer.signals

    def solve(self, ask: Ask) -> Asks:
        ends = separators("DVTS", self.step)
        begun: dict[int, Candidate | None] = dict.fromkeys(range(self.subtrees))
        answers: dict[int, Candidate] = {}
        notes: tuple[str, ...] = ()
        for number in range(1, self.max_steps + 1):
            last = number == self.max_steps
            branches = [Branch(c, step_stream(ask, number - 1, tree)) for tree, c in begun.items()]
            found = yield from grow(ask, branches, self.expand, () if last else ends, self.scorer, number)
            if number == 1 and not last:
                notes = one_step_note([c for continuations in found for c in continuations], ask, ends)
            best = {tree: max(some, key=score_of) for tree, some in zip(begun, found, strict=True)}
            answers |= best
            begun = {tree: c for tree, c in best.items() if is_open(c, ask)}
            if not begun:
                break
        members = tuple(answers[tree] for tree in range(self.subtrees))
        winner = max(members, key=score_of)
        return [replace(winner, members=members, notes=(*winner.notes, *notes))]
