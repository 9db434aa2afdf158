"""RoE, Roster of Experts: several routings of one token, averaged (Zibakhsh et al. 2025, arXiv 2509.17238).

The names are the paper's: R the router logits of a layer, G Gumbel noise, tau its scale, n the
samples of a token. What the paper leaves open is an option with a default (`roe_options.py`); the
noise is drawn in `roe_noise.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from tokenscale.core.errors import ArgumentError
from tokenscale.core.model import Holding, LanguageModel
from tokenscale.core.noise import RowNoiseReader, Stream
from tokenscale.core.plan import RowPlan
from tokenscale.core.starting import start_all
from tokenscale.core.strategy import Proposals
from tokenscale.token_level.one_cache import OneCacheProposals, RowRule, forced_plan
from tokenscale.token_level.options import one_of
from tokenscale.token_level.plain import Plain
from tokenscale.token_level.private_cache import PrivateCacheProposals, noisy_sources, start_copies, start_noisy
from tokenscale.token_level.roe_noise import RoutingNoise
from tokenscale.token_level.roe_options import NoisyRows


@dataclass(frozen=True, repr=False)
class RoE(NoisyRows):
    """n samples of every token: in MoE layer l, sample i > 0 runs the experts TopK(R + tau_l G, k).

    G is Gumbel(0, 1), drawn per expert, sample, token and layer; sample 0 is clean (tau = 0). The n
    distributions are averaged as probabilities, the clean one with weight 1/n (`CleanAnchored` gives
    it another). n = 1 or tau = 0 is the model itself.

    tau: one number for all MoE layers, a tuple of one per MoE layer, or the path of a tuned profile.
    clean_layers: the first and the last so many MoE layers are never noisy.
    weights: gate weights come from R ("original") or from R + tau_l G ("perturbed").
    cache: "clean" stores sample 0's keys and values alone, and all samples read them; "private" gives
        every sample its own.
    current_kv: of the current token, noisy sample i sees its "own" key and value or the "clean" one's.
    first_token: the last token of the prompt is run in n "rows", or "clean" alone.
    prefill: private caches take in the prompt "clean", once for all samples, or "noisy", sample by sample.
    noise: "gumbel"; "gaussian", N(0, 1) scaled to Gumbel's standard deviation pi / sqrt(6), so that tau
        is as strong; "uniform-experts", every expert as likely as another, whatever R and tau > 0
        are; "antithetic", Gumbel noise in pairs of opposite samples (u and 1 - u).
    noise_on: R is the router "logits", or the "scores" that the router ranks (biases included).
    keep_head, candidate_pool: the first so many experts by R are always run; only the first so many
        can be. None: all ranks compete.

    Cost: n rows per token in one forward, and the experts of all of them (see `Cost`). The clean cache
    holds one sequence; private caches hold n, and read n. A noisy prefill costs n prefills.
    """

    cache: Literal["clean", "private"] = field(default="clean", kw_only=True)
    prefill: Literal["clean", "noisy"] = field(default="clean", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("RoE", "cache", self.cache, ("clean", "private"))
        one_of("RoE", "prefill", self.prefill, ("clean", "noisy"))
        if self.cache == "clean" and self.prefill == "noisy":
            message = "RoE(prefill='noisy'): the clean cache holds the clean sample's keys alone, the prompt's too"
            raise ArgumentError(message, "write cache='private', or leave prefill out")
        if self.cache == "private" and self.current_kv == "clean":
            message = "RoE(cache='private', current_kv='clean'): with a cache of its own each sample sees its own key"
            raise ArgumentError(message, "leave current_kv out, or write cache='clean'")

    def start(self, lm: LanguageModel, prompts: Sequence[tuple[int, ...]], streams: Sequence[Stream]) -> Proposals:
        self.check(lm)
        if not self.random:
            return Plain().start(lm, prompts, streams)
        noise = self.routing_noise(lm)
        readers = [noise.reader(stream) for stream in streams]
        if self.cache == "clean":
            rule = Samples(noise, self.current_kv, self.first_token == "clean")
            return OneCacheProposals(lm, rule, *start_all(lm, prompts), readers)
        if self.prefill == "noisy":
            started = start_noisy(lm, prompts, streams, noise, readers)
        else:
            started = start_copies(lm, prompts, self.n)
        return PrivateCacheProposals(lm, *started, noise, readers, self.first_token == "clean")

    def caches(self, lm: LanguageModel, prompt: tuple[int, ...], stream: Stream) -> list[Holding]:
        if self.cache == "clean" or not self.random:
            return [Holding(lm, prompt)]
        noisy = self.prefill == "noisy"
        return [Holding(lm, prompt, source) for source in noisy_sources(stream, 1 if noisy else self.n, self.n)]

    def row_plan(
        self, lm: LanguageModel, stream: Stream, prompt_tokens: int, positions: range
    ) -> tuple[RowPlan, Bool[Tensor, "positions rows"] | None] | None:
        if not self.random:
            return Plain().row_plan(lm, stream, prompt_tokens, positions)
        if self.cache == "private":
            return None
        noise = self.routing_noise(lm)
        rule = Samples(noise, self.current_kv, self.first_token == "clean")
        return forced_plan(rule, noise.reader(stream), prompt_tokens, positions)


@dataclass(frozen=True)
class Samples(RowRule):
    """The clean row and its noisy copies, over the clean cache."""

    noise: RoutingNoise
    current_kv: Literal["own", "clean"] = "own"
    clean_first: bool = False

    def plan(self, readers: Sequence[RowNoiseReader], positions: Sequence[int]) -> RowPlan:
        return RowPlan(1 + self.noise.rows, self.noise.step(readers, positions), current_kv=self.current_kv)

    def valid(self, fresh: Sequence[bool]) -> Bool[Tensor, "batch rows"] | None:
        if not self.clean_first or not any(fresh):
            return None
        counted = torch.where(torch.tensor(fresh), 1, 1 + self.noise.rows)
        return torch.arange(1 + self.noise.rows) < counted[:, None]
