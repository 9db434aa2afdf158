"""Per-token signals of confidence, and rules that end a candidate by them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

from jaxtyping import Float
from torch import Tensor

TOP = 20

Signal = Callable[[Float[Tensor, "beams vocab"]], Float[Tensor, " beams"]]


def confidence(log_probs: Float[Tensor, "beams vocab"]) -> Float[Tensor, " beams"]:
    """Minus the mean log-probability of the 20 most likely tokens, in nats (all of a smaller vocabulary).

    Large where one token has nearly all the mass. Impossible tokens (log-probability -inf) count as the
    least likely possible one. Source: Fu et al., arXiv 2508.15260, equation 2.
    """
    return -_finite(log_probs.topk(min(TOP, log_probs.shape[-1])).values).mean(-1)


def self_certainty(log_probs: Float[Tensor, "beams vocab"]) -> Float[Tensor, " beams"]:
    """KL(uniform || p) = -(1/V) sum_j log(V p_j), in nats, over the V tokens that p finds possible.

    Source: Kang et al., arXiv 2502.18581 (self-certainty of one token), where all tokens are possible.
    """
    possible = ~log_probs.isneginf()
    count = possible.sum(-1)
    return -log_probs.masked_fill(~possible, 0.0).sum(-1) / count - count.to(log_probs.dtype).log()


def _finite(log_probs: Float[Tensor, "beams tokens"]) -> Float[Tensor, "beams tokens"]:
    least = log_probs.masked_fill(log_probs.isneginf(), float("inf")).amin(-1, keepdim=True)
    return log_probs.maximum(least)


SIGNALS: Mapping[str, Signal] = {"confidence": confidence, "self_certainty": self_certainty}


class StopRule(ABC):
    """Ends a candidate by one of its signals. A frozen dataclass; pure."""

    signal: str

    @abstractmethod
    def stops(self, values: Sequence[float]) -> bool:
        """Whether the candidate ends after the last of these values, one per generated token."""
