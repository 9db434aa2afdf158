"""The one token loop: propose, aggregate, process, choose, pick the survivors, record.

Everything outstanding shares one batch: searches that end leave it, waiting ones join it (`admission.py`).
What a search gets does not depend on the others, since all its draws come from its own stream. So where
memory runs out, those that ran wait again and start over in smaller company, and find the same.
"""

from __future__ import annotations

import warnings
from collections import deque
from dataclasses import dataclass, field

import torch

from tokenscale.core import memory
from tokenscale.core.admission import Admission, Bound, Schedule, check_bounds
from tokenscale.core.backend import Backend, Completion, OnToken
from tokenscale.core.choosing import choose
from tokenscale.core.constraint import Constraint
from tokenscale.core.cost import Usage
from tokenscale.core.data import Ask, Candidate
from tokenscale.core.errors import OutOfMemoryError, TokenscaleWarning
from tokenscale.core.folding import aggregated
from tokenscale.core.group import Group
from tokenscale.core.model import LanguageModel
from tokenscale.core.opening import Opener, check_free
from tokenscale.core.permitted import LogitsProcessor, Permitted
from tokenscale.core.step_records import StepRecords
from tokenscale.core.strategy import Aggregator, Decoder, Proposals, TokenProposer


@dataclass
class _Waiting:
    """An ask whose searches are not all done: what each of them found and ran, by its first candidate."""

    missing: int
    found: dict[int, tuple[list[Candidate], Usage]] = field(default_factory=dict)


