"""Scoring many positions of a text in one forward: the clean rows of all of them, and their noisy rows.

A chunk is the next positions of a text, each in n rows. Its clean rows see each other causally; a noisy
row sees the clean keys before its position and one key of its own token, so it is what a step
would have run there. Only the clean keys are kept for the next chunk. Chunks bound the memory: their
logits, float32, and attention scores. Short texts share a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokenscale.core.cost import Cost, Packed, Prefill, popcount
from tokenscale.core.errors import ArgumentError, ModelError
from tokenscale.core.model import LanguageModel
from tokenscale.core.plan import RowPlan
from tokenscale.core.shape import ModelShape
from tokenscale.core.step import Work, pack_experts
from tokenscale.core.stepped import Given, Outcome
from tokenscale.core.strategy import Aggregator, Rows, TokenProposer
from tokenscale.models.clean_cache import CleanState
from tokenscale.models.masks import text_mask
from tokenscale.models.network import PREFILL_TOKENS
from tokenscale.models.query_rows import QueryRows

CHUNK_ROWS = 256  # more rows share more experts, and their own keys cost more
COPIES = 4  # of a row's logits, that a model's and an aggregator's arithmetic holds at once


@dataclass
class Tally:
    """What one text has so far: one entry of `rows`, `log_probs` and `clean` per scored token."""

    given: Given
    rows: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    clean: list[float] = field(default_factory=list)
    fallbacks: int = 0
    runs: int = 0
    experts: list[Packed] = field(default_factory=list)

    def add_work(self, work: Work, place: int) -> None:
        """What a chunk ran for the text at `place` of it."""
        self.runs += int(work.runs[place])
        self.experts.append(pack_experts(work.experts[place]))

    def outcome(self, shape: ModelShape, prefill: Prefill, clean_row: bool) -> Outcome:
        """Everything at the end."""
        experts: Packed = np.bitwise_or.reduce([prefill.experts, *self.experts])
        cost = forced_cost(shape, len(self.given.prompt), self.rows, self.runs + prefill.runs, experts)
        clean = tuple(self.clean) if clean_row else None
        return Outcome(tuple(self.log_probs), clean, self.fallbacks, cost)


def forced_cost(shape: ModelShape, prompt_tokens: int, rows: Sequence[int], runs: int, experts: Packed) -> Cost:
    """The bill of a prompt and `rows[i]` rows of the token at position `prompt_tokens` - 1 + i, in one forward.

    FLOPs are those of stepping: a row sees the keys before it and one of its own token. Weights are read
    once, of experts the union (`experts`) over all rows; keys and values made in the forward are not
    read back, as in a prefill. `runs` counts the products of a row with an expert, the prompt's
    included. A forward cut into chunks for want of memory is billed the same.
    """
    loads = popcount(experts)
    flops = shape.prefill_flops(prompt_tokens - 1, 0) + shape.decode_flops(rows, prompt_tokens, runs=[runs])
    read = shape.dense_bytes + loads * shape.expert_bytes
    return Cost(flops, read, loads, prompt_tokens, new_tokens=len(rows), rows=sum(rows), sequential_steps=1)


@dataclass(frozen=True)
class Chunk:
    """The positions from `start`, counted from each text's first scored token, at most `width` of them."""

    texts: Sequence[Given]
    start: int
    width: int

    @property
    def lengths(self) -> list[int]:
        """Positions of every text that are not padding."""
        return [min(self.width, len(text.ids) - self.start) for text in self.texts]

    @property
    def real(self) -> Bool[Tensor, "batch width"]:
        return torch.arange(self.width) < torch.tensor(self.lengths)[:, None]

    @property
    def fed(self) -> Int[Tensor, "batch width"]:
        """The tokens that are run, those before the scored ones; 0 in padding."""
        return self._padded([(text.prompt[-1], *text.ids[:-1]) for text in self.texts])

    @property
    def scored(self) -> Int[Tensor, "batch width"]:
        """The tokens whose log-probabilities are asked for."""
        return self._padded([text.ids for text in self.texts])

    def _padded(self, rows: Sequence[Sequence[int]]) -> Tensor:
        cut = [row[self.start : self.start + self.width] for row in rows]
        return torch.tensor([[*row, *[0] * (self.width - len(row))] for row in cut])

    def plan(self, lm: LanguageModel, proposer: TokenProposer) -> tuple[RowPlan, Bool[Tensor, "batch width rows"]]:
        """How all rows of the chunk are run, and which of them count."""
        plans, counted = [], []
        for text, length in zip(self.texts, self.lengths, strict=True):
            begin = len(text.prompt) - 1 + self.start
            found = proposer.row_plan(lm, text.stream, len(text.prompt), range(begin, begin + length))
            assert found is not None
            plan, valid = found
            plans.append(plan)
            valid = torch.ones(length, plan.n, dtype=torch.bool) if valid is None else valid
            counted.append(_lengthened(valid, self.width, 0, False))
        return _joined(plans, self.width), torch.stack(counted)


