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

IMPOSSIBLE = float("-inf")


@dataclass(frozen=True)
class Case:
    """One example: as many groups and beams as one call of `choose` may get."""

    log_probs: Float[Tensor, "group width vocab"]
    scores: Float[Tensor, "group width"]
    uniforms: Float64[Tensor, " group"]
    parts: tuple[int, ...] = (0,)
    endings: int = 1

    def alone(self, group: int) -> Case:
        """One of its groups by itself."""
        one = slice(group, group + 1)
        return Case(self.log_probs[one], self.scores[one], self.uniforms[one], self.parts, self.endings)


def check_decoder(decoder: Decoder, *, examples: int = 100) -> None:
    """What `Decoder.choose` promises, on generated distributions, some of whose tokens are impossible.

    Every beam has at least `width` possible tokens. Raises AssertionError.
    """
    from hypothesis import given, settings

    check_stage(decoder)
    _check_sizes(decoder)
    _check_randomness(decoder)
    _check_ranks(decoder)

    @settings(max_examples=examples, deadline=None)
    @given(_cases(decoder))
    def search(case: Case) -> None:
        choice = _choose(decoder, case)
        _check_shapes(decoder, case, choice)
        _check_tokens(decoder, case, choice)
        _check_candidates(decoder, case, choice)
        _check_independence(decoder, case, choice)

    search()


def _choose(decoder: Decoder, case: Case) -> Choice:
    uniforms = case.uniforms if decoder.random else None
    return decoder.choose(case.log_probs, case.scores, uniforms, case.parts, case.endings)


def _check_sizes(decoder: Decoder) -> None:
    expect(decoder.width >= 1, "width is at least 1")
    expect(decoder.parts >= 1 and decoder.width % decoder.parts == 0, "parts are of equal width")
    expect(1 <= decoder.num_return <= decoder.width, "num_return is at least 1, and at most width")


def _check_randomness(decoder: Decoder) -> None:
    flat = torch.full((2, 1, 64), 1 / 64).log()
    root = (0,) if decoder.parts == 1 else (-1,)
    choice = _choose(decoder, Case(flat, torch.zeros(2, 1), torch.tensor([0.01, 0.99], dtype=torch.float64), root))
    same = torch.equal(choice.tokens[0], choice.tokens[1])
    expect(same != decoder.random, "`random` says whether the choice depends on the uniform number")


def _check_ranks(decoder: Decoder) -> None:
    ranks = [decoder.rank(score, 5) for score in (-9.0, -3.0, -0.5)]
    expect(ranks == sorted(ranks), "of texts of one length, the one of the higher score ranks above")
    expect(decoder.settled([], -1.0, 1, 9) is False, "a part goes on while no text is finished")


def _check_shapes(decoder: Decoder, case: Case, choice: Choice) -> None:
    groups, width, vocab = case.log_probs.shape
    kept = choice.tokens.shape[-1]
    expect(choice.parents.shape == choice.tokens.shape == (groups, kept), "parents and tokens are [group, candidates]")
    expect(kept >= 1 and kept % decoder.parts == 0, "every part has as many candidates")
    if not (decoder.ranks or decoder.width > 1):
        expect(kept == 1, "a decoder of one beam without ranks takes one token")
    expect(not choice.tokens.is_floating_point() and not choice.parents.is_floating_point(), "integers")
    expect(bool(((choice.parents >= 0) & (choice.parents < width)).all()), "parents are beams of the group")
    expect(bool(((choice.tokens >= 0) & (choice.tokens < vocab)).all()), "tokens are in the vocabulary")
    expect(choice.margin.shape == (groups,) and bool((choice.margin >= 0).all()), "one margin per group, not negative")


