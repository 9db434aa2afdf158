"""A cache per row: what every row's own experts made of the text is what this row goes on from."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tokenscale.core.cost import Cached
from tokenscale.core.model import LanguageModel, State
from tokenscale.core.noise import RowNoiseReader, Stream
from tokenscale.core.plan import PLAIN, Routing, RowPlan
from tokenscale.core.starting import cached, start_all
from tokenscale.core.step import Step, Work
from tokenscale.core.strategy import Proposals, Rows
from tokenscale.core.unread import ALL, cut, in_rows
from tokenscale.token_level.one_cache import check_room, fresh, picked
from tokenscale.token_level.roe_noise import RoutingNoise, as_sequences


class PrivateCacheProposals(Proposals):
    """n caches per sequence, one a row. `state` holds them all, those of the first sequence first.

    `noise` moves what the rows' tokens choose (None: nothing does); `readers` has its numbers, per
    sequence. `clean_first`: where the last token of the prompt is fed, no noise is used and row 0 alone
    counts.
    """

    def __init__(
        self,
        lm: LanguageModel,
        state: State,
        cached: Sequence[tuple[Cached, ...]],
        noise: RoutingNoise | None = None,
        readers: Sequence[RowNoiseReader] = (),
        clean_first: bool = False,
    ) -> None:
        self._lm, self._noise, self._state = lm, noise, state
        self._cached, self._readers, self._clean_first = list(cached), list(readers), clean_first
        self._n = len(self._cached[0])

    def propose(self, tokens: Int[Tensor, " batch"]) -> tuple[Rows, tuple[Work, ...]]:
        n, positions = self._n, self.lengths
        check_room(self._lm, self._state.lengths)
        first = fresh(positions, [caches[0] for caches in self._cached])
        clean = torch.tensor([one and self._clean_first for one in first])
        plan = PLAIN if self._noise is None else RowPlan(1, self._routing(self._noise, positions, clean))
        step = self._lm.step(self._state, self._fed(tokens, first), plan)
        valid = torch.arange(n) < torch.where(clean, 1, n)[:, None]
        works = tuple(_row(step, row, n).work(self._lm.shape, valid[:, row, None]) for row in range(n))
        logits = in_rows(step.held, n)
        return Rows.of(logits, valid.to(logits.device)), works

    def _fed(self, tokens: Int[Tensor, " batch"], first: Sequence[bool]) -> Int[Tensor, " caches"]:
        """The tokens of all caches: first the last one of its own prompt, which may not be the other rows'."""
        rows = zip(tokens.tolist(), first, self._cached, strict=True)
        return torch.tensor([c.prompt[-1] if own else token for token, own, caches in rows for c in caches])

    def _routing(self, noise: RoutingNoise, positions: Sequence[int], clean: Bool[Tensor, " batch"]) -> Routing:
        routing = as_sequences(noise.step(self._readers, positions))
        if not clean.any():
            return routing
        assert routing.noisy is not None
        return replace(routing, noisy=routing.noisy & ~clean.repeat_interleave(self._n)[:, None])

    @property
    def cached(self) -> list[tuple[Cached, ...]]:
        return self._cached

    @property
    def lengths(self) -> list[int]:
        return self._state.lengths[:: self._n]

    def select(self, index: Sequence[int]) -> PrivateCacheProposals:
        state = self._state.select([self._n * i + row for i in index for row in range(self._n)])
        caches, readers = picked(self._cached, index), picked(self._readers, index)
        return PrivateCacheProposals(self._lm, state, caches, self._noise, readers, self._clean_first)

    def join(self, other: Proposals) -> PrivateCacheProposals:
        assert isinstance(other, PrivateCacheProposals)
        state, caches = self._state.join(other._state), self._cached + other._cached
        readers = self._readers + other._readers
        return PrivateCacheProposals(self._lm, state, caches, self._noise, readers, self._clean_first)


def _row(step: Step, row: int, n: int) -> Step:
    """What one row of every sequence ran, of a step in which rows are sequences."""
    experts, changed, noisy = (
        None if marks is None else marks[row::n] for marks in (step.experts, step.changed, step.noisy)
    )
    return Step.of(cut(step.held, slice(row, None, n), ALL), experts, changed, noisy)


def start_copies(
    lm: LanguageModel, prompts: Sequence[tuple[int, ...]], n: int
) -> tuple[State, list[tuple[Cached, ...]]]:
    """n caches of every prompt from one clean prefill, which they share."""
    return start_variants(lm, [[prompt] * n for prompt in prompts])


def start_variants(
    lm: LanguageModel, variants: Sequence[Sequence[tuple[int, ...]]]
) -> tuple[State, list[tuple[Cached, ...]]]:
    """For every sequence a cache of each of its prompts; equal ones are prefilled once."""
    state, caches = start_all(lm, [prompt for several in variants for prompt in several])
    return state, _by_sequence(caches, len(variants[0]))


def start_noisy(
    lm: LanguageModel,
    prompts: Sequence[tuple[int, ...]],
    streams: Sequence[Stream],
    noise: RoutingNoise,
    readers: Sequence[RowNoiseReader],
) -> tuple[State, list[tuple[Cached, ...]]]:
    """A cache per row of every prompt, whose tokens choose their experts with the row's noise.

    Clean rows of equal prompts are prefilled once; noisy rows share nothing.
    """
    n = noise.clean + noise.rows
    routings: dict[tuple[tuple[int, ...], Hashable], Routing] = {}
    wanted = []
    for prompt, stream, reader in zip(prompts, streams, readers, strict=True):
        sources = noisy_sources(stream, noise.clean, n)
        for source, routing in zip(sources, noise.prompt(reader, len(prompt) - 1), strict=True):
            routings.setdefault((prompt, source), routing)
            wanted.append((prompt, source))
    state = lm.prefill([prompt[:-1] for prompt, _ in routings], list(routings.values()))
    if len(routings) < len(wanted):
        places = {one: i for i, one in enumerate(routings)}
        state = state.select([places[one] for one in wanted])
    sources = [source for _, source in wanted]
    return state, _by_sequence(cached(lm, [prompt for prompt, _ in wanted], state.prefills, sources), n)


def noisy_sources(stream: Stream, clean: int, n: int) -> list[Hashable]:
    """What tells apart the caches of a sequence's rows, of which the first `clean` have no noise."""
    return ["" if row < clean else (*stream.path, row) for row in range(n)]


def _by_sequence(caches: Sequence[Cached], n: int) -> list[tuple[Cached, ...]]:
    return [tuple(caches[i : i + n]) for i in range(0, len(caches), n)]