def _lengthened(values: Tensor, length: int, axis: int, padding: float | bool) -> Tensor:
    shape = list(values.shape)
    shape[axis] = length - shape[axis]
    return torch.cat([values, values.new_full(shape, padding)], dim=axis) if shape[axis] else values


def _joined(plans: Sequence[RowPlan], width: int) -> RowPlan:
    """Plans of a position a sequence as that of a text a sequence, its rows position by position."""
    one = plans[0]
    rows = width * one.n

    def stacked(values: Sequence[Tensor], padding: float | bool) -> Tensor:
        return torch.stack([_lengthened(v.flatten(1, 2), rows, 1, padding) for v in values], dim=1)

    routing, dropout = one.routing, one.dropout
    if routing is not None and routing.noise is not None:
        every = [plan.routing for plan in plans]
        noise = stacked([r.noise for r in every], 0.0)  # type: ignore[union-attr, misc]
        noisy = stacked([r.noisy for r in every], False)  # type: ignore[union-attr, misc]
        routing = replace(routing, noise=noise, noisy=noisy)
    if dropout is not None:
        dropout = replace(dropout, uniforms=stacked([p.dropout.uniforms for p in plans], 1.0))  # type: ignore[union-attr]
    return replace(one, n=rows, routing=routing, dropout=dropout)


