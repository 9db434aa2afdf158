"""A problem's tree of running strategies, and its bill: the tree replayed in logical time.

The bill is made after the problem's end, so that it does not depend on which ask completed first.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

from tokenscale.core.cost import Cost
from tokenscale.core.data import Candidate, Served
from tokenscale.core.ledger import Ledger
from tokenscale.core.strategy import Asks


@dataclass
class Node:
    """One running strategy: its generator and, per round of asks, what answers them.

    A round is a list with one entry an ask; an entry is the list of the parts that answer it (one
    for each copy where the inner strategy takes one at a time).
    """

    generator: Asks
    parent: Node | None
    wanted: int = 1
    rounds: list[list[list[Node | Served]]] = field(default_factory=list)
    missing: int = 0
    candidates: list[Candidate] | None = None


def bill(root: Node | Served, ledger: Ledger) -> Cost:
    """The problem's bill: every ask at the logical time at which its strategy made it.

    A strategy's next round begins when the last part of the round before has ended. Rounds are
    entered in the order of their time, so the first to need a prompt pays for its prefill.
    """
    top = Node(generator=iter(()), parent=None, rounds=[[[root]]])  # type: ignore[arg-type]
    clock = _Clock(ledger)
    clock.enter(top, 0, None)
    clock.run()
    return ledger.bill()


@dataclass
class _Playing:
    """A node on the clock: its next round, the parts still running, the latest end so far."""

    node: Node
    parent: _Playing | None
    round: int = 0
    running: int = 0
    end: int = 0


@dataclass
class _Clock:
    """Replays a finished tree in logical time; ties go in the order of entry."""

    ledger: Ledger
    _queue: list[tuple[int, int, _Playing]] = field(default_factory=list)
    _entered: int = 0

    def enter(self, node: Node, time: int, parent: _Playing | None) -> None:
        self._push(_Playing(node, parent), time)

    def _push(self, playing: _Playing, time: int) -> None:
        heapq.heappush(self._queue, (time, self._entered, playing))
        self._entered += 1

    def run(self) -> None:
        while self._queue:
            time, _, playing = heapq.heappop(self._queue)
            if playing.round == len(playing.node.rounds):
                self._leave(playing.parent, time)
            else:
                self._play(playing, time)

    def _play(self, playing: _Playing, time: int) -> None:
        parts = [part for answer in playing.node.rounds[playing.round] for part in answer]
        playing.round += 1
        playing.running, playing.end = len(parts), time
        for part in parts:
            if isinstance(part, Node):
                self.enter(part, time, playing)
            else:
                self._leave(playing, self.ledger.add(part.usages, time))
        if not parts:
            self._push(playing, time)

    def _leave(self, playing: _Playing | None, time: int) -> None:
        if playing is None:
            return
        playing.running -= 1
        playing.end = max(playing.end, time)
        if not playing.running:
            self._push(playing, playing.end)
