"""One search while it is decoded: its beams, its caches and what ran over them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

from tokenscale.core.admission import Need
from tokenscale.core.cost import Cached, Lane, Ran, Usage
from tokenscale.core.data import Candidate
from tokenscale.core.ledger import decode_cost
from tokenscale.core.model import LanguageModel
from tokenscale.core.noise import UniformReader
from tokenscale.core.record import Record
from tokenscale.core.step_records import StepRecords
from tokenscale.core.strategy import Decoder

NEAR_TIE = 1e-5


@dataclass(frozen=True)
class Ranked:
    """What a decoder chose for one group: candidates in order, and how far the choice was from another."""

    parents: list[int]
    tokens: list[int]
    log_probs: list[float]
    scores: list[float] | None
    margin: float


class Ended(NamedTuple):
    """A finished text, and why it ended."""

    rank: float
    beam: Record
    reason: str


@dataclass
class Group:
    """One search, or one sample: the beams that its decoder holds, and what has ended, best first in each part.

    `first` is the number of its first candidate among its ask's, of which it gives `wanted`. `root` is the beam
    that it begins with, as often as it is begun: its draws are functions of stream and position, so it finds the
    same again. `need` is what its caches may come to hold. `ran` has, per step, the number of its beams and
    what they ran over each cache; `told` of its tokens have been told to whoever watches; `closed`: it is done.
    """

    ticket: int
    first: int
    wanted: int
    decoder: Decoder
    root: Record
    uniforms: UniformReader | None
    need: Need
    beams: list[Record] = field(default_factory=list)
    cached: tuple[Cached, ...] = ()
    ran: list[tuple[int, list[Ran]]] = field(default_factory=list)
    finished: list[list[Ended]] = field(default_factory=list)
    told: int = 0
    closed: bool = False

    def begin(self, cached: tuple[Cached, ...]) -> None:
        """Starts over caches that hold its prompt; what an earlier start has found is forgotten."""
        self.beams, self.cached, self.ran = [self.root.fork()], cached, []
        self.finished = [[] for _ in range(self.decoder.parts)]

    @property
    def decoded(self) -> int:
        """Tokens of all its beams since it was begun."""
        return sum(count for count, _ in self.ran)

    @property
    def ranked(self) -> bool:
        """Whether its decoder ranks beams."""
        return self.decoder.ranks or self.decoder.width > 1

    @property
    def parts(self) -> tuple[int, ...]:
        """The part of every beam, as `Decoder.choose` takes it."""
        return tuple(beam.part for beam in self.beams) if self.decoder.parts > 1 else (0,) * len(self.beams)

    def extend(self, lm: LanguageModel, start: int, choice: Ranked, records: StepRecords) -> list[int]:
        """Adds the chosen tokens; places in the batch of the beams that go on. `start` is its first beam's."""
        self.ran.append(records.ran(start, start + len(self.beams)))
        parts = self.decoder.parts
        share = len(choice.tokens) // parts
        before, self.beams = self.beams, []
        places: list[int] = []
        for part in range(parts):
            candidates = range(part * share, (part + 1) * share)
            places += self._extend_part(lm, part, before, start, candidates, choice, records)
        return places

    def _extend_part(
        self,
        lm: LanguageModel,
        part: int,
        before: list[Record],
        start: int,
        candidates: range,
        choice: Ranked,
        records: StepRecords,
    ) -> list[int]:
        """One part's share of `extend`: see `Decoder` for which candidates are finished and which go on."""
        width = self.decoder.width // self.decoder.parts
        near_tie = choice.margin < NEAR_TIE
        going: list[Record] = []
        places: list[int] = []
        for number, i in enumerate(candidates):
            if number >= width and len(going) == width:
                break
            score = None if choice.scores is None else choice.scores[i]
            if score == float("-inf"):
                continue
            origin = choice.parents[i]
            beam = before[origin].fork() if len(choice.tokens) > 1 else before[origin]
            beam.add(lm, records.token(start + origin, choice.tokens[i], near_tie, choice.log_probs[i]), score, part)
            reason = beam.ending(lm)
            if reason is None and len(going) < width:
                going.append(beam)
                places.append(start + origin)
            elif reason is not None and number < width:
                self._finish(part, beam, reason, width)
        if not going or self._settled(part, going[0]):
            return []
        first = next((i for i, beam in enumerate(before) if beam.part == part), 0)
        order = _at_parents([place - start - first for place in places])
        self.beams += [going[i] for i in order]
        return [places[i] for i in order]

    def _finish(self, part: int, beam: Record, reason: str, width: int) -> None:
        rank = self.decoder.rank(beam.score, len(beam.tokens))
        ended = self.finished[part]
        ended.append(Ended(rank, beam, reason))
        ended.sort(key=lambda one: -one.rank)  # stable: of equals, the first to end stays first
        del ended[width:]

    def _settled(self, part: int, best: Record) -> bool:
        ended = self.finished[part]
        if not ended:
            return False
        return self.decoder.settled([one.rank for one in ended], best.score, len(best.tokens), best.limit)

    def close(self, lm: LanguageModel) -> tuple[list[Candidate], Usage]:
        """The finished texts, best first, `decoder.num_return` at most, and what the search ran.

        The first carries the bill of the whole search, dropped beams included. A decoder that ranks beams
        scores them; one that was asked for a single candidate gives them all as its members.
        """
        beams = tuple(count for count, _ in self.ran)
        ended = sorted((one for part in self.finished for one in part), key=lambda one: -one.rank)
        texts = tuple(one.beam.token_ids for one in ended)
        lanes = (Lane.of(cached, [step[i] for _, step in self.ran], beams) for i, cached in enumerate(self.cached))
        usage = Usage(tuple(lanes), texts)
        given = ended[: self.decoder.num_return]
        found = [replace(e.beam.finish(lm, e.reason), score=e.rank if self.ranked else None) for e in given]
        found[0] = replace(found[0], cost=decode_cost(usage), notes=self._notes(len(found)))
        if self.first == 0 and self.wanted == 1 and len(found) > 1:
            found = [replace(found[0], members=tuple(found))]
        self.closed = True
        return found[: self.wanted], usage

    def _notes(self, found: int) -> tuple[str, ...]:
        wanted = self.decoder.num_return
        if found == wanted:
            return ()
        return (f"the search ended with {found} of {wanted} texts: no other could be continued",)

    @property
    def scores(self) -> list[float]:
        return [beam.score for beam in self.beams]


def _at_parents(parents: list[int]) -> list[int]:
    """The order of new beams in which each stands where its parent stood, or else in a gap: caches then move least."""
    slots, others = [-1] * len(parents), list[int]()
    for beam, parent in enumerate(parents):
        if parent < len(slots) and slots[parent] < 0:
            slots[parent] = beam
        else:
            others.append(beam)
    rest = iter(others)
    return [beam if beam >= 0 else next(rest) for beam in slots]
