"""One line of a table: our time against a peer's, what it should reach, and what the machine could."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tokenscale.bench.clock import Ratio, Seconds, milliseconds, times_faster


@dataclass(frozen=True)
class Target:
    """What a ratio must be: at least `least`, or at most `most`; `aim` is what it is hoped to be."""

    least: float | None = None
    most: float | None = None
    aim: float | None = None

    def met(self, value: float) -> bool:
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)


@dataclass(frozen=True)
class Comparison:
    """`ours` and `theirs` in `unit`; `ratio` says how many times faster we are, or what we take in units of theirs.

    Of a ratio with `target.most` it is ours over theirs (less is better), else theirs over ours.
    `limit` is the least that the machine could need, in `unit`, and `details` what else should be known.
    """

    work: str
    against: str
    ours: float
    theirs: float
    ratio: Ratio
    target: Target = field(default_factory=Target)
    unit: str = "ms"
    limit: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def share_of_limit(self) -> float | None:
        """1.0 is the limit itself."""
        return self.limit / self.ours if self.limit is not None else None

    def to_dict(self) -> dict[str, Any]:
        plain = asdict(self)
        plain["ratio"] = self.ratio.to_dict()
        plain["met"] = self.target.met(self.ratio.median)
        plain["share_of_limit"] = self.share_of_limit
        return dict(rounded(plain))

    def with_limit(self, seconds: float) -> Comparison:
        return replace(self, limit=1e3 * seconds)


def faster(
    seconds: Seconds, ours: str, theirs: str, work: str, least: float | None = None, aim: float | None = None
) -> Comparison:
    """How many times faster our arm is than theirs, called by the peer's name."""
    ratio = times_faster(seconds, theirs, ours)
    mine, other = milliseconds(seconds, ours), milliseconds(seconds, theirs)
    return Comparison(work, theirs, mine, other, ratio, Target(least=least, aim=aim))


def within(
    seconds: Seconds, ours: str, theirs: str, work: str, most: float | None = None, aim: float | None = None
) -> Comparison:
    """What our arm takes in units of theirs."""
    ratio = times_faster(seconds, ours, theirs)
    mine, other = milliseconds(seconds, ours), milliseconds(seconds, theirs)
    return Comparison(work, theirs, mine, other, ratio, Target(most=most, aim=aim))


def within_limit(
    seconds: Seconds, ours: str, limit: float, work: str, most: float | None, aim: float | None
) -> Comparison:
    """What our arm takes in units of the `limit` in seconds."""
    ratio = Ratio.of([value / limit for value in seconds[ours]])
    target = Target(most=most, aim=aim)
    return Comparison(
        work, "the byte limit", milliseconds(seconds, ours), 1e3 * limit, ratio, target, limit=1e3 * limit
    )


def rounded(value: Any) -> Any:
    """Numbers with four significant digits, so that a file says no more than was measured."""
    if isinstance(value, bool) or not isinstance(value, float | dict | list | tuple):
        return value
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return [rounded(one) for one in value]
