"""What a result's reader should know: candidates that are nearly all the same, and a constraint that is not met."""

from __future__ import annotations

from tokenscale import dsl
from tokenscale.core.constraint import Constraint
from tokenscale.core.data import Result
from tokenscale.core.strategy import Decoder, TokenProposer

ALIKE_SHARE = 0.1


def unmet(result: Result, constraint: Constraint | None) -> tuple[str, ...]:
    """How many answers do not meet the constraint, and what to do about it."""
    count = sum(c.finish_reason == "constraint_unmet" for c in result.candidates)
    if constraint is None or not count:
        return ()
    whose = "the answer does" if len(result.candidates) == 1 else f"{count} of {len(result.candidates)} answers do"
    fix = "raise max_new_tokens, or look whether the model writes what the constraint (or its `after`) waits for"
    return (f"{whose} not meet {dsl.to_text(constraint)}: {fix}.",)


def alike(result: Result, proposer: TokenProposer, decoder: Decoder) -> tuple[str, ...]:
    """Where all chance is the proposer's: that fewer than ALIKE_SHARE of the candidates differ from the first."""
    first, *others = result.candidates
    differing = sum(c.token_ids != first.token_ids for c in others)
    if decoder.random or not others or differing >= ALIKE_SHARE * len(result.candidates):
        return ()
    return (
        f"only {differing} of {len(result.candidates)} candidates differ from the first: {dsl.to_text(decoder)} leaves "
        f"all chance to {dsl.to_text(proposer)}. Sample(temperature=0.7) in its place brings more.",
    )
