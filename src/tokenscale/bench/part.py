"""The parts of the benchmark: what each is given and gives, and the sizes that they run at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tokenscale.bench.bandwidth import Limits
from tokenscale.bench.comparison import Comparison, rounded
from tokenscale.bench.subject import Subject


class LeftOut(Exception):
    """A part, or a line of it, that says nothing of a model; the text is the reason."""


@dataclass(frozen=True)
class Sizes:
    """How much is run.

    `context` tokens stand before a RoE step of `ns` rows; a vote has `k` answers behind `prompt` tokens;
    `prompts` of mixed lengths, at most `longest`, share a run; texts get `new_tokens` at most, and a text of
    `scored` tokens is scored in `score_rows` rows. `memory_rows` are those whose cache is compared with one row's,
    and `roofline_rows` and `taus` the steps of the roofline. Of single steps `steps` rounds count, of all else
    `rounds`. `guard`: a second engine over the same weights is opened for the rows without a past.
    """

    context: int = 512
    ns: tuple[int, ...] = (8, 16, 32)
    k: int = 8
    prompt: int = 512
    prompts: int = 64
    longest: int = 128
    new_tokens: int = 64
    scored: int = 256
    score_rows: int = 8
    memory_rows: int = 64
    roofline_rows: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    taus: tuple[float, ...] = (0.0, 0.3, 1.0)
    steps: int = 15
    guard: bool = True
    rounds: int = 7

    def within(self, context_length: int) -> Sizes:
        """As much of it as a model's context holds."""
        most = context_length - 2 * self.steps - 2
        room = max(1, min(self.new_tokens, most // 4))
        sized = {
            "context": min(self.context, most),
            "prompt": min(self.prompt, most - room),
            "longest": min(self.longest, most - room),
            "new_tokens": room,
            "scored": min(self.scored, most - 1),
        }
        return Sizes(**{**asdict(self), **sized})


# Of the command `bench`: the whole on a small model in less than two minutes.
BRIEF = replace(Sizes(), prompts=32, roofline_rows=(1, 4, 16, 64), steps=9, rounds=3)

QUICK = Sizes(
    context=40,
    ns=(2, 4),
    k=3,
    prompt=40,
    prompts=6,
    longest=24,
    new_tokens=6,
    scored=24,
    score_rows=3,
    memory_rows=8,
    roofline_rows=(1, 2, 4),
    steps=2,
    rounds=1,
)


@dataclass(frozen=True)
class Outcome:
    """A part on one subject: comparisons, what else it found (`facts`), and lines left out with the reason."""

    part: str
    comparisons: Sequence[Comparison] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    left_out: Sequence[str] = ()

    def to_dict(self, subject: Subject, limits: Limits, sizes: Sizes) -> dict[str, Any]:
        """The entry of a result file."""
        return {
            "part": self.part,
            "subject": subject.about(),
            "limits": rounded(limits.to_dict()),
            "sizes": rounded(asdict(sizes)),
            "comparisons": [one.to_dict() for one in self.comparisons],
            "facts": rounded(dict(self.facts)),
            "left_out": list(self.left_out),
        }
