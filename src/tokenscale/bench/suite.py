"""All parts of the benchmark, by name, and the file that their figures are written to."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenscale.bench import bandwidth, greedy, memory, profiling, roofline, sampling, scoring, steps
from tokenscale.bench.bandwidth import Limits
from tokenscale.bench.machine import machine
from tokenscale.bench.part import LeftOut, Outcome, Sizes
from tokenscale.bench.subject import Subject
from tokenscale.core.errors import unknown

Part = Callable[[Subject, Sizes, Limits], Outcome]
PARTS: dict[str, Part] = {
    "greedy": greedy.measure,
    "vote": sampling.vote,
    "prompts": sampling.prompts,
    "steps": steps.measure,
    "memory": memory.measure,
    "scoring": scoring.measure,
    "roofline": roofline.measure,
    "profile": profiling.measure,
}
QUICK_MEGABYTES = 4


def runs(
    subject: Subject,
    names: Sequence[str],
    sizes: Sizes,
    quick: bool = False,
    starting: Callable[[str], object] = lambda name: None,
) -> list[dict[str, Any]]:
    """The entries of a result file: one a part, those that say nothing of this model with the reason alone.

    `starting` is called with the name of every part before it. Raises UnknownNameError.
    """
    chosen = [(name, PARTS[name] if name in PARTS else _no_part(name)) for name in names]
    fitting = sizes.within(subject.lm.context_length)
    megabytes = QUICK_MEGABYTES if quick else bandwidth.MEGABYTES
    limits = bandwidth.measured(
        subject.threads, subject.lm.model.dtype, megabytes, 1 if quick else bandwidth.ROUNDS, subject.lm.model.device
    )
    found = []
    for name, part in chosen:
        starting(name)
        try:
            outcome = part(subject, fitting, limits)
        except LeftOut as reason:
            outcome = Outcome(name, left_out=[str(reason)])
        found.append(outcome.to_dict(subject, limits, fitting))
    return found


def _no_part(name: str) -> Part:
    raise unknown("part", name, PARTS)


def write(path: Path, entries: Iterable[dict[str, Any]], command: str, **more: Any) -> None:
    """A result file: the machine, the command, and the entries."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {"machine": machine(), "command": command, **more, "runs": list(entries)}
    path.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n")
