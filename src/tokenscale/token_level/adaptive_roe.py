"""RoE that runs fewer rows where fewer are enough: exactly, or by a gate on the clean row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from tokenscale.core.data import RoutingStats
from tokenscale.core.errors import ArgumentError, PipelineError, at_least, finite
from tokenscale.core.model import LanguageModel
from tokenscale.core.noise import CHECK_DOMAIN, RowNoiseReader, Stream
from tokenscale.core.starting import start_all
from tokenscale.core.strategy import Aggregator, Decoder, Proposals
from tokenscale.token_level.adaptive_rows import AdaptiveProposals, EarlyExit, Gate
from tokenscale.token_level.aggregators import MeanProbability
from tokenscale.token_level.decoders import Greedy
from tokenscale.token_level.options import one_of
from tokenscale.token_level.plain import Plain
from tokenscale.token_level.roe import Samples
from tokenscale.token_level.roe_options import NoisyRows

CHUNK, AUDIT = 4, 0.05
THRESHOLDS = {"margin": 0.5, "entropy": 1.0}


@dataclass(frozen=True, repr=False)
class AdaptiveRoE(NoisyRows):
    """RoE over the clean cache that leaves out rows: n is the most that a token gets.

    exact=True: more than half of the rows are run, then the rest in chunks of `chunk` (None: 4), until
    the greedy token is settled. After j of n rows with probability sums S that is where
    S_top - S_second > n - j, since each of the others can add at most 1 to the difference. So the tokens
    are RoE's; reported log-probabilities are the mean of the rows that ran. S is taken over the tokens
    that may be generated, with a float32 margin of 1e-5 n. Only with MeanProbability and Greedy, and
    without logits processors.

    exact=False: the clean row is run first, and all others only for tokens that call for them: where
    the clean row's lead p_top - p_second is below `threshold` (gate="margin", None: 0.5), or its
    entropy in nats above it (gate="entropy", None: 1.0). An approximation, with any aggregator and
    decoder. A share `audit` (None: 0.05) of the other tokens, drawn at random, gets its rows all the
    same; there the result counts for how many the most likely token of all rows is another than the
    clean row's (`routing.checked`, `routing.differed`, and a note).

    The other parameters are RoE's. `Trace.rows` and `Cost.rows` say what ran. Cost: a forward for the first
    rows and one for each chunk, which follow one another: each reads the weights and the cache, and is
    one of `Cost.sequential_steps`. In a batch the step goes on until no token needs more rows; rows
    run for tokens that need none are padding.
    """

    exact: bool = field(default=True, kw_only=True)
    chunk: int | None = field(default=None, kw_only=True)
    gate: Literal["margin", "entropy"] = field(default="margin", kw_only=True)
    threshold: float | None = field(default=None, kw_only=True)
    audit: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.exact, bool):
            message = f"AdaptiveRoE(exact={self.exact!r}): exact must be True or False"
            raise ArgumentError(message, "write exact=True, or exact=False for a gate on the clean row")
        one_of("AdaptiveRoE", "gate", self.gate, tuple(THRESHOLDS))
        unused = ("gate", "threshold", "audit") if self.exact else ("chunk",)
        given = [name for name in unused if getattr(self, name) not in (None, "margin")]
        if given:
            message = f"AdaptiveRoE(exact={self.exact}, {given[0]}={getattr(self, given[0])!r}): {given[0]} has no use"
            raise ArgumentError(message, f"leave it out, or write exact={not self.exact}")
        self._check_numbers()

    def _check_numbers(self) -> None:
        if self.chunk is not None:
            at_least("AdaptiveRoE", "chunk", self.chunk, 1)
        for name, largest in (("threshold", None), ("audit", 1.0)):
            value = getattr(self, name)
            if value is None:
                continue
            number = finite("AdaptiveRoE", name, value, 0.5)
            if number < 0 or (largest is not None and number > largest):
                message = f"AdaptiveRoE({name}={value!r}): {name} must be at least 0" + (
                    " and at most 1" * bool(largest)
                )
                raise ArgumentError(message, f"write {name}=0.5")
            object.__setattr__(self, name, number)

    @property
    def takes_processors(self) -> bool:
        return not self.exact

    def fits(self, aggregator: Aggregator, decoder: Decoder) -> None:
        if not self.exact or (isinstance(aggregator, MeanProbability) and isinstance(decoder, Greedy)):
            return
        raise PipelineError(
            f"AdaptiveRoE(exact=True) stops when the greedy token of the mean probability is settled, which says "
            f"nothing about {aggregator!r} and {decoder!r}",
            "use MeanProbability() and Greedy(), or AdaptiveRoE(exact=False)",
        )

    def notes(self, routing: RoutingStats) -> tuple[str, ...]:
        notes = super().notes(routing)
        if not routing.checked:
            return notes
        return (
            *notes,
            f"AdaptiveRoE ran all rows for {routing.checked} tokens that the clean row was sure of, to check: "
            f"for {routing.differed} of them another token was the most likely.",
        )

    def start(self, lm: LanguageModel, prompts: Sequence[tuple[int, ...]], streams: Sequence[Stream]) -> Proposals:
        self.check(lm)
        if not self.random:
            return Plain().start(lm, prompts, streams)
        noise = self.routing_noise(lm)
        readers = [noise.reader(stream) for stream in streams]
        stop = EarlyExit(self.n, self.chunk or CHUNK) if self.exact else self._gate()
        checks = [] if self.exact else [RowNoiseReader(stream, CHECK_DOMAIN, 1, 1, 1) for stream in streams]
        samples = Samples(noise, self.current_kv, self.first_token == "clean")
        return AdaptiveProposals(lm, samples, stop, *start_all(lm, prompts), readers, checks)

    def _gate(self) -> Gate:
        threshold = THRESHOLDS[self.gate] if self.threshold is None else self.threshold
        return Gate(self.n, self.gate, threshold, AUDIT if self.audit is None else self.audit)
