"""How the rows of one forward differ: routing noise, dropout, early layers, the key of the current token."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Routing:
    """How the tokens of one forward choose their experts, where that is not the model's own way.

    Rows are the query rows of a step, or the positions of a prompt that is prefilled. Where
    `noisy[l, b, i]`, MoE layer l selects TopK(S + noise[l, b, i], k): S is the router logits R
    (`noise_on` "logits"), the scores that the router itself ranks, biases included ("scores"), or zero
    ("nothing": every expert is as likely as another). Of experts in the router's own order, without
    noise, the first `keep_head` are always selected, and only the first `candidate_pool` (None: all)
    can be. Gate weights come from R ("original") or from R + noise ("perturbed"; where noise is on
    nothing, from the noise alone). All other choices are the model's, to the bit.

    `ranks[i]`, where given, is the first and last rank (1 is the best) of the experts that row i
    runs instead of its top k, without noise.
    """

    noise: Float[Tensor, "moe_layers batch rows experts"] | None = None
    noisy: Bool[Tensor, "moe_layers batch rows"] | None = None
    noise_on: Literal["logits", "scores", "nothing"] = "logits"
    weights: Literal["original", "perturbed"] = "original"
    keep_head: int = 0
    candidate_pool: int | None = None
    ranks: tuple[tuple[int, int] | None, ...] = ()

    @classmethod
    def of(cls, noise: Float[Tensor, "moe_layers batch rows experts"]) -> Routing:
        """Noise on the router logits wherever a row of `noise` is not zero throughout."""
        return cls(noise, (noise != 0).any(-1))

    def at(self, index: Int[Tensor, " picked"]) -> Routing:
        """The routing of the sequences at `index`."""
        if self.noise is None or self.noisy is None:
            return self
        return replace(self, noise=self.noise[:, index], noisy=self.noisy[:, index])


@dataclass(frozen=True)
class Dropout:
    """Dropout on what every decoder layer's feed-forward block adds to the residual stream.

    A unit is set to zero where its uniform number is below `rate`, else divided by 1 - rate (Srivastava
    et al. 2014). Rows whose numbers are all 1 have every unit, undivided.
    """

    rate: float
    uniforms: Float[Tensor, "layers batch rows hidden"]


@dataclass(frozen=True)
class RowPlan:
    """How the rows of one step differ: `n` rows run the same token at the same position.

    Only row 0 is stored in the cache. Row i sees the stored past and, of the current token, its own key
    and value (`current_kv` "own") or row 0's ("clean"). With `early_layers`, one row is run and its
    logits follow those of the last layer: lm_head after the final norm of what the given decoder
    layers (0 is the first) put out.

    `commit` False runs rows of the token that the step before stored, once more at its position,
    and stores nothing; row 0 then has no special part, and `current_kv` "clean" is the stored key.
    """

    n: int = 1
    routing: Routing | None = None
    dropout: Dropout | None = None
    early_layers: tuple[int, ...] = ()
    current_kv: Literal["own", "clean"] = "own"
    commit: bool = True


PLAIN = RowPlan()