class LocalBackend(Backend):
    """Decodes asks on a local model with one proposer and aggregator.

    `batch_size` bounds the searches (of a sampler: the candidates) decoded at once ("auto": AUTO_BATCH_SIZE), and
    `max_batch_tokens` the tokens that their caches may come to hold: prompt and new ones, times the beams and
    the caches of each ("auto": those that fit in a share of the free memory, see `core.memory`). Where memory
    runs out nevertheless, both are halved, which is warned of, and what ran is begun again; it finds the same.
    `constraint` is that of asks which name none. `processor`, where given, is applied to the aggregated
    log-probabilities of each beam (transformers' LogitsProcessorList fits). `signals` are recorded of every token.
    `on_token` is called with (ticket, copy, token) as tokens are decided, for decoders of width 1. Counts searches
    that `ended` since it was made. `advance` raises OutOfMemoryError for a search that does not fit alone.
    """

    def __init__(
        self,
        lm: LanguageModel,
        proposer: TokenProposer,
        aggregator: Aggregator,
        decoder: Decoder,
        *,
        batch_size: Bound,
        max_batch_tokens: Bound = "auto",
        constraint: Constraint | None = None,
        trace: bool = False,
        signals: frozenset[str] = frozenset(),
        processor: LogitsProcessor | None = None,
        on_token: OnToken | None = None,
    ) -> None:
        check_bounds("LocalBackend", batch_size, max_batch_tokens)
        proposer.check(lm)
        if processor is not None:
            check_free(proposer, "logits processors")
        self._lm, self._proposer, self._aggregator = lm, proposer, aggregator
        self._trace, self._on_token, self._signals = trace, on_token, tuple(sorted(signals))
        self._admission = Admission(batch_size, max_batch_tokens)
        self._opener = Opener(lm, proposer, aggregator, decoder, constraint, self._signals, self._admission.contents)
        self._permitted = Permitted(lm, processor)
        self._queue: deque[Group] = deque()
        self._asks: dict[int, _Waiting] = {}
        self._ready: list[Completion] = []
        self._joining: list[Group] = []
        self._groups: list[Group] = []
        self._proposals: Proposals | None = None
        self._tickets = 0
        self._tokens = 0
        self.ended = 0

    @property
    def tokens(self) -> int:
        """Tokens decoded since it was made, of all beams; those of searches that were begun again count once."""
        return self._tokens + sum(group.decoded for group in self._groups)

    @property
    def schedule(self) -> Schedule:
        """How it was scheduled so far."""
        return self._admission.schedule

    def submit(self, ask: Ask) -> int:
        groups, candidates = self._opener.open(ask, self._tickets)
        ticket, self._tickets = self._tickets, self._tickets + 1
        if candidates:
            self._ready.append(Completion(ticket, candidates, []))
            return ticket
        self._queue.extend(groups)
        self._asks[ticket] = _Waiting(len(groups))
        return ticket

    def cancel(self, ticket: int) -> None:
        self._ready = [completion for completion in self._ready if completion.ticket != ticket]
        if self._asks.pop(ticket, None) is None:
            return
        self._queue = deque(g for g in self._queue if g.ticket != ticket)
        kept, start = list[int](), 0
        for group in self._groups:
            if group.ticket != ticket:
                kept.extend(range(start, start + len(group.beams)))
            else:
                self._tokens += group.decoded
            start += len(group.beams)
        self._groups = [g for g in self._groups if g.ticket != ticket]
        self._keep(kept, start)

    @property
    def hungry(self) -> bool:
        return len(self._queue) < self._admission.searches

    def advance(self) -> list[Completion]:
        done: list[Completion] = []
        while not done and (self._groups or self._queue or self._ready):
            done = self.tick()
        return done

    def tick(self) -> list[Completion]:
        if not self._ready and (self._groups or self._queue):
            said = self._work()
            if said is not None:
                self._start_over(said)
        ready, self._ready = self._ready, []
        return ready

    def _work(self) -> str | None:
        """Lets waiting searches join and decodes a token of all; what was said where memory ran out."""
        try:
            with torch.no_grad():
                self._admit()
                self._step()
        except BaseException as error:
            said = memory.out_of_memory(error)
            if said is None:
                # Half a step leaves beams and caches apart: nothing of it can go on, and all of it can be cancelled.
                self._groups, self._joining, self._proposals = [], [], None
                raise
        else:
            return None
        # Out here nothing holds the error, and with it the tensors of the step that failed.
        return said

    def _admit(self) -> None:
        count = self._admission.admit(self._groups, self._queue)
        if not count:
            return
        self._joining = [self._queue.popleft() for _ in range(count)]
        roots = [group.root for group in self._joining]
        started = self._proposer.start(self._lm, [r.prompt for r in roots], [r.stream for r in roots])
        for group, cached in zip(self._joining, started.cached, strict=True):
            group.begin(cached)
        self._groups, self._joining = self._groups + self._joining, []
        self._admission.joined(self._groups, count)
        self._proposals = started if self._proposals is None else self._proposals.join(started)

    def _step(self) -> None:
        assert self._proposals is not None
        beams = [beam for group in self._groups for beam in group.beams]
        rows, works = self._proposals.propose(torch.tensor([b.last for b in beams]))
        log_probs, fell_back = aggregated(self._aggregator, rows)
        log_probs, allowed = self._permitted.of(beams, rows, log_probs.cpu(), fell_back)
        records = StepRecords(rows, works, self._groups[0].cached, log_probs, fell_back, self._trace, self._signals)
        choices = choose(self._groups, allowed, log_probs, max(1, len(self._lm.eos_ids)))
        parents, start = list[int](), 0
        for group, choice in zip(self._groups, choices, strict=True):
            count = len(group.beams)
            parents += group.extend(self._lm, start, choice, records)
            start += count
            self._tell(group, choice.tokens[0])
            if not group.beams:
                self._complete(group)
        self._groups = [group for group in self._groups if group.beams]
        self._keep(parents, start)
        self._admission.stepped()

    def _tell(self, group: Group, token: int) -> None:
        """Tells a token to whoever watches; one that was told before the search was begun again is not."""
        if self._on_token is None or group.decoder.width > 1 or len(group.ran) <= group.told:
            return
        group.told += 1
        self._on_token(group.ticket, group.first, token)

    def _complete(self, group: Group) -> None:
        """Stores what a finished search found; its ask is ready where it was the last."""
        waiting = self._asks[group.ticket]
        waiting.found[group.first] = group.close(self._lm)
        waiting.missing -= 1
        self.ended += 1
        self._tokens += group.decoded
        if waiting.missing:
            return
        del self._asks[group.ticket]
        found = [waiting.found[first] for first in sorted(waiting.found)]
        candidates = [c for some, _ in found for c in some]
        self._ready.append(Completion(group.ticket, candidates, [usage for _, usage in found]))

    def _keep(self, places: list[int], beams: int) -> None:
        if not places:
            self._proposals = None
        elif self._proposals is not None and places != list(range(beams)):
            self._proposals = self._proposals.select(places)

    def _start_over(self, said: str) -> None:
        """What memory did not suffice for waits again, first in line, and at most half of it runs at once."""
        together = self._groups + self._joining
        failed = self._joining
        if not failed:
            # A step, or a join, may have broken off in the middle of the caches of all.
            failed = [group for group in self._groups if not group.closed]
            self._groups, self._proposals = [], None
        self._joining = []
        for lm in [self._lm, *self._admission.contents.models]:
            lm.release()
        memory.release()
        if len(together) == 1:
            raise _too_large(together[0], said)
        self._queue.extendleft(reversed(failed))
        message = (
            f"memory ran out for {len(together)} searches at once ({said:.200}): {self._admission.halve(together)}"
        )
        warnings.warn(f"{message}, and nothing is lost. Lower batch_size or max_batch_tokens", TokenscaleWarning, 2)


def _too_large(group: Group, said: str) -> OutOfMemoryError:
    """The error of a search that does not fit alone."""
    root, width = group.root, group.decoder.width
    beams = f" in {width} beams" if width > 1 else ""
    asked = f"a prompt of {len(root.prompt)} tokens and up to {root.limit} new ones{beams}"
    hint = (
        "lower max_new_tokens, the proposer's rows (n), the beams, or the prompt; or load the model in a smaller dtype"
    )
    return OutOfMemoryError(f"{asked} do not fit in memory by themselves ({said:.200})", hint)
