"""Given tokens fed to a proposer one after the other: the log-likelihood of a text by any proposer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from tokenscale.core.cost import Cached, Cost, Lane, Ran, Usage
from tokenscale.core.folding import aggregated
from tokenscale.core.ledger import Ledger
from tokenscale.core.model import LanguageModel
from tokenscale.core.noise import Stream
from tokenscale.core.record import TokenRecord
from tokenscale.core.step_records import StepRecords
from tokenscale.core.strategy import Aggregator, TokenProposer
from tokenscale.core.unread import ALL


@dataclass(frozen=True)
class Given:
    """A text to score: `ids` behind `prompt`, which has at least one token; the noise comes from `stream`."""

    prompt: tuple[int, ...]
    ids: tuple[int, ...]
    stream: Stream


@dataclass(frozen=True)
class Outcome:
    """What scoring one text gave. `log_probs` and `clean_log_probs` have one entry per token of `Given.ids`."""

    log_probs: tuple[float, ...]
    clean_log_probs: tuple[float, ...] | None
    fallbacks: int
    cost: Cost


@dataclass
class _Growing:
    """A text while it is stepped."""

    given: Given
    cached: tuple[Cached, ...]
    tokens: list[TokenRecord] = field(default_factory=list)
    clean: list[float] = field(default_factory=list)
    ran: list[list[Ran]] = field(default_factory=list)

    @property
    def last(self) -> int:
        """The token to feed next."""
        return self.given.ids[len(self.tokens) - 1] if self.tokens else self.given.prompt[-1]

    @property
    def missing(self) -> bool:
        return len(self.tokens) < len(self.given.ids)

    def add(self, records: StepRecords, place: int, clean: Float[Tensor, "batch vocab"] | None) -> None:
        """The next token's log-probability, and what was run for it."""
        token = self.given.ids[len(self.tokens)]
        self.tokens.append(records.token(place, token, near_tie=False))
        self.ran.append(records.ran(place, place + 1)[1])
        if clean is not None:
            self.clean.append(float(clean[place, token]))

    def outcome(self) -> Outcome:
        lanes = [Lane.of(cached, [step[i] for step in self.ran], ()) for i, cached in enumerate(self.cached)]
        ledger = Ledger()
        ledger.add([Usage(tuple(lanes))], start=0)
        return Outcome(
            tuple(token.log_prob for token in self.tokens),
            tuple(self.clean) or None,
            sum(token.fell_back for token in self.tokens),
            ledger.bill(),
        )


def stepped(
    lm: LanguageModel, texts: Sequence[Given], proposer: TokenProposer, aggregator: Aggregator, batch_size: int
) -> list[Outcome]:
    """Texts of any proposer, token by token, `batch_size` at once. Costs what decoding them would."""
    outcomes: dict[int, Outcome] = {}
    order = sorted(range(len(texts)), key=lambda i: len(texts[i].ids))
    for start in range(0, len(order), batch_size):
        members = order[start : start + batch_size]
        found = _stepped_together(lm, [texts[i] for i in members], proposer, aggregator)
        outcomes.update(zip(members, found, strict=True))
    return [outcomes[i] for i in range(len(texts))]


def _stepped_together(
    lm: LanguageModel, texts: Sequence[Given], proposer: TokenProposer, aggregator: Aggregator
) -> list[Outcome]:
    proposals = proposer.start(lm, [t.prompt for t in texts], [t.stream for t in texts])
    growing = [_Growing(text, cached) for text, cached in zip(texts, proposals.cached, strict=True)]
    live = growing
    while live:
        rows, works = proposals.propose(torch.tensor([text.last for text in live]))
        log_probs, fell_back = aggregated(aggregator, rows)
        log_probs = log_probs.cpu()
        records = StepRecords(rows, works, live[0].cached, log_probs, fell_back, trace=False)
        clean = None
        if proposer.clean_row:
            clean = torch.log_softmax(rows.part(ALL, slice(1)).logits[:, 0].float(), -1).cpu()
        for place, text in enumerate(live):
            text.add(records, place, clean)
        going = [place for place, text in enumerate(live) if text.missing]
        if going and len(going) < len(live):
            proposals = proposals.select(going)
        live = [live[place] for place in going]
    return [text.outcome() for text in growing]
