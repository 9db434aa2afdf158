"""Beam search over steps of text: the best partial answers go on."""

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
class StepBeam(SequenceStrategy):
    r"""Keeps the `width` partial answers that a scorer likes best, step by step.

    1. Sample width * expand first steps. 2. Score them, each with all that stands before it. 3. Keep the best
    `width`. 4. Continue each of them `expand` times by one step, and go on with 2. A step ends behind `step`
    (a text, or several of which any will do). Answers that have ended keep their place and their score: they
    compete with the others, and it is over when all that are kept have ended. Step number `max_steps` runs to
    the end of the text. Of equal scores, those that ended earlier come first, then those seen first; equal
    texts are all kept. The result is the best of the kept answers, which are its `members`, best first.

    Use it with a scorer that can tell good beginnings from bad ones: a process reward model. Solutions of the
    demo model are equations with ", " between them and ". " behind a group of them (before the answer, too):
    `StepBeam(width=2, expand=4, step=(", ", ". "))`. If no first step ends with `step`, the result says so.

    Costs width * expand continuations of one step each, times the steps, and what the scorer costs for each of
    them; every step goes on from the tokens before it. Continuation j of place b in step s draws from
    `stream/step/s/b/j`. Raises ArgumentError for parameters out of range.

    Source: Snell et al., arXiv 2408.03314, section 5.2 (beam search against a process reward model: N = width *
    expand, M = expand; at most 40 rounds).
    """

    kind = Kind.SEARCH
    reads_text = True

    width: int
    expand: int
    scorer: Scorer = field(default_factory=LogProb)
    step: str | tuple[str, ...] = "\n\n"
    max_steps: int = MOST_STEPS

    def __post_init__(self) -> None:
        at_least("StepBeam", "width", self.width, 1)
        at_least("StepBeam", "expand", self.expand, 1)
        at_least("StepBeam", "max_steps", self.max_steps, 1)
        check_scorer("StepBeam", self.scorer)
        separators("StepBeam", self.step)

    @property
    def signals(self) -> frozenset[str]:
        return self.scorer.signals

    def solve(self, ask: Ask) -> Asks:
        ends = separators("StepBeam", self.step)
        branches, k = [Branch(None, step_stream(ask, 0, 0))], self.width * self.expand
        kept: list[Candidate] = []
        notes: tuple[str, ...] = ()
        for number in range(1, self.max_steps + 1):
            last = number == self.max_steps
            found = yield from grow(ask, branches, k, () if last else ends, self.scorer, number)
            fresh = [c for continuations in found for c in continuations]
            if number == 1 and not last:
                notes = one_step_note(fresh, ask, ends)
            ended = [c for c in kept if not is_open(c, ask)]
            kept = sorted([*ended, *fresh], key=score_of, reverse=True)[: self.width]
            going = [c for c in kept if is_open(c, ask)]
            if not going:
                break
            branches = [Branch(c, step_stream(ask, number, place)) for place, c in enumerate(going)]
            k = self.expand
        return [replace(kept[0], members=tuple(kept), notes=(*kept[0].notes, *notes))]
