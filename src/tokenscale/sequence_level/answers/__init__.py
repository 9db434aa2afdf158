r"""Finds the answer in a text and brings it into one normal form, so that equal answers are equal strings.

Where the answer stands: the first of these rules that finds a value gives the answer, and where a
rule finds several values, the last of them counts.

1. `\boxed{...}`, braces nested (MATH);
2. `#### 42` (GSM8K);
3. "the answer is 42" or "Answer: 42", also with a sum before it: "the answer is 40 + 2 = 42";
4. by the kind of answer, see KINDS: the last number of the text, its last "(B)", its last line, ...

A text without a value has no answer: None. An answer that is read again gives itself. What the tags of
thinking enclose is not read, because `core.thinking.split` takes it away before. No text takes more
than linear time; rules 1 to 3 try the last 64 places each.
"""

from __future__ import annotations

from tokenscale.sequence_level.answers.equality import groups, same
from tokenscale.sequence_level.answers.kinds import KINDS, Kind, find_kind
from tokenscale.sequence_level.answers.places import boxed

__all__ = ["KINDS", "Kind", "boxed", "extract", "groups", "same"]

_READINGS = 8


def extract(text: str, kind: str = "number") -> str | None:
    """The answer that `text` gives, in normal form; None where it gives none.

    `kind` is a name of KINDS. A reference answer given by itself ("1,234") comes into the same normal
    form, so that both can be compared. Raises UnknownNameError.
    """
    reader = find_kind(kind)
    answer = reader.read(text)
    for _ in range(_READINGS):
        if answer is None:
            break
        # What stood in a box may hold a box, or announce an answer itself.
        text, answer = answer, reader.read(answer)
        if answer == text:
            return answer
    return None
