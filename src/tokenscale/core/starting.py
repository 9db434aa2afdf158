"""How proposers begin: one cache for all prompts, equal ones prefilled once."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch

from tokenscale.core.cost import Cached, Prefill
from tokenscale.core.model import LanguageModel, State
from tokenscale.core.strategy import Rows
from tokenscale.core.unread import Logits


def start_all(lm: LanguageModel, prompts: Sequence[tuple[int, ...]]) -> tuple[State, list[Cached]]:
    """One cache for all prompts without their last tokens; equal prompts are prefilled once and forked."""
    unique = list(dict.fromkeys(prompts))
    state = lm.prefill([p[:-1] for p in unique])
    if len(unique) < len(prompts):
        places = {prompt: i for i, prompt in enumerate(unique)}
        state = state.select([places[p] for p in prompts])
    return state, cached(lm, prompts, state.prefills)


def cached(
    lm: LanguageModel,
    prompts: Sequence[tuple[int, ...]],
    prefills: Sequence[Prefill],
    sources: Sequence[Hashable] | None = None,
) -> list[Cached]:
    """What `Proposals.cached` says of one cache per sequence. `sources` tell apart caches of equal prompts."""
    names = sources if sources is not None else [""] * len(prompts)
    return [
        Cached(lm.fingerprint, lm.shape, prompt, prefill, source)
        for prompt, prefill, source in zip(prompts, prefills, names, strict=True)
    ]


def all_valid(logits: Logits) -> Rows:
    """Rows without padding."""
    return Rows.of(logits, torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device))
