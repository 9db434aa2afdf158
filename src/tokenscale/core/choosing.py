"""What every search of a batch takes next: decoders are asked once a step for all searches that are alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tokenscale.core.group import Group, Ranked
from tokenscale.core.noise import read_uniforms
from tokenscale.core.strategy import Choice, Decoder


def choose(
    groups: Sequence[Group],
    allowed: Float[Tensor, "beams vocab"],
    log_probs: Float[Tensor, "beams vocab"],
    endings: int,
) -> list[Ranked]:
    """What every group takes of what its beams are `allowed`; groups of one decoder and like beams together."""
    kinds: dict[tuple[Decoder, tuple[int, ...]], list[tuple[int, int]]] = {}
    start = 0
    for place, group in enumerate(groups):
        kinds.setdefault((group.decoder, group.parts), []).append((place, start))
        start += len(group.beams)
    chosen: dict[int, Ranked] = {}
    for (decoder, parts), members in kinds.items():
        choice = _alike(groups, decoder, parts, members, allowed, endings)
        count = len(members)
        scores = choice.scores.tolist() if choice.scores is not None else [None] * count
        places = torch.tensor([[start] for _, start in members]) + choice.parents
        taken = log_probs[places, choice.tokens].tolist()
        lists = (choice.parents.tolist(), choice.tokens.tolist(), taken, scores, choice.margin.tolist())
        chosen.update((place, Ranked(*f)) for (place, _), f in zip(members, zip(*lists, strict=True), strict=True))
    return [chosen[place] for place in range(len(groups))]


def _alike(
    groups: Sequence[Group],
    decoder: Decoder,
    parts: tuple[int, ...],
    members: list[tuple[int, int]],
    allowed: Float[Tensor, "beams vocab"],
    endings: int,
) -> Choice:
    some, width = [groups[place] for place, _ in members], len(parts)
    if len(members) * width == len(allowed):
        log_probs = allowed
    else:
        log_probs = allowed[[start + w for _, start in members for w in range(width)]]
    uniforms = None
    if decoder.random:
        readers = [group.uniforms for group in some if group.uniforms is not None]
        uniforms = read_uniforms(readers, [group.beams[0].position for group in some])
    scores = torch.tensor([group.scores for group in some]) if some[0].ranked else torch.zeros(len(some), width)
    return decoder.choose(log_probs.view(len(some), width, -1), scores, uniforms, parts, endings)
