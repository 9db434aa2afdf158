"""The grammar of pipelines, inner to outer:

proposer? aggregator? constraint? decoder? prompting* search* choosing*

Kinds that can stand once have one place and may be written anywhere; the order of the others is their
nesting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from tokenscale import dsl
from tokenscale.core.constraint import Constraint
from tokenscale.core.errors import PipelineError
from tokenscale.core.stage import ONE_PLACE, Kind, Stage
from tokenscale.core.strategy import Aggregator, Decoder, SequenceStrategy, TokenProposer

CLASSES: Mapping[Kind, type[Stage]] = {
    Kind.PROPOSER: TokenProposer,
    Kind.AGGREGATOR: Aggregator,
    Kind.CONSTRAINT: Constraint,
    Kind.DECODER: Decoder,
    Kind.PROMPTING: SequenceStrategy,
    Kind.SEARCH: SequenceStrategy,
    Kind.CHOOSING: SequenceStrategy,
}


def ordered(stages: list[Stage]) -> tuple[Stage, ...]:
    """The canonical order. Raises PipelineError for an empty list, doubles, and an impossible nesting."""
    if not stages:
        raise PipelineError("a pipeline without stages", "write Pipeline(Greedy()) for the model as it is")
    for stage in stages:
        _check_class(stage)
    once = sorted((s for s in stages if s.kind in ONE_PLACE), key=_place)
    for one, two in pairwise(once):
        if one.kind is two.kind:
            message = f"two {_word(one.kind)}s: {dsl.to_text(one)} and {dsl.to_text(two)}"
            raise PipelineError(message, "keep one of them")
    nested = [s for s in stages if s.kind not in ONE_PLACE]
    for inner, outer in pairwise(nested):
        if _place(inner) > _place(outer):
            raise PipelineError(
                f"{dsl.to_text(outer)} cannot stand around {dsl.to_text(inner)}: "
                f"{_word(outer.kind)} goes inside {_word(inner.kind)}",
                "write " + " | ".join(map(dsl.to_text, [*once, *sorted(nested, key=_place)])),
            )
    return (*once, *nested)


def _check_class(stage: Stage) -> None:
    if not isinstance(getattr(stage, "kind", None), Kind):
        names = ", ".join(f"Kind.{kind.name}" for kind, cls in CLASSES.items() if isinstance(stage, cls))
        raise PipelineError(f"{type(stage).__name__} has no kind", f"write `kind = ...` in its class, one of {names}")
    if stage.kind is Kind.SCORER:
        message = f"{dsl.to_text(stage)} is a scorer, which is a parameter of other stages"
        raise PipelineError(message, f"write BestOfN(n=8, scorer={dsl.to_text(stage)})")
    expected = CLASSES[stage.kind]
    if not isinstance(stage, expected):
        message = f"{type(stage).__name__} is of the kind {_word(stage.kind)}, but extends no {expected.__name__}"
        raise PipelineError(message, f"extend {expected.__name__}, or name another kind")


def _place(stage: Stage) -> int:
    return stage.kind.value


def _word(kind: Kind) -> str:
    return kind.name.lower()


def check_chance(stages: Sequence[Stage], proposer: TokenProposer, decoder: Decoder) -> None:
    """Refuses a choice among candidates that must all be equal, and rounds of candidates that come at once."""
    rounds = next((s for s in stages if isinstance(s, SequenceStrategy) and s.in_rounds), None)
    if rounds is not None and decoder.num_return > 1:
        message = f"{dsl.to_text(rounds)} asks in rounds, and one {dsl.to_text(decoder)} gives all its texts at once"
        raise PipelineError(message, "write SelfConsistency(k=...) or BestOfN(n=...) around it, or num_return=1")
    choosers = [s for s in stages if s.kind in (Kind.SEARCH, Kind.CHOOSING)]
    # A search that gives several texts gives them to the innermost choice, and the same in every copy of it.
    chooser = next(iter(choosers[decoder.num_return > 1 :]), None)
    if chooser is None or decoder.random or proposer.random:
        return
    chance, rows = dsl.to_text(decoder), dsl.to_text(proposer)
    raise PipelineError(
        f"{dsl.to_text(chooser)} would choose among equal candidates: {chance} over {rows} has no randomness",
        f"leave {chance} out (then Sample(temperature=0.7) is used), or use a random proposer such as RoE(n=4)",
    )
