"""The suite for token proposers and their proposals."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tokenscale.core.cost import Cached
from tokenscale.core.errors import CapabilityError
from tokenscale.core.model import Holding, LanguageModel
from tokenscale.core.noise import Stream
from tokenscale.core.step import Work
from tokenscale.core.strategy import Proposals, Rows, TokenProposer
from tokenscale.testing.expect import check_stage, expect, expect_close

Ids = tuple[int, ...]
Bill = tuple[tuple[tuple[int, ...], tuple[bool, ...]], ...]
STEPS = 6


@dataclass
class Found:
    """What one sequence's proposals gave, step by step: its valid rows, and per cache what was billed."""

    rows: list[Tensor] = field(default_factory=list)
    bills: list[Bill] = field(default_factory=list)


def check_proposer(proposer: TokenProposer, lm: LanguageModel, *, atol: float = 0.0) -> None:
    """What `TokenProposer` and `Proposals` promise, with `lm`, which must have what the proposer needs.

    `atol` bounds the difference of logits that should be equal; 0 means to the last bit, and that
    what is billed must be equal too. Raises AssertionError.
    """
    check_stage(proposer)
    check_stage(proposer.default_aggregator)
    expect(proposer.needs <= lm.capabilities, f"the model for this suite has {sorted(proposer.needs)}")
    proposer.check(lm)
    _check_needs(proposer, lm)
    prompts, follow = _texts(lm)
    streams = [Stream(("conformance", b)) for b in range(len(prompts))]
    before = _plain(lm, prompts[0])
    alone = [
        _run(lm, proposer.start(lm, [p], [s]), [[t] for t in (p[-1], *after)])[0]
        for p, s, after in zip(prompts, streams, follow, strict=True)
    ]
    if proposer.clean_row:
        _check_clean_row(lm, prompts, follow, alone, atol)
    _check_batch(proposer, lm, prompts, streams, follow, alone, atol)
    _check_select_and_join(proposer, lm, prompts, streams, follow, alone, atol)
    _check_streams(proposer, lm, prompts[0], follow[0], alone[0], atol)
    expect_close(_plain(lm, prompts[0]), before, 0.0, "the model is as it was")


def _check_needs(proposer: TokenProposer, lm: LanguageModel) -> None:
    """A model without what the proposer needs is refused by `check`."""
    for capability in proposer.needs:
        lacking = copy.copy(lm)
        lacking.capabilities = lm.capabilities - {capability}
        try:
            proposer.check(lacking)
        except CapabilityError:
            continue
        expect(False, f"check refuses a model that lacks {capability}")


def _plain(lm: LanguageModel, prompt: Ids) -> Float[Tensor, " vocab"]:
    with torch.no_grad():
        return lm.step(lm.prefill([prompt[:-1]]), torch.tensor([prompt[-1]])).logits[0, 0].cpu()


def _check_clean_row(lm: LanguageModel, prompts: list[Ids], follow: list[Ids], alone: list[Found], atol: float) -> None:
    for prompt, after, found in zip(prompts, follow, alone, strict=True):
        for step in (0, STEPS):
            wanted = _plain(lm, (*prompt, *after[:step]))
            expect_close(found.rows[step][0], wanted, atol, "the clean row is the model's own distribution")


def _texts(lm: LanguageModel) -> tuple[list[Ids], list[Ids]]:
    """Prompts, two of them equal, and what follows each."""
    random = np.random.default_rng(0)
    usable = np.setdiff1d(np.arange(lm.vocab_size), [*lm.eos_ids, *lm.suppressed_ids])
    prompts: list[Ids] = [tuple(random.choice(usable, size).tolist()) for size in (5, 1, 8)]
    follow: list[Ids] = [tuple(random.choice(usable, STEPS).tolist()) for _ in range(4)]
    return [*prompts, prompts[0]], follow


def _run(lm: LanguageModel, proposals: Proposals, tokens: Sequence[Sequence[int]]) -> list[Found]:
    """What every sequence gives, step by step, when `tokens[step][sequence]` are fed."""
    found = [Found() for _ in tokens[0]]
    for fed in tokens:
        before, caches = proposals.lengths, proposals.cached
        with torch.no_grad():
            rows, works = proposals.propose(torch.tensor(list(fed)))
        expect(proposals.lengths == [n + 1 for n in before], "a proposal stores one token")
        _check_rows(lm, rows, len(fed))
        _check_works(rows, works, proposals.cached)
        expect(_contents(proposals.cached) == _contents(caches), "a step leaves `cached` as it was")
        for b, valid in enumerate(rows.valid):
            found[b].rows.append(rows.logits[b, valid].cpu())
            found[b].bills.append(tuple(_billed(work, b) for work in works))
    return found


def _contents(cached: list[tuple[Cached, ...]]) -> list[tuple[object, ...]]:
    return [tuple(cache.content for cache in caches) for caches in cached]


def _check_rows(lm: LanguageModel, rows: Rows, batch: int) -> None:
    shape = (batch, rows.logits.shape[1], lm.vocab_size)
    expect(rows.logits.dtype == torch.float32 and rows.logits.shape == shape, "float32 [batch, rows, vocab]")
    expect(rows.valid.shape == rows.logits.shape[:2], "valid is [batch, rows]")
    expect(bool(rows.valid.any(1).all()), "every sequence has a valid row")


