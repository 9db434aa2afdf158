"""The suite for token proposers and their proposals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tokenscale.core.model import LanguageModel
from tokenscale.core.noise import Stream
from tokenscale.core.strategy import Proposals, TokenProposer
from tokenscale.testing.expect import check_stage, expect, expect_close

Ids = tuple[int, ...]
STEPS = 6


def check_proposer(proposer: TokenProposer, lm: LanguageModel, *, atol: float = 0.0) -> None:
    """What `TokenProposer` and `Proposals` promise, with `lm`, which must have what the proposer needs.

    `atol` bounds the difference of logits that should be equal; 0 means to the last bit.
    Raises AssertionError.
    """
    check_stage(proposer)
    check_stage(proposer.default_aggregator)
    expect(proposer.needs <= lm.capabilities, f"the model for this suite has {sorted(proposer.needs)}")
    proposer.check(lm)
    prompts, follow = _texts(lm)
    streams = [Stream(("conformance", b)) for b in range(len(prompts))]
    alone = [
        _run(proposer.start(lm, [p], [s]), [[t] for t in (p[-1], *after)])[0]
        for p, s, after in zip(prompts, streams, follow, strict=True)
    ]
    _check_batch(proposer, lm, prompts, streams, follow, alone, atol)
    _check_select_and_join(proposer, lm, prompts, streams, follow, alone, atol)
    _check_streams(proposer, lm, prompts[0], follow[0], alone[0], atol)


def _texts(lm: LanguageModel) -> tuple[list[Ids], list[Ids]]:
    """Prompts, two of them equal, and what follows each."""
    random = np.random.default_rng(0)
    usable = np.setdiff1d(np.arange(lm.vocab_size), [*lm.eos_ids, *lm.suppressed_ids])
    prompts: list[Ids] = [tuple(random.choice(usable, size).tolist()) for size in (5, 1, 8)]
    follow: list[Ids] = [tuple(random.choice(usable, STEPS).tolist()) for _ in range(4)]
    return [*prompts, prompts[0]], follow


def _run(proposals: Proposals, tokens: Sequence[Sequence[int]]) -> list[list[Float[Tensor, "rows vocab"]]]:
    """The valid rows of every sequence, step by step, when `tokens[step][sequence]` are fed."""
    found: list[list[Tensor]] = [[] for _ in tokens[0]]
    for fed in tokens:
        before = proposals.lengths
        with torch.no_grad():
            rows, works = proposals.propose(torch.tensor(list(fed)))
        expect(proposals.lengths == [n + 1 for n in before], "a proposal stores one token")
        expect(rows.logits.dtype == torch.float32 and rows.logits.shape[0] == len(fed), "float32 [batch, rows, vocab]")
        expect(rows.valid.shape == rows.logits.shape[:2], "valid is [batch, rows]")
        expect(bool(rows.valid.any(1).all()), "every sequence has a valid row")
        expect(all(len(work.rows) == len(fed) for work in works), "every work has an entry a sequence")
        expect(all(len(caches) == len(works) for caches in proposals.cached), "one work per cache")
        for b, valid in enumerate(rows.valid):
            found[b].append(rows.logits[b, valid].cpu())
    return found


def _check_batch(
    proposer: TokenProposer,
    lm: LanguageModel,
    prompts: list[Ids],
    streams: list[Stream],
    follow: list[Ids],
    alone: list[list[Tensor]],
    atol: float,
) -> None:
    order = list(reversed(range(len(prompts))))
    started = proposer.start(lm, [prompts[b] for b in order], [streams[b] for b in order])
    expect(started.lengths == [len(prompts[b]) - 1 for b in order], "start prefills all but the last token")
    together = _run(started, list(zip(*((prompts[b][-1], *follow[b]) for b in order), strict=True)))
    for b, found in zip(order, together, strict=True):
        for rows, wanted in zip(found, alone[b], strict=True):
            expect_close(rows, wanted, atol, "rows do not depend on batch and order")


def _check_select_and_join(
    proposer: TokenProposer,
    lm: LanguageModel,
    prompts: list[Ids],
    streams: list[Stream],
    follow: list[Ids],
    alone: list[list[Tensor]],
    atol: float,
) -> None:
    first, last = (proposer.start(lm, [prompts[b]], [streams[b]]) for b in (0, 2))
    early = [_run(first, [[t] for t in (prompts[0][-1], *follow[0][:1])]), _run(last, [[prompts[2][-1]]])]
    joined = first.join(last).select([1, 0, 1])
    late = _run(joined, [[follow[2][i], follow[0][i + 1], follow[2][i]] for i in range(STEPS - 1)])
    found = [[*early[0][0], *late[1]], [*early[1][0], *late[0]], [*early[1][0], *late[2]]]
    for rows, wanted in zip(found, (alone[0], alone[2][:-1], alone[2][:-1]), strict=True):
        for one, other in zip(rows, wanted, strict=True):
            expect_close(one, other, atol, "joined, selected and forked sequences go on as if alone")


def _check_streams(
    proposer: TokenProposer, lm: LanguageModel, prompt: Ids, follow: Ids, wanted: list[Tensor], atol: float
) -> None:
    elsewhere = proposer.start(lm, [prompt], [Stream(("conformance", "elsewhere"))])
    [found] = _run(elsewhere, [[t] for t in (prompt[-1], *follow)])
    same = all(torch.allclose(a, b, rtol=0, atol=atol) for a, b in zip(found, wanted, strict=True))
    expect(same != proposer.random, f"`random` ({proposer.random}) says whether rows depend on the stream")
