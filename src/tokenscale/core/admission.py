"""Who joins the running batch, and when: bounds on searches and on the tokens that caches may come to hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from tokenscale.core.errors import ArgumentError, at_least
from tokenscale.core.memory import tokens_that_fit
from tokenscale.core.model import Holding, LanguageModel

AUTO_BATCH_SIZE = 64

Bound = int | Literal["auto"]


@dataclass(frozen=True)
class Part:
    """Equal caches of a search's beams: numbers that stand for their model and for what they store, and how many."""

    model: int
    content: int
    prompt_tokens: int
    caches: int


@dataclass(frozen=True)
class Need:
    """What a search may come to hold: the caches of each of its beams, and the tokens that these may add."""

    parts: tuple[Part, ...]
    new_tokens: int
    beams: int


class Searching(Protocol):
    """What admission reads of a search."""

    @property
    def need(self) -> Need: ...


@dataclass(frozen=True)
class Schedule:
    """How a run was scheduled: a record of what the machine did, and no part of results, fingerprints or bills.

    `batch_size` and `max_batch_tokens` are the bounds that it began with (None: there was none, since free memory
    is not known), and `chosen` says whether the latter was chosen from free memory. Memory ran out `halvings`
    times, which left the bounds `halved_to`. Searches `started` (those that were begun again count again) in
    `joins` prefills; the batch was decoded in `steps`, and its caches could have come to hold `most_tokens` at most.
    """

    batch_size: int
    max_batch_tokens: int | None
    chosen: bool
    halvings: int
    halved_to: tuple[int, int] | None
    started: int
    joins: int
    steps: int
    most_tokens: int


def check_bounds(owner: str, batch_size: Bound, max_batch_tokens: Bound) -> None:
    """Refuses bounds of a batch that are neither whole numbers from 1 nor "auto". Raises ArgumentError."""
    for name, value in (("batch_size", batch_size), ("max_batch_tokens", max_batch_tokens)):
        if value == "auto":
            continue
        if isinstance(value, str) and not value.isdecimal():
            message = f'{owner}({name}={value!r:.60}): {name} must be an integer or "auto"'
            raise ArgumentError(message, 'write "auto", or a whole number from 1')
        at_least(owner, name, value, 1)


class Contents:
    """The models that searches have caches of, and numbers for what these store, so that long prompts can go."""

    def __init__(self) -> None:
        self.models: list[LanguageModel] = []

    def need(self, holdings: Sequence[Holding], new_tokens: int, beams: int) -> Need:
        """The need of a search whose beams have these caches."""
        parts = []
        for holding, caches in Counter(holdings).items():
            model = next((i for i, lm in enumerate(self.models) if lm is holding.lm), len(self.models))
            if model == len(self.models):
                self.models.append(holding.lm)
            # Two prompts of one hash, of 64 bits, would be counted as one.
            content = hash((holding.prompt, holding.source))
            parts.append(Part(model, content, len(holding.prompt), caches))
        return Need(tuple(parts), new_tokens, beams)


@dataclass
class _OfModel:
    """The caches of one model: their number, the largest and the sum of their rooms, and the prompts they share."""

    lm: LanguageModel
    caches: int = 0
    largest: int = 0
    total: int = 0
    shared: dict[int, int] = field(default_factory=dict)

    def add(self, part: Part, need: Need) -> None:
        room, caches = need.new_tokens, need.beams * part.caches
        if self.lm.shares_prompts:
            self.shared[part.content] = part.prompt_tokens
        else:
            room += part.prompt_tokens
        self.caches += caches
        self.largest = max(self.largest, room)
        self.total += caches * room

    @property
    def tokens(self) -> int:
        return sum(self.shared.values()) + (self.caches * self.largest if self.lm.pads_caches else self.total)


class Held:
    """The most tokens that a batch may come to hold, as its models' states lie in memory.

    Over the caches c of each model, p being the tokens of c's prompt and t those that it may add: sum (p + t)
    where every sequence has a room of its own; the number of caches times max (p + t) where they are padded to
    the longest; where prompts are shared, the tokens of distinct prompts once, and beside them sum t, or the
    number of caches times max t.
    """

    def __init__(self, models: Sequence[LanguageModel], needs: Iterable[Need] = ()) -> None:
        self._models = [_OfModel(lm) for lm in models]
        for need in needs:
            self.add(need)

    def add(self, need: Need) -> int:
        """One more search; the tokens of all."""
        for part in need.parts:
            self._models[part.model].add(part, need)
        return self.tokens

    @property
    def tokens(self) -> int:
        return sum(one.tokens for one in self._models)


