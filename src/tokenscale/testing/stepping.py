"""Steps of a language model, each checked for shape and type; the reference that suites compare with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tokenscale.core.model import LanguageModel, State
from tokenscale.core.plan import PLAIN, RowPlan
from tokenscale.core.step import Step
from tokenscale.testing.expect import expect

Ids = tuple[int, ...]


def random_prompts(lm: LanguageModel) -> list[Ids]:
    """Four prompts of different lengths, without tokens that end a text or are never generated."""
    random = np.random.default_rng(0)
    usable = np.setdiff1d(np.arange(lm.vocab_size), [*lm.eos_ids, *lm.suppressed_ids])
    return [tuple(random.choice(usable, size).tolist()) for size in (5, 1, 8, 2)]


def checked_step(lm: LanguageModel, state: State, tokens: Sequence[int], plan: RowPlan = PLAIN) -> Step:
    """One step, on the CPU."""
    lengths = state.lengths
    with torch.no_grad():
        step = lm.step(state, torch.tensor(list(tokens)), plan)
    expect(step.logits.dtype == torch.float32, "logits are float32")
    heads = plan.n + len(plan.early_layers)
    expect(step.logits.shape == (len(tokens), heads, lm.vocab_size), "logits are [batch, rows, vocab]")
    expect(not bool(step.logits.isnan().any()), "no logit is NaN")
    stored = [length + plan.commit for length in lengths]
    expect(state.lengths == stored, "a step that commits stores one token, any other none")
    _check_experts(lm, step, len(tokens), plan)
    return Step(step.logits.cpu(), _cpu(step.experts), _cpu(step.changed), _cpu(step.noisy))


def _check_experts(lm: LanguageModel, step: Step, batch: int, plan: RowPlan) -> None:
    if lm.shape.moe_layers == 0:
        expect(step.experts is None, "a dense model marks no experts")
        return
    layers, experts = lm.shape.moe_layers, lm.shape.experts
    marks = step.experts
    expect(marks is not None and marks.shape == (batch, plan.n, layers, experts), "experts are marked")
    ranks = plan.routing.ranks if plan.routing is not None else ()
    for row in range(plan.n):
        first, last = (ranks[row] if ranks else None) or (1, lm.shape.top_k)
        right = marks is not None and bool((marks[:, row].sum(-1) == last - first + 1).all())
        expect(right, "each row runs top_k experts, or those of its ranks")


def _cpu(marks: Tensor | None) -> Tensor | None:
    return None if marks is None else marks.cpu()


def stepwise(lm: LanguageModel, prompt: Ids) -> Float[Tensor, "tokens vocab"]:
    """The reference: one sequence by itself, one token at a time, from an empty cache."""
    state = lm.prefill([()])
    return torch.stack([checked_step(lm, state, [token]).logits[0, 0] for token in prompt])
