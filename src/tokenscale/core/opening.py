"""What an ask becomes: the searches that answer it, or the candidates of one that leaves nothing to decode."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tokenscale.core.admission import Contents
from tokenscale.core.constraint import Constraint
from tokenscale.core.context import room
from tokenscale.core.data import Ask, Candidate
from tokenscale.core.errors import ArgumentError, CapabilityError, PipelineError
from tokenscale.core.group import Group
from tokenscale.core.model import LanguageModel
from tokenscale.core.noise import UniformReader
from tokenscale.core.prompt import Prompt
from tokenscale.core.record import Record
from tokenscale.core.strategy import Aggregator, Decoder, TokenProposer


@dataclass(frozen=True)
class Opener:
    """Opens asks for one proposer. `decoder` and `constraint` are those of asks that name none."""

    lm: LanguageModel
    proposer: TokenProposer
    aggregator: Aggregator
    decoder: Decoder
    constraint: Constraint | None
    signals: tuple[str, ...]
    contents: Contents

    def open(self, ask: Ask, ticket: int) -> tuple[list[Group], list[Candidate]]:
        """The searches of an ask that can be served; where there are none, its candidates."""
        decoder, constraint = self._checked(ask)
        asked = self.lm.encode(ask.prompt)
        answer, suffix = self._begun(ask, asked)
        left = room(self.lm, len(asked)) - len(answer)
        guide = constraint.begun(self.lm, answer) if constraint is not None else None
        if left < 1 or (guide is not None and guide.over):
            reason = "length" if left < 1 else "constraint"
            if guide is not None and not guide.met:
                reason = "constraint_unmet"
            return [], self._nothing(ask, asked, answer, suffix, reason)
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
                signals=self.signals,
            )
            groups.append(self._group(ticket, first, min(decoder.num_return, ask.k - first), decoder, record))
        _check_different(groups, ask, decoder, self.proposer)
        return groups, []

    def _group(self, ticket: int, first: int, wanted: int, decoder: Decoder, record: Record) -> Group:
        uniforms = UniformReader(record.stream) if decoder.random else None
        holdings = self.proposer.caches(self.lm, record.prompt, record.stream)
        need = self.contents.need(holdings, record.limit, decoder.width)
        return Group(ticket, first, wanted, decoder, record, uniforms, need)

    def _checked(self, ask: Ask) -> tuple[Decoder, Constraint | None]:
        """The decoder and the constraint of an ask that can be served."""
        if (ask.stop_strings or ask.pauses) and self.lm.tokenizer is None:
            raise CapabilityError("stop strings need a tokenizer", "pass tokenizer=..., or drop stop_strings")
        decoder = ask.decoder or self.decoder
        self.proposer.fits(self.aggregator, decoder)
        constraint = ask.constraint if ask.constraint is not None or ask.free else self.constraint
        if constraint is not None:
            check_free(self.proposer, "constraints")
        if ask.stop_rule is not None and ask.stop_rule.signal not in self.signals:
            message = f"{ask.stop_rule!r:.80} reads {ask.stop_rule.signal}, which is not recorded"
            raise ArgumentError(message, "name it in the `signals` of the stage that asks")
        return decoder, constraint

    def _begun(self, ask: Ask, asked: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The token ids that the answer begins with, and those of them that are the ask's suffix."""
        if not ask.suffix:
            return ask.prefix_ids, ()
        before = (*asked, *ask.prefix_ids)
        suffix = self.lm.encode(Prompt(token_ids=before, suffix=ask.suffix))[len(before) :]
        return (*ask.prefix_ids, *suffix), suffix

    def _nothing(
        self, ask: Ask, asked: tuple[int, ...], answer: tuple[int, ...], suffix: tuple[int, ...], reason: str
    ) -> list[Candidate]:
        """The candidates of an ask whose beginning fills the context, or what a constraint allows."""
        thinking, text = self.lm.read(asked, answer) if self.lm.tokenizer is not None else ("", "")
        empty = Candidate(text, (), (), reason, ask.stream, thinking=thinking, suffix_ids=suffix)
        return [replace(empty, stream=one.stream) for one in ask.copies()]


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
