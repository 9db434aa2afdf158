"""The sequential reference: one row after the other, one token after the other, from the formulas, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import norm

from tokenscale.core.noise import ROUTING_DOMAIN, RowNoiseReader, Stream
from tokenscale.core.strategy import TokenProposer
from tokenscale.models.toy import ToyModel
from tokenscale.token_level.roe import RoE

LM = ToyModel(("a", "b", "1"), spelling="", moe_layers=4, experts=7, top_k=3, width=6, context_length=40, sharpness=2.0)
STREAM = Stream((0, "token level"))
PROMPT, FOLLOW = (1, 2, 3, 1), (2, 3, 3)


class Choice:
    """How one row of one token chooses: S + tau G among a pool behind a head, and where gates come from."""

    def __init__(self, roe: RoE, noise: np.ndarray) -> None:
        self.roe, self.noise = roe, noise

    def choose(self, scores: np.ndarray, level: int, top_k: int) -> tuple[Any, np.ndarray]:
        tau = self.roe.taus(LM.shape.moe_layers)[level]
        ranked = sorted(range(len(scores)), key=lambda e: -scores[e])
        if tau == 0:
            return np.array(ranked[:top_k]), scores
        base = np.zeros_like(scores) if self.roe.noise == "uniform-experts" else scores
        moved = base + tau * self.noise[level]
        keep, pool = self.roe.keep_head or 0, self.roe.candidate_pool or len(scores)
        drawn = sorted(ranked[keep:pool], key=lambda e: -moved[e])[: top_k - keep]
        return np.array(ranked[:keep] + drawn), moved if self.roe.weights == "perturbed" else scores


def noise(roe: RoE, position: int, row: int, lm: ToyModel = LM, stream: Stream = STREAM) -> np.ndarray:
    """Noise of strength 1 of sample `row` >= 1, [layers, experts]."""
    size = (lm.shape.moe_layers, lm.shape.experts)
    uniforms = RowNoiseReader(stream, ROUTING_DOMAIN, max(roe.n - 1, 1), *size).at(position).astype(np.float64)
    if roe.noise == "gaussian":
        return np.asarray(norm.ppf(uniforms[row - 1] + 2.0**-25)) * math.pi / math.sqrt(6)
    mine = uniforms[row - 1]
    if roe.noise == "antithetic":
        mine = uniforms[(row - 1) // 2]
        mine = 1 - 2.0**-24 - mine if row % 2 == 0 else mine
    return -np.log(-np.log1p(-mine))


def roe_rows(
    roe: RoE, prompt: Sequence[int] = PROMPT, follow: Sequence[int] = FOLLOW, stream: Stream = STREAM
) -> list[np.ndarray]:
    """Logits of the samples that count, for the token after the prompt and after each token that follows."""
    private = roe.cache == "private"
    pasts = [np.zeros((0, LM.layers, LM.hidden_size)) for _ in range(roe.n if private else 1)]
    found = []
    for position, token in enumerate((*prompt, *follow)):
        in_prompt, last = position < len(prompt) - 1, position == len(prompt) - 1
        clean = (in_prompt and roe.prefill == "clean") or (last and roe.first_token == "clean")
        passes = []
        for row in range(roe.n):
            choice = Choice(roe, noise(roe, position, row, stream=stream)) if row > 0 and not clean else None
            seen = passes[0].keys if row > 0 and roe.current_kv == "clean" else None
            past = pasts[row if private else 0]
            passes.append(LM._forward(past, token, choice, None, seen))  # type: ignore[arg-type]
        pasts = [np.concatenate([past, passes[i].keys[None]]) for i, past in enumerate(pasts)]
        if not in_prompt:
            counted = passes[:1] if last and roe.first_token == "clean" else passes
            found.append(np.array([LM._logits(p.hidden[-1]) for p in counted]))
    return found


def proposed(
    proposer: TokenProposer,
    lm: ToyModel = LM,
    prompt: Sequence[int] = PROMPT,
    follow: Sequence[int] = FOLLOW,
    stream: Stream = STREAM,
) -> list[np.ndarray]:
    """The valid rows that a proposer gives for the same text."""
    proposals = proposer.start(lm, [tuple(prompt)], [stream])
    found = []
    for token in (prompt[-1], *follow):
        rows, _ = proposals.propose(torch.tensor([token]))
        found.append(rows.logits[0, rows.valid[0]].numpy())
    return found


def assert_same(found: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    """Equal up to the rounding of float32 logits."""
    assert [f.shape for f in found] == [w.shape for w in wanted]
    for mine, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(mine, other, rtol=0, atol=1e-5)


def plain_rows(
    run: Callable[[np.ndarray, int], Any], prompt: Sequence[int] = PROMPT, follow: Sequence[int] = FOLLOW
) -> list[np.ndarray]:
    """Logits of one row with a cache of its own, every token run by `run(past, token)`."""
    past, found = np.zeros((0, LM.layers, LM.hidden_size)), []
    for position, token in enumerate((*prompt, *follow)):
        one = run(past, token)
        past = np.concatenate([past, one.keys[None]])
        if position >= len(prompt) - 1:
            found.append(LM._logits(one.hidden[-1])[None])
    return found
