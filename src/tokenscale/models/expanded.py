"""The expanded form: the n rows of a token are n sequences of a batch, over copies of transformers' own cache.

For models whose layers keep more than plain keys and values: recurrent and convolutional states,
indexed or compressed attention. A step repeats the cache n times, runs one token of batch x n
sequences, and keeps row 0's cache. The cache before the token is kept too, until the next one is
stored, since such states cannot be taken back.

Cost: n copies of the cache in a step, and two of all but keys and values between steps. A batch is
one forward per group of sequences that were prefilled together and can be padded to one length; where
the model's layers allow no padding, per length.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from tokenscale.core.cost import Prefill
from tokenscale.core.errors import CapabilityError
from tokenscale.core.model import State
from tokenscale.core.plan import Routing, RowPlan
from tokenscale.core.step import Step
from tokenscale.core.unread import in_rows
from tokenscale.models.heads import joined
from tokenscale.models.network import Network, at, left_padded, reordered
from tokenscale.models.prompt_routing import batches, kind, padded


@dataclass
class Group:
    """Sequences in one cache: `first[row]` columns of padding, `width` columns in all.

    `cache` None is empty. `before` is the cache without the last token, where a step has stored one.
    """

    cache: Cache | None
    first: list[int]
    width: int
    before: Cache | None = None
    stepped: bool = False

    def keep(self, rows: Sequence[int]) -> None:
        """Leaves the given rows, in that order; a row may be given twice."""
        if list(rows) == list(range(len(self.first))):
            return
        index = torch.tensor(rows)
        for cache in (self.cache, self.before):
            reorder(cache, index)
        share(self.before, self.cache)
        self.first = [self.first[row] for row in rows]


class ExpandedState(State):
    """Groups of sequences, and where each sequence is: (group, row)."""

    def __init__(self, groups: list[Group], places: list[tuple[int, int]], prefills: list[Prefill]) -> None:
        self.groups, self.places, self._prefills = groups, places, prefills

    @property
    def lengths(self) -> list[int]:
        return [self.groups[g].width - self.groups[g].first[row] for g, row in self.places]

    @property
    def prefills(self) -> list[Prefill]:
        return self._prefills

    def members(self) -> list[list[int]]:
        """Per group, the sequence of each row."""
        found: list[list[int]] = [[0] * len(group.first) for group in self.groups]
        for sequence, (g, row) in enumerate(self.places):
            found[g][row] = sequence
        return found

    def select(self, index: Sequence[int]) -> ExpandedState:
        rows: list[list[int]] = [[] for _ in self.groups]
        places = []
        for i in index:
            g, row = self.places[i]
            places.append((g, len(rows[g])))
            rows[g].append(row)
        kept = [g for g, picked in enumerate(rows) if picked]
        for g in kept:
            self.groups[g].keep(rows[g])
        number = {g: i for i, g in enumerate(kept)}
        places = [(number[g], row) for g, row in places]
        return ExpandedState([self.groups[g] for g in kept], places, [self._prefills[i] for i in index])

    def join(self, other: State) -> ExpandedState:
        assert isinstance(other, ExpandedState)
        behind = [(g + len(self.groups), row) for g, row in other.places]
        return ExpandedState(self.groups + other.groups, self.places + behind, self._prefills + other._prefills)


class Expanded:
    """Runs prompts and steps of one network; `pads` says whether its layers allow left padding."""

    def __init__(self, network: Network, pads: bool) -> None:
        self.network, self._pads = network, pads

    def prefill(self, prompts: Sequence[Sequence[int]], routing: Sequence[Routing] | None, most: int) -> State:
        """The caches of all prompts, at most `most` tokens a forward."""
        lengths = [len(p) for p in prompts]
        # Empty caches have no padding to hide.
        alike = [bool(length) if self._pads else length for length in lengths]
        kinds = [(kind(routing[i] if routing else None), alike[i]) for i in range(len(prompts))]
        places: list[tuple[int, int]] = [(0, 0)] * len(prompts)
        prefills: list[Prefill] = self.network.no_prefills(len(prompts))
        groups = []
        for g, members in enumerate(batches(lengths, kinds, most)):
            group, ran = self._prefill(
                [prompts[i] for i in members], [routing[i] for i in members] if routing else None
            )
            groups.append(group)
            for row, i in enumerate(members):
                places[i], prefills[i] = (g, row), ran[row]
        return ExpandedState(groups, places, prefills)

    def _prefill(self, prompts: list[Sequence[int]], routing: list[Routing] | None) -> tuple[Group, list[Prefill]]:
        network, length = self.network, max(len(p) for p in prompts)
        group = Group(None, [length - len(p) for p in prompts], length)
        if length == 0:
            return group, network.no_prefills(len(prompts))
        ids, positions, first = left_padded(prompts, network.device)
        real = torch.arange(length, device=first.device) >= first[:, None]
        plan = RowPlan(length, padded(routing, [len(p) for p in prompts]) if routing else None)
        mask = real.long() if any(group.first) else None
        with network.varied(plan) as record:
            out = network.run(network.blocks.decoder, None, ids, positions, mask)
        group.cache = getattr(out, network.cache_keyword)
        return group, network.prefills(record, real)

    def step(self, state: State, tokens: Int[Tensor, " batch"], plan: RowPlan) -> Step:
        """One forward of `plan.n` rows per group of sequences."""
        assert isinstance(state, ExpandedState)
        if plan.current_kv == "clean" and (plan.n > 1 or not plan.commit):
            raise CapabilityError(NO_CLEAN_KEYS, "leave current_kv as it is ('own')")
        members = state.members()
        if len(members) == 1 and members[0] == list(range(len(tokens))):
            return self._step(state.groups[0], tokens, plan)
        steps = [
            self._step(group, tokens[rows], reordered(plan, rows))
            for group, rows in zip(state.groups, members, strict=True)
        ]
        order = [sequence for rows in members for sequence in rows]
        return at(_joined(steps), torch.tensor(order).argsort().tolist())

    def _step(self, group: Group, tokens: Int[Tensor, " batch"], plan: RowPlan) -> Step:
        network, n, batch = self.network, plan.n, len(tokens)
        assert plan.commit or group.stepped, "no step has stored this token"
        start = group.cache if plan.commit else group.before
        device, column = network.device, group.width if plan.commit else group.width - 1
        first = torch.tensor(group.first, device=device).repeat_interleave(n)
        mask = (torch.arange(column + 1, device=device) >= first[:, None]).long() if any(group.first) else None
        cache = copied(start)
        if n > 1:
            reorder(cache, torch.arange(batch).repeat_interleave(n))
        heads = network.heads(batch, plan)
        with network.varied(plan) as record:
            ids, positions = tokens.to(device).repeat_interleave(n)[:, None], (column - first)[:, None]
            out = network.run(heads.decoder if heads else network.model, cache, ids, positions, mask)
        if plan.commit:
            cache = getattr(out, network.cache_keyword)
            if n > 1:
                reorder(cache, torch.arange(batch) * n)
            share(start, cache)
            group.before, group.cache, group.width, group.stepped = start, cache, column + 1, True
        logits = network.logits(out, heads)
        return network.step(logits if plan.early_layers else in_rows(logits, n), record, plan)


NO_CLEAN_KEYS = "in the expanded form every row has a cache of its own, so none sees the clean row's key"


def copied(cache: Cache | None) -> Cache | None:
    """A cache that can be run without a trace in the given one. Keys are shared; states, kept in dicts, are not."""
    if cache is None:
        return None
    new = copy.copy(cache)
    for name, value in vars(cache).items():
        if isinstance(value, list):
            setattr(new, name, list(value))
    new.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in new.layers:
        for name, value in vars(layer).items():
            if isinstance(value, dict):
                setattr(layer, name, {k: v.clone() if isinstance(v, Tensor) else v for k, v in value.items()})
    return new


def reorder(cache: Cache | None, index: Int[Tensor, " rows"]) -> None:
    """Leaves the given rows. States that a cache keeps beside its layers (MiniMax) are left out by transformers."""
    if cache is None:
        return
    cache.reorder_cache(index)
    for value in vars(cache).values():
        if isinstance(value, list) and value is not cache.layers:
            value[:] = [v.index_select(0, index.to(v.device)) if isinstance(v, Tensor) else v for v in value]


def share(before: Cache | None, after: Cache | None) -> None:
    """Keys and values without the last token become views of those with it, so that one copy is held."""
    if before is None or after is None:
        return
    for old, new in zip(before.layers, after.layers, strict=True):
        appends = isinstance(old, DynamicLayer) and not isinstance(old, DynamicSlidingWindowLayer)
        if appends and old.is_initialized and old.keys.numel():
            old.keys, old.values = new.keys[..., :-1, :], new.values[..., :-1, :]


def _joined(steps: Sequence[Step]) -> Step:
    def together(parts: Any) -> Tensor | None:
        kept = [part for part in parts if part is not None]
        return torch.cat(kept) if kept else None

    return Step.of(
        joined([s.held for s in steps]),
        together(s.experts for s in steps),
        together(s.changed for s in steps),
        together(s.noisy for s in steps),
    )
