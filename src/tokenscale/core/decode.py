"""The one token loop: propose, aggregate, process, choose, pick the survivors, record.

Everything outstanding shares one batch: candidates that end leave it, waiting ones join it. What a
candidate gets does not depend on the others, since all its draws come from its own stream.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from tokenscale.core.backend import Backend, Completion, OnToken
from tokenscale.core.constraint import Constraint
from tokenscale.core.context import room
from tokenscale.core.cost import Usage
from tokenscale.core.data import Ask, Candidate
from tokenscale.core.errors import ArgumentError, CapabilityError, PipelineError, at_least
from tokenscale.core.group import Group, Ranked
from tokenscale.core.model import LanguageModel
from tokenscale.core.noise import UniformReader, read_uniforms
from tokenscale.core.permitted import LogitsProcessor, Permitted
from tokenscale.core.prompt import Prompt
from tokenscale.core.record import Record
from tokenscale.core.step_records import StepRecords
from tokenscale.core.strategy import Aggregator, Choice, Decoder, Proposals, TokenProposer


@dataclass
class _Waiting:
    """An ask whose searches are not all done: what each of them found and ran, by its first candidate."""

    missing: int
    found: dict[int, tuple[list[Candidate], Usage]] = field(default_factory=dict)


class LocalBackend(Backend):
    """Decodes asks on a local model with one proposer and aggregator.

    `batch_size` bounds the searches (of a sampler: the candidates) decoded at once. `constraint` is that of
    asks which name none. `processor`, where given, is applied to the aggregated log-probabilities of each
    beam (transformers' LogitsProcessorList fits). `signals` are recorded of every token. `on_token` is
    called with (ticket, copy, token) as tokens are decided, for decoders of width 1. Counts what was decoded
    since it was made: `tokens` (of all beams) and searches that `ended`.
    """

    def __init__(
        self,
        lm: LanguageModel,
        proposer: TokenProposer,
        aggregator: Aggregator,
        decoder: Decoder,
        *,
        batch_size: int,
        constraint: Constraint | None = None,
        trace: bool = False,
        signals: frozenset[str] = frozenset(),
        processor: LogitsProcessor | None = None,
        on_token: OnToken | None = None,
    ) -> None:
        at_least("LocalBackend", "batch_size", batch_size, 1)
        proposer.check(lm)
        if processor is not None:
            check_free(proposer, "logits processors")
        self._lm, self._proposer, self._aggregator, self._decoder = lm, proposer, aggregator, decoder
        self._batch_size, self._trace, self._on_token = batch_size, trace, on_token
        self._constraint, self._signals = constraint, tuple(sorted(signals))
        self._permitted = Permitted(lm, processor)
        self._queue: deque[Group] = deque()
        self._asks: dict[int, _Waiting] = {}
        self._ready: list[Completion] = []
        self._groups: list[Group] = []
        self._proposals: Proposals | None = None
        self._tickets = 0
        self.tokens = 0
        self.ended = 0

    def submit(self, ask: Ask) -> int:
        decoder, constraint = self._checked(ask)
        asked = self._lm.encode(ask.prompt)
        answer, suffix = self._begun(ask, asked)
        ticket, self._tickets = self._tickets, self._tickets + 1
        left = room(self._lm, len(asked)) - len(answer)
        guide = constraint.begun(self._lm, answer) if constraint is not None else None
        if left < 1 or (guide is not None and guide.over):
            reason = "length" if left < 1 else "constraint"
            if guide is not None and not guide.met:
                reason = "constraint_unmet"
            self._ready.append(Completion(ticket, self._nothing(ask, asked, answer, suffix, reason), []))
            return ticket
        groups = []
        for first in range(0, ask.k, decoder.num_return):
            record = Record(
                (*asked, *answer),
                ask.stream.child(ask.first + first // decoder.num_return),
                min(ask.max_new_tokens, left),
                ask.stop_strings,
                ask.pauses,
                prefix=len(answer),
                suffix=len(suffix),
                guide=guide.fork() if guide is not None else None,
                stop_rule=ask.stop_rule,
                signals=self._signals,
            )
            uniforms = UniformReader(record.stream) if decoder.random else None
            wanted = min(decoder.num_return, ask.k - first)
            groups.append(Group(ticket, first, wanted, decoder, [record], uniforms))
        _check_different(groups, ask, decoder, self._proposer)
        self._queue.extend(groups)
        self._asks[ticket] = _Waiting(len(groups))
        return ticket

    def _checked(self, ask: Ask) -> tuple[Decoder, Constraint | None]:
        """The decoder and the constraint of an ask that can be served."""
        if (ask.stop_strings or ask.pauses) and self._lm.tokenizer is None:
            raise CapabilityError("stop strings need a tokenizer", "pass tokenizer=..., or drop stop_strings")
        decoder = ask.decoder or self._decoder
        self._proposer.fits(self._aggregator, decoder)
        constraint = ask.constraint if ask.constraint is not None or ask.free else self._constraint
        if constraint is not None:
            check_free(self._proposer, "constraints")
        if ask.stop_rule is not None and ask.stop_rule.signal not in self._signals:
            message = f"{ask.stop_rule!r:.80} reads {ask.stop_rule.signal}, which is not recorded"
            raise ArgumentError(message, "name it in the `signals` of the stage that asks")
        return decoder, constraint

    def _begun(self, ask: Ask, asked: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The token ids that the answer begins with, and those of them that are the ask's suffix."""
        if not ask.suffix:
            return ask.prefix_ids, ()
        before = (*asked, *ask.prefix_ids)
        suffix = self._lm.encode(Prompt(token_ids=before, suffix=ask.suffix))[len(before) :]
        return (*ask.prefix_ids, *suffix), suffix

    def _nothing(
        self, ask: Ask, asked: tuple[int, ...], answer: tuple[int, ...], suffix: tuple[int, ...], reason: str
    ) -> list[Candidate]:
        """The candidates of an ask whose beginning fills the context, or what a constraint allows."""
        thinking, text = self._lm.read(asked, answer) if self._lm.tokenizer is not None else ("", "")
        empty = Candidate(text, (), (), reason, ask.stream, thinking=thinking, suffix_ids=suffix)
        return [replace(empty, stream=one.stream) for one in ask.copies()]

    def cancel(self, ticket: int) -> None:
        self._ready = [completion for completion in self._ready if completion.ticket != ticket]
        if self._asks.pop(ticket, None) is None:
            return
        self._queue = deque(g for g in self._queue if g.ticket != ticket)
        kept, start = list[int](), 0
        for group in self._groups:
            if group.ticket != ticket:
                kept.extend(range(start, start + len(group.beams)))
            start += len(group.beams)
        self._groups = [g for g in self._groups if g.ticket != ticket]
        self._keep(kept, start)

    @property
    def hungry(self) -> bool:
        return len(self._queue) < self._batch_size

    def advance(self) -> list[Completion]:
        done: list[Completion] = []
        while not done and (self._groups or self._queue or self._ready):
            done = self.tick()
        return done

    def tick(self) -> list[Completion]:
        if self._ready:
            ready, self._ready = self._ready, []
            return ready
        if not (self._groups or self._queue):
            return []
        try:
            with torch.no_grad():
                self._admit()
                return self._step()
        except BaseException:
            # Half a step leaves beams and caches apart: nothing of it can go on, and all of it can be cancelled.
            self._groups, self._proposals = [], None
            raise

    def _admit(self) -> None:
        free = self._batch_size - len(self._groups)
        # Joining copies the cache, so newcomers are let in by the quarter batch.
        if not self._queue or (self._groups and free < max(1, self._batch_size // 4)):
            return
        groups = [self._queue.popleft() for _ in range(min(free, len(self._queue)))]
        records = [g.beams[0] for g in groups]
        started = self._proposer.start(self._lm, [r.prompt for r in records], [r.stream for r in records])
        for group, cached in zip(groups, started.cached, strict=True):
            group.cached = cached
        self._proposals = started if self._proposals is None else self._proposals.join(started)
        self._groups += groups

    def _step(self) -> list[Completion]:
        assert self._proposals is not None
        beams = [beam for group in self._groups for beam in group.beams]
        rows, works = self._proposals.propose(torch.tensor([b.last for b in beams]))
        log_probs = self._aggregator.aggregate(rows).cpu()
        fell_back = self._aggregator.fell_back(rows).tolist()
        log_probs, allowed = self._permitted.of(beams, rows, log_probs, fell_back)
        records = StepRecords(rows, works, self._groups[0].cached, log_probs, fell_back, self._trace, self._signals)
        parents, done, start = list[int](), list[Completion](), 0
        choices = self._choose(allowed, log_probs)
        alive: list[Group] = []
        for group, choice in zip(self._groups, choices, strict=True):
            count = len(group.beams)
            going = group.extend(self._lm, start, choice, records)
            start += count
            parents += going
            self.tokens += count
            if self._on_token is not None and group.decoder.width == 1:
                self._on_token(group.ticket, group.first, choice.tokens[0])
            if going:
                alive.append(group)
            else:
                self.ended += 1
                done += self._complete(group)
        self._groups = alive
        self._keep(parents, start)
        return done

    def _choose(
        self, allowed: Float[Tensor, "beams vocab"], log_probs: Float[Tensor, "beams vocab"]
    ) -> Iterable[Ranked]:
        """What every group takes; groups of one decoder and like beams are chosen together."""
        kinds: dict[tuple[Decoder, tuple[int, ...]], list[tuple[int, int]]] = {}
        start = 0
        for place, group in enumerate(self._groups):
            kinds.setdefault((group.decoder, group.parts), []).append((place, start))
            start += len(group.beams)
        chosen: dict[int, Ranked] = {}
        for (decoder, parts), members in kinds.items():
            choice = self._choose_alike(decoder, parts, members, allowed)
            count = len(members)
            scores = choice.scores.tolist() if choice.scores is not None else [None] * count
            places = torch.tensor([[start] for _, start in members]) + choice.parents
            taken = log_probs[places, choice.tokens].tolist()
            lists = (choice.parents.tolist(), choice.tokens.tolist(), taken, scores, choice.margin.tolist())
            chosen.update((place, Ranked(*f)) for (place, _), f in zip(members, zip(*lists, strict=True), strict=True))
        return [chosen[place] for place in range(len(self._groups))]

    def _choose_alike(
        self,
        decoder: Decoder,
        parts: tuple[int, ...],
        members: list[tuple[int, int]],
        allowed: Float[Tensor, "beams vocab"],
    ) -> Choice:
        groups, width = [self._groups[place] for place, _ in members], len(parts)
        if len(members) * width == len(allowed):
            log_probs = allowed
        else:
            log_probs = allowed[[start + w for _, start in members for w in range(width)]]
        uniforms = None
        if decoder.random:
            readers = [g.uniforms for g in groups if g.uniforms is not None]
            uniforms = read_uniforms(readers, [g.beams[0].position for g in groups])
        scores = torch.tensor([g.scores for g in groups]) if groups[0].ranked else torch.zeros(len(groups), width)
        by_group = log_probs.view(len(groups), width, -1)
        return decoder.choose(by_group, scores, uniforms, parts, max(1, len(self._lm.eos_ids)))

    def _complete(self, group: Group) -> list[Completion]:
        """Stores what a finished search found; the completion, where it was its ask's last."""
        waiting = self._asks[group.ticket]
        waiting.found[group.first] = group.close(self._lm)
        waiting.missing -= 1
        if waiting.missing:
            return []
        del self._asks[group.ticket]
        found = [waiting.found[first] for first in sorted(waiting.found)]
        return [Completion(group.ticket, [c for some, _ in found for c in some], [usage for _, usage in found])]

    def _keep(self, places: list[int], beams: int) -> None:
        if not places:
            self._proposals = None
        elif self._proposals is not None and places != list(range(beams)):
            self._proposals = self._proposals.select(places)


def check_free(proposer: TokenProposer, what: str) -> None:
    """Refuses what comes between aggregate and decoder where the proposer does not take it. Raises PipelineError."""
    if not proposer.takes_processors:
        message = f"{proposer!r:.200} takes no {what}: they could change what it takes as settled"
        raise PipelineError(message, "leave them out, or use another proposer, such as RoE(n=4)")


def _check_different(groups: list[Group], ask: Ask, decoder: Decoder, proposer: TokenProposer) -> None:
    """Refuses several searches that must all find the same."""
    if len(groups) > 1 and decoder.num_return > 1 and not (decoder.random or proposer.random):
        message = f"{decoder!r:.200} gives {decoder.num_return} texts, and {ask.k} candidates are asked for"
        raise ArgumentError(message, f"write num_return={ask.k}, or ask for {decoder.num_return} at most")
