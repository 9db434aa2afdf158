"""What can be chosen about noisy rows, beyond what RoE's paper fixes; RoE and AdaptiveRoE share it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from tokenscale.core.data import RoutingStats
from tokenscale.core.errors import ArgumentError, at_least, finite
from tokenscale.core.model import CLEAN_CURRENT_KV, ROUTING_NOISE, LanguageModel
from tokenscale.core.plan import Routing
from tokenscale.core.strategy import Aggregator, TokenProposer
from tokenscale.token_level.aggregators import MeanProbability
from tokenscale.token_level.options import at_least_or_none, brief, one_of, require
from tokenscale.token_level.profile import Profile, load_profile
from tokenscale.token_level.roe_noise import KINDS, RoutingNoise

WORDS = {
    "weights": ("original", "perturbed"),
    "current_kv": ("own", "clean"),
    "first_token": ("rows", "clean"),
    "noise": KINDS,
    "noise_on": ("logits", "scores"),
}


@dataclass(frozen=True, repr=False)
class NoisyRows(TokenProposer):
    """n rows of every token, of which all but row 0 route with noise. See `RoE` for the parameters."""

    n: int
    tau: float | tuple[float, ...] | str = 0.3
    clean_layers: int = 1
    weights: Literal["original", "perturbed"] = field(default="original", kw_only=True)
    current_kv: Literal["own", "clean"] = field(default="own", kw_only=True)
    first_token: Literal["rows", "clean"] = field(default="rows", kw_only=True)
    noise: Literal["gumbel", "gaussian", "uniform-experts", "antithetic"] = field(default="gumbel", kw_only=True)
    noise_on: Literal["logits", "scores"] = field(default="logits", kw_only=True)
    keep_head: int | None = field(default=None, kw_only=True)
    candidate_pool: int | None = field(default=None, kw_only=True)
    profile: Profile | None = field(default=None, init=False, compare=False)

    needs: ClassVar[frozenset[str]] = frozenset({ROUTING_NOISE})

    def __post_init__(self) -> None:
        name = type(self).__name__
        at_least(name, "n", self.n, 1)
        at_least(name, "clean_layers", self.clean_layers, 0)
        self._check_tau(name)
        for option, allowed in WORDS.items():
            one_of(name, option, getattr(self, option), allowed)
        at_least_or_none(name, "keep_head", self.keep_head, 0)
        at_least_or_none(name, "candidate_pool", self.candidate_pool, 1)
        object.__setattr__(self, "keep_head", self.keep_head or None)  # none kept is the default, in one form
        if self.noise == "uniform-experts" and (self.weights == "perturbed" or self.noise_on == "scores"):
            odd = "weights='perturbed'" if self.weights == "perturbed" else "noise_on='scores'"
            message = f"{name}(noise='uniform-experts', {odd}): experts drawn evenly leave no scores to perturb"
            raise ArgumentError(message, f"leave {odd} out, or write noise='gumbel'")

    def _check_tau(self, name: str) -> None:
        if isinstance(self.tau, str):
            object.__setattr__(self, "profile", load_profile(self.tau))
            return
        several = isinstance(self.tau, list | tuple)
        if several and not self.tau:
            raise ArgumentError(f"{name}(tau=()): tau is empty", "write tau=0.3, or one number per MoE layer")
        taus = tuple(_checked(name, tau) for tau in self._given)
        object.__setattr__(self, "tau", taus if several else taus[0])

    def __repr__(self) -> str:
        return brief(self)

    @property
    def random(self) -> bool:
        return self.n > 1 and any(self._given)

    @property
    def _given(self) -> tuple[float, ...]:
        if self.profile is not None:
            return self.profile.taus
        return tuple(self.tau) if isinstance(self.tau, list | tuple) else (self.tau,)  # type: ignore[return-value]

    @property
    def clean_row(self) -> bool:
        return True

    @property
    def default_aggregator(self) -> Aggregator:
        return MeanProbability()

    def taus(self, moe_layers: int) -> tuple[float, ...]:
        """tau of every MoE layer, the clean ones being 0."""
        uniform = isinstance(self.tau, float)
        given = self._given * moe_layers if uniform else self._given
        noisy = range(self.clean_layers, moe_layers - self.clean_layers)
        return tuple(tau if layer in noisy else 0.0 for layer, tau in enumerate(given))

    def routing_noise(self, lm: LanguageModel) -> RoutingNoise:
        """The noise of the n - 1 noisy rows in `lm`, which must have passed `check`."""
        on = "nothing" if self.noise == "uniform-experts" else self.noise_on
        rule = Routing(None, None, on, self.weights, self.keep_head or 0, self.candidate_pool)
        return RoutingNoise(self.taus(lm.shape.moe_layers), lm.shape.experts, self.n - 1, kind=self.noise, rule=rule)

    def check(self, lm: LanguageModel) -> None:
        name = type(self).__name__
        require(lm, name, ROUTING_NOISE, "changes what routers choose")
        if self.current_kv == "clean":
            require(lm, f"{name}(current_kv='clean')", CLEAN_CURRENT_KV, "shows every row the clean row's key")
        self._check_layers(name, lm)
        if self.random and self.weights == "original":
            self._check_ranks(name, lm)

    def _check_layers(self, name: str, lm: LanguageModel) -> None:
        layers = lm.shape.moe_layers
        if self.profile is not None and self.profile.fingerprint != lm.fingerprint:
            message = f"{name}(tau={self.tau!r}): this profile was tuned for another model than {lm.name}"
            raise ArgumentError(message, f"tune one for {lm.name}, or give numbers: tau=0.3")
        if not isinstance(self.tau, float) and len(self._given) != layers:
            message = f"{name}(tau=...): tau has {len(self._given)} entries, and {lm.name} has {layers} MoE layers"
            raise ArgumentError(message, f"give {layers} numbers, or one for all layers")
        if self.profile is not None:
            self.profile.check(name, str(self.tau), self.taus(layers))
        if self.random and not any(self.taus(layers)):
            raise ArgumentError(
                f"{name}(clean_layers={self.clean_layers}) leaves none of the {layers} MoE layers of {lm.name} noisy",
                "write clean_layers=0, or n=1 for the model itself",
            )

    def _check_ranks(self, name: str, lm: LanguageModel) -> None:
        """Refuses a head or a pool that leaves noise nothing to choose."""
        k = lm.shape.top_k
        if self.keep_head is not None and self.keep_head >= k:
            message = f"{name}(keep_head={self.keep_head}) keeps all of the {k} experts that {lm.name} runs"
            raise ArgumentError(message, f"write keep_head={k - 1}, or less" if k > 1 else "leave it out")
        if self.candidate_pool is not None and self.candidate_pool <= k:
            message = f"{name}(candidate_pool={self.candidate_pool}): {lm.name} runs {k} experts, so none is left out"
            raise ArgumentError(message, f"write candidate_pool={k + 1}, or more")

    def notes(self, routing: RoutingStats) -> tuple[str, ...]:
        if not self.random or routing.changed or not routing.choices:
            return ()
        return (
            f"{type(self).__name__} changed none of {routing.choices} router choices although tau={self.tau}: "
            "its rows were copies of the model. A larger tau changes more.",
        )


def _checked(name: str, tau: object) -> float:
    value = finite(name, "tau", tau, 0.3)
    if value < 0:
        raise ArgumentError(f"{name}(tau={tau!r}): tau must not be negative", "write tau=0.3, or tau=0 for no noise")
    return value
