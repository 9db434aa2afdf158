"""One copy of an ask while it is decoded: its beams, its caches and what ran over them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from tokenscale.core.cost import Cached, Lane, Ran, Usage
from tokenscale.core.data import Candidate
from tokenscale.core.noise import UniformReader
from tokenscale.core.record import Record
from tokenscale.core.strategy import Decoder

Finished = tuple[Candidate, Usage]


@dataclass
class Group:
    """One copy of an ask: the beams that its decoder holds (one, unless it searches).

    `ran` has, per step, the number of its beams and what they ran over each cache.
    """

    ticket: int
    copy: int
    decoder: Decoder
    beams: list[Record]
    uniforms: UniformReader | None
    cached: tuple[Cached, ...] = ()
    ran: list[tuple[int, list[Ran]]] = field(default_factory=list)
    finished: list[Candidate] = field(default_factory=list)

    @property
    def scores(self) -> list[float]:
        return [beam.log_prob for beam in self.beams]

    def best(self) -> Finished:
        """The most likely beam, billed for all beams, the dropped ones included."""
        beams = tuple(count for count, _ in self.ran)
        usage = Usage(
            tuple(Lane.of(cached, [step[i] for _, step in self.ran], beams) for i, cached in enumerate(self.cached))
        )
        winner = max(self.finished, key=lambda c: c.log_prob)
        return replace(winner, cost=usage.decode_cost()), usage
