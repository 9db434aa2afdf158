"""The toy model's tables, its caches, and how a token chooses its experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tokenscale.core.cost import Prefill
from tokenscale.core.errors import ModelError
from tokenscale.core.model import State
from tokenscale.core.plan import Routing
from tokenscale.core.shape import ModelShape

Array = NDArray[np.float64]
Marks = NDArray[np.bool_]


class Weights(NamedTuple):
    """The seeded tables, float64. Levels are the MoE layers and one more."""

    embed: Array  # vocab width
    keys: Array  # levels width width
    router: Array  # moe_layers width experts
    expert: Array  # moe_layers experts width width
    unembed: Array  # width vocab


class Pass(NamedTuple):
    """One token's way through the model in one row."""

    keys: Array  # levels width
    experts: Marks  # moe_layers experts
    changed: Marks  # moe_layers
    hidden: Array  # levels width: the residual stream behind every level


@dataclass(frozen=True)
class Choosing:
    """How one token chooses its experts: a row of a `Routing`."""

    noise: Array  # moe_layers experts
    noisy: Marks  # moe_layers
    rule: Routing
    ranks: tuple[int, int] | None

    @classmethod
    def of(cls, routing: Routing, batch: int, row: int, layers: int, experts: int) -> Choosing:
        """Row `row` of sequence `batch`."""
        ranks = routing.ranks[row] if routing.ranks else None
        if routing.noise is None or routing.noisy is None:
            return cls(np.zeros((layers, experts)), np.zeros(layers, np.bool_), routing, ranks)
        noise, noisy = routing.noise[:, batch, row], routing.noisy[:, batch, row]
        return cls(noise.double().numpy(), noisy.numpy(), routing, ranks)

    def choose(self, scores: Array, level: int, top_k: int) -> tuple[NDArray[np.intp], Array]:
        """The experts of one MoE layer, and the logits that their gate weights are made of."""
        order = np.argsort(-scores, kind="stable")
        if self.ranks is not None:
            return order[self.ranks[0] - 1 : self.ranks[1]], scores
        if not self.noisy[level]:
            return order[:top_k], scores
        moved = self.noise[level] + (0 if self.rule.noise_on == "nothing" else scores)
        head, pool = order[: self.rule.keep_head], order[self.rule.keep_head : self.rule.candidate_pool]
        drawn = pool[np.argsort(-moved[pool], kind="stable")][: top_k - len(head)]
        return np.concatenate([head, drawn]), moved if self.rule.weights == "perturbed" else scores


@dataclass
class ToySequence:
    """One sequence's cache: the keys of its tokens, [tokens, levels, width], never changed in place."""

    past: Array
    prefill: Prefill


class ToyState(State):
    """Caches, one per sequence. A state that was given away by `select` or `join` refuses further use."""

    def __init__(self, sequences: list[ToySequence]) -> None:
        self._sequences: list[ToySequence] | None = sequences

    @property
    def sequences(self) -> list[ToySequence]:
        if self._sequences is None:
            raise ModelError("this state was given away by select or join", "use the state that they returned")
        return self._sequences

    def _give_away(self) -> list[ToySequence]:
        sequences, self._sequences = self.sequences, None
        return sequences

    @property
    def lengths(self) -> list[int]:
        return [len(s.past) for s in self.sequences]

    @property
    def prefills(self) -> list[Prefill]:
        return [s.prefill for s in self.sequences]

    def select(self, index: Sequence[int]) -> ToyState:
        sequences = self._give_away()
        return ToyState([ToySequence(sequences[i].past, sequences[i].prefill) for i in index])

    def join(self, other: State) -> ToyState:
        assert isinstance(other, ToyState)
        return ToyState(self._give_away() + other._give_away())


def softmax(scores: Array) -> Array:
    powers = np.exp(scores - scores.max())
    shares: Array = powers / powers.sum()
    return shares


def random_weights(vocab: int, moe_layers: int, experts: int, width: int, seed: int) -> Weights:
    random = np.random.default_rng(seed)
    return Weights(
        embed=random.normal(size=(vocab, width)),
        keys=random.normal(size=(moe_layers + 1, width, width)) / np.sqrt(width),
        router=random.normal(size=(moe_layers, width, experts)) / np.sqrt(width),
        expert=random.normal(size=(moe_layers, experts, width, width)) * (2 / np.sqrt(width)),
        unembed=random.normal(size=(width, vocab)) / np.sqrt(width),
    )


def toy_shape(weights: Weights, top_k: int) -> ModelShape:
    width, levels = len(weights.unembed), len(weights.keys)
    moe_layers, experts = weights.router.shape[0], weights.router.shape[2]
    dense = weights.keys.size + weights.router.size
    return ModelShape(
        dense_flops=2.0 * dense,
        head_flops=2.0 * weights.unembed.size,
        expert_flops=2.0 * width * width * top_k * moe_layers,
        attention=((4.0 * width * levels, None),),
        dense_bytes=8.0 * dense,
        head_bytes=8.0 * weights.unembed.size,
        expert_bytes=8.0 * width * width,
        kv_bytes=8.0 * width * levels,
        moe_layers=moe_layers,
        experts=experts if moe_layers else 0,
        top_k=top_k if moe_layers else 0,
    )
