"""Prompts that are prefilled together: which may be, and their routings in one."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

import torch

from tokenscale.core.plan import Routing


def batches(lengths: Sequence[int], kinds: Sequence[Hashable], most: int) -> list[list[int]]:
    """Prompts of one kind together, from short to long, at most `most` tokens a batch, padding included."""
    found: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        room = [b for b in found if kinds[b[0]] == kinds[index] and (len(b) + 1) * lengths[index] <= most]
        if room:
            room[-1].append(index)
        else:
            found.append([index])
    return [sorted(batch) for batch in found]


def kind(routing: Routing | None) -> Hashable:
    """Equal for routings that one forward can run: ranks that vary with the position allow no padding."""
    if routing is None:
        return None
    ranks = routing.ranks[:1] if len(set(routing.ranks)) == 1 else routing.ranks
    drawn = routing.noise is None
    return drawn, routing.noise_on, routing.weights, routing.keep_head, routing.candidate_pool, ranks


def padded(routings: Sequence[Routing], lengths: Sequence[int]) -> Routing:
    """Routings of one kind as that of a batch of left-padded prompts. Padding is not noisy."""
    one, longest = routings[0], max(lengths)
    ranks = one.ranks[:1] * longest if len(set(one.ranks)) == 1 else one.ranks
    if one.noise is None:
        return replace(one, ranks=ranks)
    layers, _, _, experts = one.noise.shape
    noise = torch.zeros(layers, len(routings), longest, experts)
    noisy = torch.zeros(layers, len(routings), longest, dtype=torch.bool)
    for b, (routing, length) in enumerate(zip(routings, lengths, strict=True)):
        assert routing.noise is not None
        assert routing.noisy is not None
        noise[:, b, longest - length :] = routing.noise[:, 0]
        noisy[:, b, longest - length :] = routing.noisy[:, 0]
    return replace(one, noise=noise, noisy=noisy, ranks=ranks)


def end_to_end(routings: Sequence[Routing]) -> Routing:
    """Routings of one kind as that of one sequence in which their prompts stand one behind the other."""
    one = routings[0]
    ranks = tuple(rank for routing in routings for rank in routing.ranks)
    if one.noise is None:
        return replace(one, ranks=ranks)
    noise, noisy = [], []
    for routing in routings:
        assert routing.noise is not None
        assert routing.noisy is not None
        noise.append(routing.noise)
        noisy.append(routing.noisy)
    return replace(one, noise=torch.cat(noise, 2), noisy=torch.cat(noisy, 2), ranks=ranks)
