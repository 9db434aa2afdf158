"""The one token loop: propose, aggregate, process, choose, pick the survivors, record.

Everything outstanding shares one batch: candidates that end leave it, waiting ones join it. What a
candidate gets does not depend on the others, since all its draws come from its own stream.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenscale.core.backend import Backend, Completion
from tokenscale.core.context import room
from tokenscale.core.data import Ask
from tokenscale.core.errors import CapabilityError, PipelineError, at_least
from tokenscale.core.group import Finished, Group
from tokenscale.core.model import LanguageModel
from tokenscale.core.noise import UniformReader, read_uniforms
from tokenscale.core.record import NEAR_TIE, Record, StepRecords
from tokenscale.core.strategy import Aggregator, Choice, Decoder, Proposals, TokenProposer

LogitsProcessor = Callable[[Int[Tensor, "batch length"], Float[Tensor, "batch vocab"]], Float[Tensor, "batch vocab"]]
OnToken = Callable[[int, int, int], None]


@dataclass
class _Waiting:
    """An ask whose copies are not all done."""

    results: list[Finished | None]
    missing: int


class LocalBackend(Backend):
    """Decodes asks on a local model with one proposer and aggregator.

    `batch_size` bounds the candidates decoded at once. `processor`, where given, is applied to the
    aggregated log-probabilities of each beam (transformers' LogitsProcessorList fits). `on_token` is
    called with (ticket, copy, token) as tokens are decided, for decoders of width 1.
    """

    def __init__(
        self,
        lm: LanguageModel,
        proposer: TokenProposer,
        aggregator: Aggregator,
        decoder: Decoder,
        *,
        batch_size: int,
        trace: bool = False,
        processor: LogitsProcessor | None = None,
        on_token: OnToken | None = None,
    ) -> None:
        at_least("LocalBackend", "batch_size", batch_size, 1)
        proposer.check(lm)
        if processor is not None and not proposer.takes_processors:
            message = f"{proposer!r:.200} takes no logits processors: they could change what it takes as settled"
            raise PipelineError(message, "leave them out, or use another proposer, such as RoE(n=4)")
        self._lm, self._proposer, self._aggregator, self._decoder = lm, proposer, aggregator, decoder
        self._batch_size, self._trace, self._processor, self._on_token = batch_size, trace, processor, on_token
        self._suppressed = torch.tensor(sorted(lm.suppressed_ids), dtype=torch.long)
        self._queue: deque[Group] = deque()
        self._asks: dict[int, _Waiting] = {}
        self._groups: list[Group] = []
        self._proposals: Proposals | None = None
        self._tickets = 0

    def submit(self, ask: Ask) -> int:
        prompt = (*self._lm.encode(ask.prompt), *ask.prefix_ids)
        left = room(self._lm, len(prompt))
        if ask.stop_strings and self._lm.tokenizer is None:
            raise CapabilityError("stop strings need a tokenizer", "pass tokenizer=..., or drop stop_strings")
        decoder = ask.decoder or self._decoder
        self._proposer.fits(self._aggregator, decoder)
        ticket, self._tickets = self._tickets, self._tickets + 1
        self._asks[ticket] = _Waiting([None] * ask.k, ask.k)
        for copy, one in enumerate(ask.copies()):
            record = Record(prompt, one.stream, min(ask.max_new_tokens, left), ask.stop_strings)
            uniforms = UniformReader(one.stream) if decoder.random else None
            self._queue.append(Group(ticket, copy, decoder, [record], uniforms))
        return ticket

    def cancel(self, ticket: int) -> None:
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
        while not done and (self._groups or self._queue):
            self._admit()
            with torch.no_grad():
                done = self._step()
        return done

    def _admit(self) -> None:
        free = self._batch_size - len(self._groups)
        # Joining copies the cache, so newcomers are let in by the quarter batch.
        if not self._queue or (self._groups and free < max(1, self._batch_size // 4)):
            return
        groups = [self._queue.popleft() for _ in range(min(free, len(self._queue)))]
        records = [g.beams[0] for g in groups]
        with torch.no_grad():
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
        allowed = self._process(beams, log_probs)
        fell_back = self._aggregator.fell_back(rows).tolist()
        records = StepRecords(rows, works, self._groups[0].cached, log_probs, fell_back, self._trace)
        parents, done, start = list[int](), list[Completion](), 0
        choices = self._choose(allowed)
        alive: list[Group] = []
        for group, (origins, tokens, margin) in zip(self._groups, choices, strict=True):
            survivors = self._extend(group, start, origins, tokens, margin, records)
            start += len(group.beams)
            group.beams = [beam for beam, _ in survivors]
            parents += [parent for _, parent in survivors]
            if survivors:
                alive.append(group)
            else:
                done += self._complete(group)
        self._groups = alive
        self._keep(parents, start)
        return done

    def _process(self, beams: list[Record], log_probs: Float[Tensor, "beams vocab"]) -> Float[Tensor, "beams vocab"]:
        allowed = log_probs
        if len(self._suppressed):
            allowed = allowed.index_fill(-1, self._suppressed, float("-inf"))
        if self._processor is not None:
            allowed = self._processed(beams, allowed)
        if allowed is not log_probs and allowed.isneginf().all(-1).any():
            message = "suppressed tokens and logits processors left no token to choose"
            raise PipelineError(message, "drop a processor, or use an aggregator that allows more tokens")
        return allowed

    def _processed(self, beams: list[Record], allowed: Float[Tensor, "beams vocab"]) -> Float[Tensor, "beams vocab"]:
        assert self._processor is not None
        ids = [torch.tensor([b.prompt + b.token_ids]) for b in beams]
        return torch.cat([self._processor(i, row[None].clone()) for i, row in zip(ids, allowed, strict=True)])

    def _choose(self, allowed: Float[Tensor, "beams vocab"]) -> Iterable[tuple[list[int], list[int], float]]:
        """(parents, tokens, margin) per group; groups of one decoder and beam count are chosen together."""
        kinds: dict[tuple[Decoder, int], list[tuple[int, int]]] = {}
        start = 0
        for place, group in enumerate(self._groups):
            kinds.setdefault((group.decoder, len(group.beams)), []).append((place, start))
            start += len(group.beams)
        chosen: dict[int, tuple[list[int], list[int], float]] = {}
        for (decoder, width), members in kinds.items():
            choice = self._choose_alike(decoder, width, members, allowed)
            lists = (choice.parents.tolist(), choice.tokens.tolist(), choice.margin.tolist())
            chosen.update((place, found) for (place, _), found in zip(members, zip(*lists, strict=True), strict=True))
        return [chosen[place] for place in range(len(self._groups))]

    def _choose_alike(
        self, decoder: Decoder, width: int, members: list[tuple[int, int]], allowed: Float[Tensor, "beams vocab"]
    ) -> Choice:
        groups = [self._groups[place] for place, _ in members]
        if len(members) * width == len(allowed):
            log_probs = allowed
        else:
            log_probs = allowed[[start + w for _, start in members for w in range(width)]]
        uniforms = None
        if decoder.random:
            readers = [g.uniforms for g in groups if g.uniforms is not None]
            uniforms = read_uniforms(readers, [g.beams[0].position for g in groups])
        scores = torch.tensor([g.scores for g in groups]) if decoder.width > 1 else torch.zeros(len(groups), width)
        return decoder.choose(log_probs.view(len(groups), width, -1), scores, uniforms)

    def _extend(
        self, group: Group, start: int, origins: list[int], tokens: list[int], margin: float, records: StepRecords
    ) -> list[tuple[Record, int]]:
        """Adds the chosen tokens; the beams that go on, each with its place in the batch."""
        group.ran.append(records.ran(start, start + len(group.beams)))
        near_tie = margin < NEAR_TIE
        fork = len(origins) > 1
        survivors: list[tuple[Record, int]] = []
        for origin, token in zip(origins, tokens, strict=True):
            beam = group.beams[origin].fork() if fork else group.beams[origin]
            beam.add(records.token(start + origin, token, near_tie))
            if self._on_token is not None and group.decoder.width == 1:
                self._on_token(group.ticket, group.copy, token)
            reason = beam.ending(self._lm)
            if reason is None:
                survivors.append((beam, start + origin))
            else:
                group.finished.append(beam.finish(self._lm, reason))
        return survivors

    def _complete(self, group: Group) -> list[Completion]:
        """Stores a finished copy (its best beam); the completion, where it was its ask's last."""
        waiting = self._asks[group.ticket]
        waiting.results[group.copy] = group.best()
        waiting.missing -= 1
        if waiting.missing:
            return []
        del self._asks[group.ticket]
        results = [r for r in waiting.results if r is not None]
        return [Completion(group.ticket, [c for c, _ in results], [u for _, u in results])]

    def _keep(self, places: list[int], beams: int) -> None:
        if not places:
            self._proposals = None
        elif self._proposals is not None and places != list(range(beams)):
            self._proposals = self._proposals.select(places)