def _check_tokens(decoder: Decoder, case: Case, choice: Choice) -> None:
    share = choice.tokens.shape[-1] // decoder.parts
    for group, (parents, tokens) in enumerate(zip(choice.parents.tolist(), choice.tokens.tolist(), strict=True)):
        scores = [0.0] * len(tokens) if choice.scores is None else choice.scores[group].tolist()
        real = [place for place, score in enumerate(scores) if score > IMPOSSIBLE]
        expect(len(real) >= 1, "there is a candidate")
        taken = {(place // share, parents[place], tokens[place]) for place in real}
        expect(len(taken) == len(real), "no beam is chosen twice")
        possible = all(case.log_probs[group, parents[place], tokens[place]] > IMPOSSIBLE for place in real)
        expect(possible, "no impossible token is chosen")


def _check_candidates(decoder: Decoder, case: Case, choice: Choice) -> None:
    """Scores fall from candidate to candidate, and a part's candidates continue its own beams."""
    share = choice.tokens.shape[-1] // decoder.parts
    for part in range(decoder.parts):
        own = slice(part * share, (part + 1) * share)
        owners = {owner for place in choice.parents[:, own].flatten().tolist() if (owner := case.parts[place]) != -1}
        if choice.scores is None:
            expect(owners <= {part}, "a part's candidates continue its own beams")
            continue
        scores = choice.scores[:, own]
        expect(not bool(scores.isnan().any()), "no score is NaN")
        expect(bool((scores[:, :-1] >= scores[:, 1:]).all()), "a part's candidates come best first")
        real = choice.parents[:, own][scores > IMPOSSIBLE].tolist()
        expect({case.parts[place] for place in real} <= {part, -1}, "a part's candidates continue its own beams")


def _check_independence(decoder: Decoder, case: Case, choice: Choice) -> None:
    before = case.log_probs.clone()
    again = _choose(decoder, case)
    expect(torch.equal(again.tokens, choice.tokens) and torch.equal(again.margin, choice.margin), "the same twice")
    expect(torch.equal(case.log_probs, before), "nothing is changed in place")
    for group in range(len(case.log_probs)):
        one = slice(group, group + 1)
        alone = _choose(decoder, case.alone(group))
        same = torch.equal(alone.tokens, choice.tokens[one]) and torch.equal(alone.parents, choice.parents[one])
        expect(same, "a group's choice does not depend on the other groups")


def _cases(decoder: Decoder) -> Any:
    """A hypothesis strategy for cases."""
    from hypothesis import strategies as st
    from hypothesis.extra.numpy import arrays

    most = decoder.width

    @st.composite
    def owners(draw: Any) -> tuple[int, ...]:
        """The parts of the beams: of the root, or of as many beams as may live in each part."""
        if decoder.parts == 1:
            return tuple([0] * draw(st.integers(1, most)))
        live = draw(st.lists(st.integers(0, most // decoder.parts), min_size=decoder.parts, max_size=decoder.parts))
        owned: list[int] = [part for part, beams in enumerate(live) for _ in range(beams)]
        return tuple(owned or [-1])

    @st.composite
    def cases(draw: Any) -> Case:
        groups, parts = draw(st.integers(1, 4)), draw(owners())
        width, vocab = len(parts), draw(st.integers(max(2, most), most + 10))
        logits = draw(arrays(np.float32, (groups, width, vocab), elements=st.floats(-20, 20, width=32)))
        impossible = draw(arrays(np.bool_, (groups, width, vocab)))
        impossible[:, :, :most] = False
        turn = draw(st.integers(0, vocab - 1))
        logits = np.roll(np.where(impossible, np.float32(IMPOSSIBLE), logits), turn, axis=-1)
        scores = draw(arrays(np.float32, (groups, width), elements=st.floats(-50, 0, width=32)))
        uniforms = draw(arrays(np.float64, groups, elements=st.floats(0, 1, exclude_max=True)))
        log_probs = torch.log_softmax(torch.from_numpy(logits), -1)
        endings = draw(st.integers(1, 3))
        return Case(log_probs, torch.from_numpy(scores), torch.from_numpy(uniforms), parts, endings)

    return cases()
