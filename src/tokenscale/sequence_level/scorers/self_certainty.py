"""Self-certainty: how far the model's distributions are from uniform, as a score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenscale.core.data import Ask, Candidate
from tokenscale.core.scorer import Requests, Scorer
from tokenscale.sequence_level.traces import mean_signal


@dataclass(frozen=True)
class SelfCertainty(Scorer):
    """The mean over a candidate's tokens of KL(uniform || p_t) = -(1/V) sum_j log(V p_tj), in nats.

    p_t is the aggregated distribution of token t over a vocabulary of V (see `core.signals`). Needs no
    second model; not comparable between models. Scores are 0 or more. Costs one pass over the vocabulary
    per token. Raises PipelineError where a strategy inside has dropped the signals.

    Source: Kang et al., arXiv 2502.18581 (self-certainty).
    """

    @property
    def signals(self) -> frozenset[str]:
        return frozenset({"self_certainty"})

    def grade(self, ask: Ask, candidates: Sequence[Candidate]) -> Requests:
        yield from ()
        return [mean_signal(c, "self_certainty", "SelfCertainty") for c in candidates]
