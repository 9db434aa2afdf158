"""Expert-Sample: another draw of the less certain experts for every sequence (Chen et al. 2026, arXiv 2602.02443)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from tokenscale.core.data import RoutingStats
from tokenscale.core.errors import ArgumentError, finite
from tokenscale.core.model import ROUTING_NOISE, Holding, LanguageModel
from tokenscale.core.noise import Stream
from tokenscale.core.plan import Routing
from tokenscale.core.strategy import Aggregator, Proposals, TokenProposer
from tokenscale.token_level.aggregators import MeanProbability
from tokenscale.token_level.options import at_least_or_none, one_of, require
from tokenscale.token_level.plain import Plain
from tokenscale.token_level.private_cache import PrivateCacheProposals, noisy_sources, start_copies, start_noisy
from tokenscale.token_level.roe_noise import RoutingNoise


@dataclass(frozen=True)
class ExpertSample(TokenProposer):
    """One row whose experts are drawn: the most certain always run, the rest by Gumbel-top-k among likely ones.

    In every MoE layer with router logits R, the `keep_head` experts of largest R are kept, and the other
    k - keep_head are those of the largest R + tau G, G being Gumbel(0, 1), among the ranks up to
    `candidate_pool`. The paper's values are keep_head = floor(k / 2) + 1, candidate_pool = 4 k (both
    where None is given) and tau = 1. Gate weights come from R by the model's own rule (renormalised where
    the model does so).

    Noise belongs to the sequence, so it is a source of diversity for votes and best-of-n, not an
    average: every sample draws its own at every position and keeps its own keys and values. The
    prompt's positions are noisy too (prefill="noisy"); prefill="clean" runs the prompt once, without
    noise, for all samples of a problem. Cost: one row per token; a noisy prefill per sample.
    """

    tau: float = 1.0
    keep_head: int | None = None
    candidate_pool: int | None = None
    prefill: Literal["noisy", "clean"] = "noisy"

    needs: ClassVar[frozenset[str]] = frozenset({ROUTING_NOISE})

    def __post_init__(self) -> None:
        tau = finite("ExpertSample", "tau", self.tau, 1.0)
        if tau < 0:
            message = f"ExpertSample(tau={self.tau!r}): tau must not be negative"
            raise ArgumentError(message, "write tau=1.0, or tau=0 for no noise")
        object.__setattr__(self, "tau", tau)
        at_least_or_none("ExpertSample", "keep_head", self.keep_head, 0)
        at_least_or_none("ExpertSample", "candidate_pool", self.candidate_pool, 1)
        one_of("ExpertSample", "prefill", self.prefill, ("noisy", "clean"))

    @property
    def random(self) -> bool:
        return self.tau > 0

    @property
    def default_aggregator(self) -> Aggregator:
        return MeanProbability()

    def _ranks(self, lm: LanguageModel) -> tuple[int, int]:
        """The head and the pool in this model."""
        k = lm.shape.top_k
        head = k // 2 + 1 if self.keep_head is None else self.keep_head
        return head, 4 * k if self.candidate_pool is None else self.candidate_pool

    def check(self, lm: LanguageModel) -> None:
        require(lm, "ExpertSample", ROUTING_NOISE, "changes what routers choose")
        k, (head, pool) = lm.shape.top_k, self._ranks(lm)
        if head >= k:
            message = f"ExpertSample keeps {head} experts, and {lm.name} runs {k}: none is left to draw"
            raise ArgumentError(message, f"write keep_head={k - 1}")
        if pool <= k:
            message = f"ExpertSample(candidate_pool={pool}): {lm.name} runs {k} experts, so none is left out"
            raise ArgumentError(message, f"write candidate_pool={k + 1}, or more")

    def notes(self, routing: RoutingStats) -> tuple[str, ...]:
        if not self.random or routing.changed or not routing.choices:
            return ()
        return (
            f"ExpertSample changed none of {routing.choices} router choices although tau={self.tau}: "
            "its samples differ by token sampling alone. A larger tau changes more.",
        )

    def start(self, lm: LanguageModel, prompts: Sequence[tuple[int, ...]], streams: Sequence[Stream]) -> Proposals:
        self.check(lm)
        if not self.random:
            return Plain().start(lm, prompts, streams)
        head, pool = self._ranks(lm)
        taus, rule = (self.tau,) * lm.shape.moe_layers, Routing(keep_head=head, candidate_pool=pool)
        noise = RoutingNoise(taus, lm.shape.experts, rows=1, clean=0, rule=rule)
        readers = [noise.reader(stream) for stream in streams]
        noisy = self.prefill == "noisy"
        started = start_noisy(lm, prompts, streams, noise, readers) if noisy else start_copies(lm, prompts, 1)
        return PrivateCacheProposals(lm, *started, noise, readers)

    def caches(self, lm: LanguageModel, prompt: tuple[int, ...], stream: Stream) -> list[Holding]:
        noisy = self.random and self.prefill == "noisy"
        return [Holding(lm, prompt, source) for source in noisy_sources(stream, 0 if noisy else 1, 1)]
