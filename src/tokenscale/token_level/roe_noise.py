"""The noise on what routers choose: tau_l times a standard variable per expert, row, token and MoE layer.

Every draw is a function of (stream, position of the token, row, layer, expert). So the rows of n = 4
are the first four of n = 8, and a token draws the same noise whether it is prefilled or stepped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray
from torch import Tensor

from tokenscale.core.noise import ROUTING_DOMAIN, RowNoiseReader, Stream, gumbel
from tokenscale.core.plan import Routing

KINDS = ("gumbel", "gaussian", "uniform-experts", "antithetic")
LARGEST = np.float32(1 - 2.0**-24)  # of the uniform numbers that are drawn, all multiples of 2^-24
HALF_STEP = 2.0**-25
GUMBEL_DEVIATION = math.pi / math.sqrt(6)


def standard(kind: str, uniforms: Float32[Tensor, "*shape"]) -> Float32[Tensor, "*shape"]:
    """Noise of strength 1, always finite.

    "gaussian": N(0, 1) times pi / sqrt(6), the standard deviation of a standard Gumbel variable, so that
    one tau is one strength for both. All other kinds: Gumbel(0, 1).
    """
    if kind == "gaussian":
        normal: Tensor = torch.special.ndtri(uniforms.double() + HALF_STEP)
        return (GUMBEL_DEVIATION * normal).float()
    return gumbel(uniforms)


@dataclass(frozen=True)
class RoutingNoise:
    """How the rows of one model's tokens choose their experts.

    `clean` rows without noise, then `rows` with it. `taus[l]` is the strength in MoE layer l, 0 for
    none. `kind` is one of KINDS: "antithetic" pairs rows 1 and 2, 3 and 4, ...: where one has the
    uniform number u, the other has 1 - u, so each row's law is Gumbel's and pairs lean opposite ways.
    `rule` says all that `Routing` says besides the noise itself.
    """

    taus: tuple[float, ...]
    experts: int
    rows: int
    clean: int = 1
    kind: str = "gumbel"
    rule: Routing = field(default_factory=Routing)

    def reader(self, stream: Stream) -> RowNoiseReader:
        """The uniform numbers of one sequence."""
        rows = (self.rows + 1) // 2 if self.kind == "antithetic" else self.rows
        return RowNoiseReader(stream, ROUTING_DOMAIN, rows, len(self.taus), self.experts)

    def step(self, readers: Sequence[RowNoiseReader], positions: Sequence[int]) -> Routing:
        """All rows of one step, for sequences that are fed the token at `positions`."""
        drawn = np.stack([self._uniforms(r, p) for r, p in zip(readers, positions, strict=True)])
        return self._routing(torch.from_numpy(drawn).permute(2, 0, 1, 3))

    def prompt(self, reader: RowNoiseReader, tokens: int) -> list[Routing]:
        """For every row, how the first `tokens` positions of its own cache choose their experts."""
        shape = (0, self.rows, len(self.taus), self.experts)
        drawn = np.stack([self._uniforms(reader, p) for p in range(tokens)]) if tokens else np.empty(shape, np.float32)
        # A token of the prompt is a batch of its own here; the rows' caches are taken apart below.
        routing = self._routing(torch.from_numpy(drawn).permute(2, 0, 1, 3))
        assert routing.noise is not None
        assert routing.noisy is not None
        return [
            replace(routing, noise=routing.noise[:, None, :, row], noisy=routing.noisy[:, None, :, row])
            for row in range(self.clean + self.rows)
        ]

    def _uniforms(self, reader: RowNoiseReader, position: int) -> NDArray[np.float32]:
        """Shape [rows, moe_layers, experts]."""
        drawn = reader.at(position)
        if self.kind != "antithetic":
            return drawn
        paired = np.repeat(drawn, 2, axis=0)[: self.rows]
        paired[1::2] = LARGEST - paired[1::2]
        return paired

    def _routing(self, uniforms: Float32[Tensor, "moe_layers batch rows experts"]) -> Routing:
        # Clean layers' numbers are drawn and left: other layers' noise must not depend on which are clean.
        layers, batch, _, experts = uniforms.shape
        moved = [layer for layer, tau in enumerate(self.taus) if tau > 0]
        tau = torch.tensor(self.taus)[moved, None, None, None]
        noise = torch.zeros(layers, batch, self.clean + self.rows, experts)
        noise[moved, :, self.clean :] = tau * standard(self.kind, uniforms[moved])
        noisy = torch.zeros(noise.shape[:-1], dtype=torch.bool)
        noisy[moved, :, self.clean :] = True
        return replace(self.rule, noise=noise, noisy=noisy)


def rows_of(routing: Routing, start: int, end: int) -> Routing:
    """The rows from `start` to `end` of a step's routing."""
    assert routing.noise is not None
    assert routing.noisy is not None
    return replace(routing, noise=routing.noise[:, :, start:end], noisy=routing.noisy[:, :, start:end])


def as_sequences(routing: Routing) -> Routing:
    """A step's rows as sequences of one row each, those of the first sequence first."""
    assert routing.noise is not None
    assert routing.noisy is not None
    noise, noisy = routing.noise, routing.noisy
    return replace(routing, noise=noise.flatten(1, 2)[:, :, None], noisy=noisy.flatten(1, 2)[:, :, None])
