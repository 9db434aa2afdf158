"""Which answers are the same, and so vote together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenscale.sequence_level.answers.judge import shared
from tokenscale.sequence_level.answers.kinds import find_kind

JUDGED = "math-verify"


def groups(answers: Sequence[str | None], kind: str) -> list[list[int]]:
    """Places of equal answers, group by group: answers in normal form, as `extract` gives them.

    Groups stand in the order of their first places, and places ascend. An answer that is None is in no
    group. Equal is what has one normal form; for "math-verify" also what that library finds equal to
    the shortest form of the group (the first of them by alphabet). So the groups do not depend on the
    order of the answers, though "equal" need not be transitive.

    Costs, for "math-verify", at most one verdict for each pair of normal forms, of milliseconds each.
    Raises UnknownNameError, and CapabilityError where math-verify is not installed.
    """
    find_kind(kind)
    places: dict[str, list[int]] = {}
    for place, answer in enumerate(answers):
        if answer is not None:
            places.setdefault(answer, []).append(place)
    if kind != JUDGED or len(places) < 2:
        return list(places.values())
    merged = ([place for form in forms for place in places[form]] for forms in _judged(places))
    return sorted(sorted(group) for group in merged)


def same(one: str | None, other: str | None, kind: str) -> bool:
    """Whether two answers in normal form are the same, by the rules of `groups`. None is the same as nothing."""
    return one is not None and len(groups([one, other], kind)) == 1 and other is not None


def _judged(forms: Iterable[str]) -> list[list[str]]:
    """Normal forms, those that math-verify finds equal together."""
    found: list[list[str]] = []
    for form in sorted(forms, key=lambda form: (len(form), form)):
        verdicts = shared().equal([(group[0], form) for group in found])
        equal = next((group for group, verdict in zip(found, verdicts, strict=True) if verdict), None)
        if equal is None:
            found.append([form])
        else:
            equal.append(form)
    return found
