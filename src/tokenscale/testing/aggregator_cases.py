"""The examples that the suite for aggregators is run on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from tokenscale.core.strategy import Rows

Oracle = Callable[[NDArray[np.float64]], NDArray[np.float64]]

LARGEST = 30.0
LARGEST_SHIFT = 100.0
MOST_TOKENS = 8
# Multiples of 2^-10 below 2^13 are exact in float32, and so are their sums.
GRID = 2.0**10


@dataclass(frozen=True)
class Case:
    """One example: rows with padding among them, and what the invariants do to them.

    In `rows` one token at least is possible in all rows; in `disjoint`, the same rows with other
    tokens made impossible, no token is possible in two rows. `shift` is a constant per row, `order`
    a permutation of the rows.
    """

    rows: Rows
    disjoint: Rows
    shift: Float[Tensor, "batch rows 1"]
    order: Int[Tensor, " rows"]
    oracle: Oracle
    lipschitz: float

    @property
    def log_probs(self) -> Float[Tensor, "batch rows vocab"]:
        return torch.log_softmax(self.rows.logits, -1)

    def on_the_grid(self) -> tuple[Rows, Rows]:
        """The rows, and the rows shifted, both rounded so that the shift itself rounds nothing."""
        logits = (self.rows.logits * GRID).round() / GRID
        shift = (self.shift * GRID).round() / GRID
        return Rows(logits, self.rows.valid), Rows(logits + shift, self.rows.valid)


def cases(oracle: Oracle, lipschitz: float, rows: int | None) -> Any:
    """A hypothesis strategy for cases, of one to five rows or of exactly `rows`."""
    from hypothesis import strategies as st
    from hypothesis.extra.numpy import arrays

    @st.composite
    def cases(draw: Any) -> Case:
        batch, n = draw(st.integers(1, 3)), rows or draw(st.integers(1, 5))
        vocab = draw(st.integers(max(2, n), max(MOST_TOKENS, n)))
        finite = st.floats(-LARGEST, LARGEST, width=32)
        logits = torch.from_numpy(draw(arrays(np.float32, (batch, n, vocab), elements=finite)))
        # Some tokens impossible in some rows, some in all of them, and one token in none.
        impossible = draw(arrays(np.bool_, (batch, n, vocab))) & draw(arrays(np.bool_, (1, n, 1)))
        impossible |= draw(arrays(np.bool_, (batch, 1, vocab)))
        impossible[:, :, draw(st.integers(0, vocab - 1))] = False
        valid = draw(arrays(np.bool_, (batch, n)))
        valid[:, draw(st.integers(0, n - 1))] = True
        shift = draw(arrays(np.float32, (batch, n, 1), elements=st.floats(-LARGEST_SHIFT, LARGEST_SHIFT, width=32)))
        # Every row owns a token at least, and every token has one owner.
        more = draw(st.lists(st.integers(0, n - 1), min_size=vocab - n, max_size=vocab - n))
        foreign = np.array([*draw(st.permutations(range(n))), *more]) != np.arange(n)[:, None]
        return Case(
            rows=_rows(logits, impossible, valid),
            disjoint=_rows(logits, np.broadcast_to(foreign, impossible.shape), valid),
            shift=torch.from_numpy(shift),
            order=torch.tensor(draw(st.permutations(range(n)))),
            oracle=oracle,
            lipschitz=lipschitz,
        )

    return cases()


def _rows(logits: Float[Tensor, "batch rows vocab"], impossible: NDArray[np.bool_], valid: NDArray[np.bool_]) -> Rows:
    return Rows(logits.masked_fill(torch.tensor(impossible), float("-inf")), torch.tensor(valid))