def _check_works(rows: Rows, works: tuple[Work, ...], cached: list[tuple[Cached, ...]]) -> None:
    batch = len(rows.valid)
    expect(all(len(caches) == len(works) for caches in cached), "one work per cache")
    for place, work in enumerate(works):
        shape = cached[0][place].shape
        expect(work.experts.shape == (batch, shape.moe_layers, shape.experts), "a work shows its model's experts")
        counts = (work.rows, work.heads, work.runs, work.choices, work.changed)
        expect(all(count.shape == (batch,) for count in counts), "every work has an entry a sequence")
        expect(bool((work.runs >= work.experts.sum((1, 2))).all()), "an expert that ran is a product at least")
        expect(bool((work.changed <= work.choices).all()), "noise changes no more choices than it made")
        idle = work.rows == 0
        expect(not bool((idle & ((work.heads > 0) | (work.runs > 0))).any()), "what no row ran is not billed")
    heads = sum(work.heads for work in works)
    expect(bool((torch.as_tensor(heads) >= rows.valid.sum(1).cpu()).all()), "every valid row's logits are billed")


def _billed(work: Work, place: int) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    counts = (work.rows, work.heads, work.runs, work.choices, work.changed)
    return tuple(int(count[place]) for count in counts), tuple(work.experts[place].flatten().tolist())


def _check_same(found: Found, wanted: Found, steps: int, atol: float, promise: str) -> None:
    for rows, other in zip(found.rows[:steps], wanted.rows[:steps], strict=True):
        expect_close(rows, other, atol, promise)
    if atol == 0:
        expect(found.bills[:steps] == wanted.bills[:steps], f"{promise}: what is billed")


def _check_batch(
    proposer: TokenProposer,
    lm: LanguageModel,
    prompts: list[Ids],
    streams: list[Stream],
    follow: list[Ids],
    alone: list[Found],
    atol: float,
) -> None:
    order = list(reversed(range(len(prompts))))
    started = proposer.start(lm, [prompts[b] for b in order], [streams[b] for b in order])
    stored = [len(caches[0].prompt) - 1 for caches in started.cached]
    expect(started.lengths == stored, "start prefills all but the last token")
    _check_caches([proposer.caches(lm, prompts[b], streams[b]) for b in order], started.cached)
    together = _run(lm, started, list(zip(*((prompts[b][-1], *follow[b]) for b in order), strict=True)))
    for b, found in zip(order, together, strict=True):
        _check_same(found, alone[b], STEPS + 1, atol, "rows do not depend on batch and order")


def _check_caches(said: list[list[Holding]], found: list[tuple[Cached, ...]]) -> None:
    """Memory is counted by what `caches` says, so it must be what `start` makes."""
    for holdings, caches in zip(said, found, strict=True):
        prompts = [(holding.lm.fingerprint, holding.prompt) for holding in holdings]
        expect(prompts == [(cache.model, cache.prompt) for cache in caches], "`caches` are those that start makes")
    pairs = [pair for one, other in zip(said, found, strict=True) for pair in zip(one, other, strict=True)]
    contents = {holding: cache.content for holding, cache in pairs}
    same = all(contents[holding] == cache.content for holding, cache in pairs)
    expect(same, "holdings are equal only where caches hold the same")


def _check_select_and_join(
    proposer: TokenProposer,
    lm: LanguageModel,
    prompts: list[Ids],
    streams: list[Stream],
    follow: list[Ids],
    alone: list[Found],
    atol: float,
) -> None:
    first, last = (proposer.start(lm, [prompts[b]], [streams[b]]) for b in (0, 2))
    [zero] = _run(lm, first, [[t] for t in (prompts[0][-1], *follow[0][:1])])
    [two] = _run(lm, last, [[prompts[2][-1]]])
    caches = [*last.cached, *first.cached, *last.cached]
    joined = first.join(last).select([1, 0, 1])
    expect(_contents(joined.cached) == _contents(caches), "caches go with their sequences")
    late = _run(lm, joined, [[follow[2][i], follow[0][i + 1], follow[2][i]] for i in range(STEPS - 1)])
    promise = "joined, selected and forked sequences go on as if alone"
    for begun, gone_on, wanted in ((zero, late[1], alone[0]), (two, late[0], alone[2]), (two, late[2], alone[2])):
        found = Found(begun.rows + gone_on.rows, begun.bills + gone_on.bills)
        _check_same(found, wanted, len(found.rows), atol, promise)


def _check_streams(
    proposer: TokenProposer, lm: LanguageModel, prompt: Ids, follow: Ids, wanted: Found, atol: float
) -> None:
    elsewhere = proposer.start(lm, [prompt], [Stream(("conformance", "elsewhere"))])
    [found] = _run(lm, elsewhere, [[t] for t in (prompt[-1], *follow)])
    same = all(
        a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=atol)
        for a, b in zip(found.rows, wanted.rows, strict=True)
    )
    expect(same != proposer.random, f"`random` ({proposer.random}) says whether rows depend on the stream")
