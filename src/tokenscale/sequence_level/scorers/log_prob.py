"""The model's own log-probability of an answer as its score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenscale.core.data import Ask, Candidate
from tokenscale.core.errors import unknown
from tokenscale.core.scorer import Requests, Scorer
from tokenscale.sequence_level.traces import mean_log_prob

REDUCTIONS = ("mean", "sum")


@dataclass(frozen=True)
class LogProb(Scorer):
    """The mean or the sum of the natural log-probabilities of a candidate's tokens.

    sum_t log p_t, or that divided by the number of tokens, under the aggregate and before temperature and
    truncation. "sum" prefers short answers. Scores are 0 or less. Costs nothing. Raises UnknownNameError.

    Source: Adiwardana et al., arXiv 2001.09977 (sample and rank, by the sum); Wang et al., arXiv 2203.11171,
    equation 1 (normalised by length).
    """

    signed = True

    reduce: str = "mean"

    def __post_init__(self) -> None:
        if self.reduce not in REDUCTIONS:
            raise unknown("reduction", str(self.reduce), REDUCTIONS, "LogProb")

    def grade(self, ask: Ask, candidates: Sequence[Candidate]) -> Requests:
        yield from ()
        return [mean_log_prob(c) if self.reduce == "mean" else c.log_prob for c in candidates]
