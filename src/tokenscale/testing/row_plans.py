"""What a language model promises of every option of a `RowPlan` that it offers."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tokenscale.core.model import (
    CLEAN_CURRENT_KV,
    DROPOUT,
    EARLY_LAYERS,
    EXPERT_RANKS,
    ROUTING_NOISE,
    LanguageModel,
    State,
)
from tokenscale.core.plan import Dropout, Routing, RowPlan
from tokenscale.testing.expect import expect, expect_close
from tokenscale.testing.stepping import Ids, checked_step, stepwise

ROWS = 3


def check_row_plans(lm: LanguageModel, ids: list[Ids], wanted: list[Tensor], atol: float) -> None:
    """`wanted` are the logits of every prompt's tokens. Cost: about fifteen short batches."""
    last = torch.stack([w[-1] for w in wanted])
    _check_nothing_stored(lm, ids, last, atol)
    if EARLY_LAYERS in lm.capabilities:
        _check_early_layers(lm, ids, last, atol)
    if DROPOUT in lm.capabilities:
        _check_dropout(lm, ids, last, atol)
    if EXPERT_RANKS in lm.capabilities:
        _check_ranks(lm, ids)
    if ROUTING_NOISE in lm.capabilities:
        _check_noise_without_commit(lm, ids, atol)
        _check_noisy_prefill(lm, ids, atol)
        if CLEAN_CURRENT_KV in lm.capabilities:
            _check_clean_key(lm, ids, last, atol)


def _before_last(lm: LanguageModel, ids: list[Ids]) -> tuple[State, list[int]]:
    return lm.prefill([p[:-1] for p in ids]), [p[-1] for p in ids]


def _noise(lm: LanguageModel, batch: int, rows: int, seed: int) -> Float[Tensor, "moe_layers batch rows experts"]:
    size = (lm.shape.moe_layers, batch, rows, lm.shape.experts)
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def _check_nothing_stored(lm: LanguageModel, ids: list[Ids], last: Tensor, atol: float) -> None:
    state, tokens = _before_last(lm, ids)
    checked_step(lm, state, tokens)
    for rows in (ROWS, 1):
        found = checked_step(lm, state, tokens, RowPlan(rows, commit=False)).logits
        wanted = last[:, None].expand(-1, rows, -1)
        expect_close(found, wanted, atol, "rows that are not committed run the last token once more")
    picked = [1, 0, 1]
    state, tokens = state.select(picked), [tokens[i] for i in picked]
    found = checked_step(lm, state, tokens, RowPlan(commit=False)).logits[:, 0]
    expect_close(found, last[picked], atol, "a selected sequence can run its last token once more")
    after = checked_step(lm, state, [ids[0][0]] * 3).logits[:, 0]
    clean = torch.stack([stepwise(lm, (*ids[i], ids[0][0]))[-1] for i in picked])
    expect_close(after, clean, atol, "rows that are not committed leave nothing in the cache")


def _check_early_layers(lm: LanguageModel, ids: list[Ids], last: Tensor, atol: float) -> None:
    final, both = lm.layers - 1, []
    for layers in ((0, final), (final, 0)):
        state, tokens = _before_last(lm, ids)
        both.append(checked_step(lm, state, tokens, RowPlan(early_layers=layers)).logits)
    expect_close(both[0][:, 0], last, atol, "the first row of early layers is the model itself")
    expect_close(both[0][:, 2], last, atol, "the last layer read as an early one is the model itself")
    expect_close(both[1][:, [0, 2, 1]], both[0], atol, "early layers come in the order they were asked for")
    if final:
        expect(not torch.equal(both[0][:, 1], both[0][:, 0]), "an early layer is not the last one")


