"""Numbers of a whole candidate, from what was recorded of its tokens."""

from __future__ import annotations

import math

from tokenscale.core.data import Candidate
from tokenscale.core.errors import PipelineError


def mean_log_prob(candidate: Candidate) -> float:
    """The mean natural log-probability of the tokens; 0 without tokens."""
    return candidate.log_prob / max(1, len(candidate.token_ids))


def signal(candidate: Candidate, name: str, reader: str) -> tuple[float, ...]:
    """The values of one signal, one a token. Raises PipelineError, naming the `reader`, where they were not kept."""
    try:
        return candidate.signal(name)
    except KeyError:
        message = f"{reader} reads the {name} of every token, and a candidate has none"
        hint = "the strategy inside must keep the `signals` of the candidates that it makes its own of"
        raise PipelineError(message, hint) from None


def mean_signal(candidate: Candidate, name: str, reader: str) -> float:
    """The mean of one signal over the tokens; 0 without tokens. Raises PipelineError."""
    values = signal(candidate, name, reader)
    return math.fsum(values) / max(1, len(values))
