"""The suite for decoders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from tokenscale.core.strategy import Choice, Decoder
from tokenscale.testing.expect import check_stage, expect


@dataclass(frozen=True)
class Case:
    """One example: as many groups and beams as one call of `choose` may get."""

    log_probs: Float[Tensor, "group width vocab"]
    scores: Float[Tensor, "group width"]
    uniforms: Float64[Tensor, " group"]


def check_decoder(decoder: Decoder, *, examples: int = 100) -> None:
    """What `Decoder.choose` promises, on generated distributions, some of whose tokens are impossible.

    Every beam has at least `width` possible tokens. Raises AssertionError.
    """
    from hypothesis import given, settings

    check_stage(decoder)
    expect(decoder.width >= 1, "width is at least 1")
    _check_randomness(decoder)

    @settings(max_examples=examples, deadline=None)
    @given(_cases(decoder.width))
    def search(case: Case) -> None:
        choice = _choose(decoder, case)
        _check_shapes(decoder, case, choice)
        _check_tokens(case, choice)
        _check_independence(decoder, case, choice)

    search()


def _choose(decoder: Decoder, case: Case) -> Choice:
    return decoder.choose(case.log_probs, case.scores, case.uniforms if decoder.random else None)


def _check_randomness(decoder: Decoder) -> None:
    flat = torch.full((2, 1, 64), 1 / 64).log()
    choice = _choose(decoder, Case(flat, torch.zeros(2, 1), torch.tensor([0.01, 0.99], dtype=torch.float64)))
    same = torch.equal(choice.tokens[0], choice.tokens[1])
    expect(same != decoder.random, "`random` says whether the choice depends on the uniform number")


def _check_shapes(decoder: Decoder, case: Case, choice: Choice) -> None:
    groups, width, vocab = case.log_probs.shape
    kept = choice.tokens.shape[-1]
    expect(choice.parents.shape == choice.tokens.shape == (groups, kept), "parents and tokens are [group, width]")
    expect(1 <= kept <= decoder.width, f"at most {decoder.width} beams go on")
    expect(not choice.tokens.is_floating_point() and not choice.parents.is_floating_point(), "integers")
    expect(bool(((choice.parents >= 0) & (choice.parents < width)).all()), "parents are beams of the group")
    expect(bool(((choice.tokens >= 0) & (choice.tokens < vocab)).all()), "tokens are in the vocabulary")
    expect(choice.margin.shape == (groups,) and bool((choice.margin >= 0).all()), "one margin per group, not negative")


def _check_tokens(case: Case, choice: Choice) -> None:
    for group, (parents, tokens) in enumerate(zip(choice.parents.tolist(), choice.tokens.tolist(), strict=True)):
        pairs = list(zip(parents, tokens, strict=True))
        expect(len(set(pairs)) == len(pairs), "no beam is chosen twice")
        possible = all(case.log_probs[group, parent, token] > float("-inf") for parent, token in pairs)
        expect(possible, "no impossible token is chosen")


def _check_independence(decoder: Decoder, case: Case, choice: Choice) -> None:
    before = case.log_probs.clone()
    again = _choose(decoder, case)
    expect(torch.equal(again.tokens, choice.tokens) and torch.equal(again.margin, choice.margin), "the same twice")
    expect(torch.equal(case.log_probs, before), "nothing is changed in place")
    for group in range(len(case.log_probs)):
        one = slice(group, group + 1)
        alone = _choose(decoder, Case(case.log_probs[one], case.scores[one], case.uniforms[one]))
        same = torch.equal(alone.tokens, choice.tokens[one]) and torch.equal(alone.parents, choice.parents[one])
        expect(same, "a group's choice does not depend on the other groups")


def _cases(most_beams: int) -> Any:
    """A hypothesis strategy for cases."""
    from hypothesis import strategies as st
    from hypothesis.extra.numpy import arrays

    @st.composite
    def cases(draw: Any) -> Case:
        groups, width = draw(st.integers(1, 4)), draw(st.integers(1, most_beams))
        vocab = draw(st.integers(max(2, most_beams), most_beams + 10))
        logits = draw(arrays(np.float32, (groups, width, vocab), elements=st.floats(-20, 20, width=32)))
        impossible = draw(arrays(np.bool_, (groups, width, vocab)))
        impossible[:, :, :most_beams] = False
        turn = draw(st.integers(0, vocab - 1))
        logits = np.roll(np.where(impossible, np.float32(-np.inf), logits), turn, axis=-1)
        scores = draw(arrays(np.float32, (groups, width), elements=st.floats(-50, 0, width=32)))
        uniforms = draw(arrays(np.float64, groups, elements=st.floats(0, 1, exclude_max=True)))
        log_probs = torch.log_softmax(torch.from_numpy(logits), -1)
        return Case(log_probs, torch.from_numpy(scores), torch.from_numpy(uniforms))

    return cases()