def _check_dropout(lm: LanguageModel, ids: list[Ids], last: Tensor, atol: float) -> None:
    size = (lm.layers, len(ids), ROWS, lm.hidden_size)
    uniforms = torch.rand(size, generator=torch.Generator().manual_seed(0))
    uniforms[:, :, 0] = 1
    uniforms[:, :, 2] = uniforms[:, :, 1]
    state, tokens = _before_last(lm, ids)
    found = checked_step(lm, state, tokens, RowPlan(ROWS, dropout=Dropout(0.5, uniforms))).logits
    expect_close(found[:, 0], last, atol, "a row whose numbers are all 1 has no dropout")
    expect_close(found[:, 2], found[:, 1], atol, "rows of equal numbers are equal")
    expect(not torch.equal(found[:, 1], found[:, 0]), "dropout changes a row")
    for b, prompt in enumerate(ids):
        state = lm.prefill([prompt[:-1]])
        plan = RowPlan(1, dropout=Dropout(0.5, uniforms[:, b : b + 1, 1:2]), commit=True)
        alone = checked_step(lm, state, prompt[-1:], plan).logits[0, 0]
        expect_close(found[b, 1], alone, atol, "a row's dropout is its own, in a batch as alone")
    state, tokens = _before_last(lm, ids)
    none = checked_step(lm, state, tokens, RowPlan(2, dropout=Dropout(0.0, uniforms[:, :, :2]))).logits
    expect_close(none, last[:, None].expand(-1, 2, -1), atol, "dropout at rate 0 is the model itself")


def _check_ranks(lm: LanguageModel, ids: list[Ids]) -> None:
    state, tokens = _before_last(lm, ids)
    top_k = lm.shape.top_k
    own = checked_step(lm, state, tokens, RowPlan(1, Routing(ranks=(None,)))).experts
    state, tokens = _before_last(lm, ids)
    each = RowPlan(top_k, Routing(ranks=tuple((i, i) for i in range(1, top_k + 1))))
    ranked = checked_step(lm, state, tokens, each).experts
    assert own is not None
    assert ranked is not None
    # In the first layer every row has the same input.
    expect(torch.equal(ranked[:, :, 0].any(1), own[:, 0, 0]), "ranks 1 to k, one a row, are the model's own top k")


def _check_noise_without_commit(lm: LanguageModel, ids: list[Ids], atol: float) -> None:
    noise = _noise(lm, len(ids), ROWS, 1)
    state, tokens = _before_last(lm, ids)
    fresh = checked_step(lm, state, tokens, RowPlan(ROWS, Routing.of(noise))).logits
    state, tokens = _before_last(lm, ids)
    checked_step(lm, state, tokens)
    again = checked_step(lm, state, tokens, RowPlan(ROWS, Routing.of(noise), commit=False)).logits
    expect_close(again, fresh, atol, "rows of the last token are those that a step before it would have run")


def _check_clean_key(lm: LanguageModel, ids: list[Ids], last: Tensor, atol: float) -> None:
    noise = _noise(lm, len(ids), ROWS, 2)
    noise[:, :, 0] = 0
    state, tokens = _before_last(lm, ids)
    own = checked_step(lm, state, tokens, RowPlan(ROWS, Routing.of(noise))).logits
    state, tokens = _before_last(lm, ids)
    clean = checked_step(lm, state, tokens, RowPlan(ROWS, Routing.of(noise), current_kv="clean")).logits
    expect_close(clean[:, 0], last, atol, "row 0 sees its own key, which is the clean one")
    plan = RowPlan(ROWS, Routing.of(noise), current_kv="clean", commit=False)
    stored = checked_step(lm, state, tokens, plan).logits
    expect_close(stored, clean, atol, "the clean key of a token that is stored is the stored key")
    if lm.layers > 1:
        expect(not torch.equal(clean[:, 1:], own[:, 1:]), "a row that sees the clean key is another row")


def _check_noisy_prefill(lm: LanguageModel, ids: list[Ids], atol: float) -> None:
    """A noisy prefill is its tokens stepped in one noisy row each."""
    noises = [_noise(lm, 1, len(p), 3 + b) for b, p in enumerate(ids)]
    state = lm.prefill([p[:-1] for p in ids], [Routing.of(n[:, :, :-1]) for n in noises])
    last = torch.cat([n[:, :, -1:] for n in noises], 1)
    found = checked_step(lm, state, [p[-1] for p in ids], RowPlan(1, Routing.of(last))).logits[:, 0]
    for b, (prompt, noise) in enumerate(zip(ids, noises, strict=True)):
        alone = lm.prefill([()])
        for place, token in enumerate(prompt):
            plan = RowPlan(1, Routing.of(noise[:, :, place : place + 1]))
            logits = checked_step(lm, alone, [token], plan).logits[0, 0]
        expect_close(found[b], logits, atol, "a noisy prefill equals its tokens one by one")
