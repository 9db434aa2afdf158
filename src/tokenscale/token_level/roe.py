"""RoE, Roster of Experts: several routings of one token, averaged (Zibakhsh et al. 2025, arXiv 2509.17238).

The names are the paper's: R the router logits of a layer, G Gumbel noise, tau its scale, n the
samples of a token. Sample 0 is clean, and its keys and values are the only ones that are kept (the
clean cache), so memory is that of one sample and a prompt's cache does not depend on the noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from tokenscale.core.cost import Cached
from tokenscale.core.data import RoutingStats
from tokenscale.core.errors import ArgumentError, CapabilityError, at_least, finite
from tokenscale.core.model import ROUTING_NOISE, LanguageModel, State
from tokenscale.core.noise import ROUTING_DOMAIN, RowNoiseReader, Stream, gumbel
from tokenscale.core.plan import Routing, RowPlan
from tokenscale.core.step import Work
from tokenscale.core.strategy import Aggregator, Proposals, Rows, TokenProposer, all_valid, start_all
from tokenscale.token_level.aggregators import MeanProbability
from tokenscale.token_level.plain import Plain


@dataclass(frozen=True)
class RoE(TokenProposer):
    """n samples of every token: in MoE layer l, sample i > 0 runs the experts TopK(R + tau_l G, k).

    G is Gumbel(0, 1), drawn per expert, sample, token and layer; gate weights come from R, and each
    sample sees its own key and value of the current token. `tau` is one number for all MoE layers,
    or a tuple of one per MoE layer; the first and the last `clean_layers` of them are never noisy.
    n = 1 or tau = 0 is the model itself. Noise is a function of (stream, position of the token that
    is fed, layer, sample, expert), so the samples of n = 4 are the first four of n = 8.
    Cost: n rows per token in one forward; see `Cost` for what the experts add.
    """

    n: int
    tau: float | tuple[float, ...] = 0.3
    clean_layers: int = 1

    needs: ClassVar[frozenset[str]] = frozenset({ROUTING_NOISE})

    def __post_init__(self) -> None:
        at_least("RoE", "n", self.n, 1)
        at_least("RoE", "clean_layers", self.clean_layers, 0)
        several = isinstance(self.tau, list | tuple)
        if several and not self.tau:
            raise ArgumentError("RoE(tau=()): tau is empty", "write tau=0.3, or one number per MoE layer")
        taus = tuple(_checked(tau) for tau in self._given)
        object.__setattr__(self, "tau", taus if several else taus[0])

    @property
    def random(self) -> bool:
        return self.n > 1 and any(self._given)

    @property
    def _given(self) -> tuple[float, ...]:
        return tuple(self.tau) if isinstance(self.tau, list | tuple) else (self.tau,)

    @property
    def default_aggregator(self) -> Aggregator:
        return MeanProbability()

    def taus(self, moe_layers: int) -> tuple[float, ...]:
        """tau of every MoE layer, the clean ones being 0."""
        given = self.tau if isinstance(self.tau, tuple) else self._given * moe_layers
        noisy = range(self.clean_layers, moe_layers - self.clean_layers)
        return tuple(tau if layer in noisy else 0.0 for layer, tau in enumerate(given))

    def check(self, lm: LanguageModel) -> None:
        if not self.needs <= lm.capabilities:
            raise CapabilityError(
                f"RoE changes what routers choose, which {lm.name} does not allow: {lm.lacks(ROUTING_NOISE)}",
                "on this model use Greedy(), Sample(temperature=0.7) or SelfConsistency(k=5)",
            )
        layers = lm.shape.moe_layers
        if isinstance(self.tau, tuple) and len(self.tau) != layers:
            message = f"RoE(tau=...): tau has {len(self.tau)} entries, and {lm.name} has {layers} MoE layers"
            raise ArgumentError(message, f"give {layers} numbers, or one for all layers")
        if self.random and not any(self.taus(layers)):
            raise ArgumentError(
                f"RoE(clean_layers={self.clean_layers}) leaves none of the {layers} MoE layers of {lm.name} noisy",
                "write clean_layers=0, or n=1 for the model itself",
            )

    def notes(self, routing: RoutingStats) -> tuple[str, ...]:
        if not self.random or routing.changed or not routing.choices:
            return ()
        return (
            f"RoE changed none of {routing.choices} router choices although tau={self.tau}: "
            "its rows were copies of the model. A larger tau changes more.",
        )

    def start(self, lm: LanguageModel, prompts: Sequence[tuple[int, ...]], streams: Sequence[Stream]) -> Proposals:
        self.check(lm)
        if not self.random:
            return Plain().start(lm, prompts, streams)
        tau = self.taus(lm.shape.moe_layers)
        size = (self.n - 1, lm.shape.moe_layers, lm.shape.experts)
        readers = [RowNoiseReader(s, ROUTING_DOMAIN, *size) for s in streams]
        return RoEProposals(lm, tau, *start_all(lm, prompts), readers)


class RoEProposals(Proposals):
    """The clean cache, and a source of noise per sequence (forks of a sequence share theirs)."""

    def __init__(
        self,
        lm: LanguageModel,
        tau: tuple[float, ...],
        state: State,
        cached: Sequence[Cached],
        readers: Sequence[RowNoiseReader],
    ) -> None:
        self._lm, self._tau, self._state = lm, tau, state
        self._cached, self._readers = list(cached), list(readers)

    def propose(self, tokens: Int[Tensor, " batch"]) -> tuple[Rows, tuple[Work, ...]]:
        step = self._lm.step(self._state, tokens, self._plan())
        return all_valid(step.logits), (step.work(self._lm.shape),)

    def _plan(self) -> RowPlan:
        noisy = [layer for layer, tau in enumerate(self._tau) if tau > 0]
        # [batch, n - 1, MoE layers, experts], drawn for clean layers too: other layers' noise must not
        # depend on which of them are clean.
        draws = np.stack([r.at(p) for r, p in zip(self._readers, self._state.lengths, strict=True)])
        G = gumbel(torch.from_numpy(draws[:, :, noisy])).permute(2, 0, 1, 3)
        tau = torch.tensor(self._tau)[noisy, None, None, None]
        batch, others, layers, experts = draws.shape
        noise = torch.zeros(layers, batch, 1 + others, experts)
        noise[noisy, :, 1:] = tau * G
        return RowPlan(1 + others, Routing.of(noise))

    @property
    def cached(self) -> list[tuple[Cached, ...]]:
        return [(one,) for one in self._cached]

    @property
    def lengths(self) -> list[int]:
        return self._state.lengths

    def select(self, index: Sequence[int]) -> RoEProposals:
        cached, readers = [self._cached[i] for i in index], [self._readers[i] for i in index]
        return RoEProposals(self._lm, self._tau, self._state.select(index), cached, readers)

    def join(self, other: Proposals) -> RoEProposals:
        assert isinstance(other, RoEProposals)
        state = self._state.join(other._state)
        return RoEProposals(self._lm, self._tau, state, self._cached + other._cached, self._readers + other._readers)


def _checked(tau: object) -> float:
    value = finite("RoE", "tau", tau, 0.3)
    if value < 0:
        raise ArgumentError(f"RoE(tau={tau!r}): tau must not be negative", "write tau=0.3, or tau=0 for no noise")
    return value