class Admission:
    """The bounds of a batch, and when waiting searches join it.

    They join when the places that stand empty have cost as much as joining does: every step in which e searches
    could join r that run wastes e / (r + e) of itself, and letting them in takes one forward for their prompts.
    So of texts of L tokens about B sqrt(2 / L) join together in a batch of B, which takes the fewest forwards,
    and one at a time where texts are long. Those whose prompts a running search holds join at once, where models
    share prompts. Where sequences that join run in forwards of their own, the fewest are taken by batches
    that run to their ends. A search that alone exceeds the bounds runs alone.
    """

    def __init__(self, batch_size: Bound, max_batch_tokens: Bound) -> None:
        self.contents = Contents()
        self.searches = AUTO_BATCH_SIZE if batch_size == "auto" else batch_size
        self.chosen = max_batch_tokens == "auto"
        self.tokens: int | None = None if max_batch_tokens == "auto" else max_batch_tokens
        self._bounds = self.searches, self.tokens
        self._asked_memory = False
        self._wasted = 0.0
        self._halvings = self._started = self._joins = self._steps = self._most_tokens = 0

    def admit(self, running: Sequence[Searching], waiting: Sequence[Searching]) -> int:
        """How many of the first that wait join now."""
        if not waiting:
            self._wasted = 0.0
            return 0
        self._choose(waiting[0].need)
        fitting = self._fitting(running, waiting)
        if not fitting:
            return 0
        known = self._known(running, waiting, fitting)
        self._wasted += (fitting - known) / (len(running) + fitting)
        apart = any(lm.joins_apart for lm in self.contents.models)
        if running and (apart or self._wasted < 1):
            return known
        self._wasted = 0.0
        return fitting

    def _choose(self, need: Need) -> None:
        """Asks the machine once, when models are loaded and the first search is known."""
        if not self.chosen or self._asked_memory:
            return
        self._asked_memory = True
        sizes = [self.contents.models[part.model].shape.kv_bytes for part in need.parts for _ in range(part.caches)]
        devices = self.contents.models[need.parts[0].model].cache_devices
        self.tokens = tokens_that_fit(devices, sum(sizes) / len(sizes))
        self._bounds = self.searches, self.tokens

    def _fitting(self, running: Sequence[Searching], waiting: Sequence[Searching]) -> int:
        """How many of the first that wait fit beside those that run; one at least where nothing runs."""
        held, searches = Held(self.contents.models, (search.need for search in running)), len(running)
        for search in waiting:
            tokens, searches = held.add(search.need), searches + 1
            if searches > 1 and (searches > self.searches or (self.tokens is not None and tokens > self.tokens)):
                return searches - 1 - len(running)
        return len(waiting)

    def _known(self, running: Sequence[Searching], waiting: Sequence[Searching], fitting: int) -> int:
        """How many of the first that fit can join for nothing."""
        if not all(lm.shares_prompts for lm in self.contents.models):
            return 0
        held = {(part.model, part.content) for search in running for part in search.need.parts}
        for count, search in enumerate(waiting):
            if count == fitting or any((part.model, part.content) not in held for part in search.need.parts):
                return count
        return fitting

    def joined(self, running: Sequence[Searching], started: int) -> None:
        """Counts searches that have joined, which made the batch what is `running`."""
        self._started, self._joins = self._started + started, self._joins + 1
        self._most_tokens = max(self._most_tokens, self._held(running))

    def stepped(self) -> None:
        """Counts a step."""
        self._steps += 1

    def halve(self, searches: Sequence[Searching]) -> str:
        """Half of what did not fit is the most from now on; what is to be said of it."""
        half = max(1, self._held(searches) // 2)
        self.searches = max(1, len(searches) // 2)
        self.tokens = half if self.tokens is None else min(self.tokens, half)
        self._halvings += 1
        return f"at most {self.searches} at once go on, holding {self.tokens} tokens"

    def _held(self, searches: Sequence[Searching]) -> int:
        """The most tokens that searches may come to hold together."""
        return Held(self.contents.models, (search.need for search in searches)).tokens

    @property
    def schedule(self) -> Schedule:
        """The record so far."""
        halved_to = (self.searches, self.tokens) if self._halvings and self.tokens is not None else None
        counts = (self._started, self._joins, self._steps, self._most_tokens)
        return Schedule(*self._bounds, self.chosen, self._halvings, halved_to, *counts)