@dataclass(frozen=True)
class Forcing:
    """One way to score on one model: n rows a token, at most `chunk_rows` rows a forward."""

    lm: LanguageModel
    form: QueryRows
    proposer: TokenProposer
    aggregator: Aggregator
    n: int
    chunk_rows: int

    def groups(self, texts: Sequence[Given]) -> list[list[int]]:
        """Texts that share a chunk, of about one length; a text longer than a chunk is alone."""
        found: list[list[int]] = []
        for index in sorted(range(len(texts)), key=lambda i: len(texts[i].ids)):
            rows = len(texts[index].ids) * self.n
            if found and (len(found[-1]) + 1) * rows <= self.chunk_rows:
                found[-1].append(index)
            else:
                found.append([index])
        return found

    def together(self, texts: Sequence[Given]) -> list[Outcome]:
        """The outcomes of one group."""
        prompts = [text.prompt for text in texts]
        unique = list(dict.fromkeys(prompts))
        state = self.form.prefill([p[:-1] for p in unique], None, PREFILL_TOKENS)
        state = state.select([unique.index(prompt) for prompt in prompts])
        prefills, longest = state.prefills, max(len(text.ids) for text in texts)
        tallies = [Tally(text) for text in texts]
        in_cache = [tallies[state.order.index(row)] for row in range(len(texts))]
        width = min(longest, max(1, self.chunk_rows // (self.n * len(texts))))
        for start in range(0, longest, width):
            chunk = Chunk([tally.given for tally in in_cache], start, min(width, longest - start))
            self.run(chunk, state, in_cache)
        clean = self.proposer.clean_row
        return [tally.outcome(self.lm.shape, p, clean) for tally, p in zip(tallies, prefills, strict=True)]

    def run(self, chunk: Chunk, state: CleanState, tallies: Sequence[Tally]) -> None:
        """One forward: adds its figures to the tallies and its clean keys to the cache."""
        network, cache, n = self.form.network, state.cache, self.n
        plan, valid = chunk.plan(self.lm, self.proposer)
        device, batch = network.device, len(tallies)
        cache.reserve(plan.n)
        first = torch.tensor(cache.first, device=device)[:, None]
        columns = cache.frame.width + torch.arange(chunk.width, device=device)
        key = plan.current_kv == "clean"
        masks = {w: text_mask(cache, chunk.width, n, w, device, key) for w in set(self.form.windows)}
        with network.varied(plan) as record:
            logits = network.run(
                network.model,
                cache,
                chunk.fed.to(device).repeat_interleave(n, dim=1),
                (columns - first).repeat_interleave(n, dim=1),
                self.form.per_kind(masks),
            ).logits
        cache.commit_every(n, chunk.width)
        step = network.step(logits.float(), record, plan)
        work = step.work(self.lm.shape, valid.flatten(1))
        for place, (tally, rows) in enumerate(zip(tallies, valid.sum(-1).tolist(), strict=True)):
            tally.add_work(work, place)
            tally.rows += [count for count in rows if count]
        self._read(chunk, step.logits.view(batch * chunk.width, n, -1), valid.flatten(0, 1), tallies)

    def _read(
        self,
        chunk: Chunk,
        logits: Float[Tensor, "positions rows vocab"],
        valid: Bool[Tensor, "positions rows"],
        tallies: Sequence[Tally],
    ) -> None:
        real, scored = chunk.real.flatten(), chunk.scored.flatten()
        if not real.all():
            logits, valid, scored = logits[real.to(logits.device)], valid[real], scored[real]
        rows = Rows(logits, valid.to(logits.device))
        log_probs = _of(self.aggregator.aggregate(rows), scored)
        clean = _of(torch.log_softmax(logits[:, 0], -1), scored)
        fell_back = self.aggregator.fell_back(rows).tolist()
        place = 0
        for tally, length in zip(tallies, chunk.lengths, strict=True):
            here = slice(place, place + length)
            tally.log_probs += log_probs[here]
            tally.clean += clean[here]
            tally.fallbacks += sum(fell_back[here])
            place += length


def _of(log_probs: Float[Tensor, "positions vocab"], tokens: Int[Tensor, " positions"]) -> list[float]:
    """The tokens' own."""
    found: Tensor = log_probs.gather(1, tokens.to(log_probs.device)[:, None])[:, 0]
    if found.isnan().any():
        raise ModelError("the model's logits are not numbers (NaN)", "check the weights, or use a wider dtype")
    values: list[float] = found.tolist()
    return values


def score_texts(
    lm: LanguageModel,
    form: QueryRows,
    texts: Sequence[Given],
    proposer: TokenProposer,
    aggregator: Aggregator,
    most_bytes: int,
) -> list[Outcome] | None:
    """Every text's outcome; None for a proposer whose rows do not share one clean cache.

    Raises ArgumentError where `most_bytes` does not hold the rows of one position.
    """
    first = texts[0]
    found = proposer.row_plan(lm, first.stream, len(first.prompt), range(len(first.prompt) - 1, len(first.prompt)))
    if found is None:
        return None
    n = found[0].n
    keys = CHUNK_ROWS + max(len(text.prompt) + len(text.ids) for text in texts)
    heads = form.network.model.config.get_text_config(decoder=True).num_attention_heads
    per_row = 4 * (COPIES * lm.vocab_size + (1 + heads) * keys)
    if most_bytes < n * per_row:
        message = f"score(max_memory_mb={most_bytes // 2**20}): {n} rows of one token take {n * per_row / 2**20:.1f} MB"
        raise ArgumentError(message, f"write max_memory_mb={-(-n * per_row // 2**20)}, or more")
    forcing = Forcing(lm, form, proposer, aggregator, n, min(CHUNK_ROWS, most_bytes // per_row))
    outcomes: dict[int, Outcome] = {}
    for group in forcing.groups(texts):
        outcomes.update(zip(group, forcing.together([texts[i] for i in group]), strict=True))
    return [outcomes[i] for i in range(len(texts))]
