"""Contrasts: what a strong row says more than a weak one, among the tokens that the strong row finds plausible."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tokenscale.core.errors import ArgumentError, finite
from tokenscale.core.strategy import Aggregator, Rows
from tokenscale.token_level.aggregators.arguments import positive_share
from tokenscale.token_level.aggregators.fold import IMPOSSIBLE, all_possible, no_token, row_log_probs

# Nats. Divergences this close are equal: float32 rounding must not decide between them.
TIE = 1e-6


class _Pair(NamedTuple):
    """Log-probabilities of the two rows so far; `distance` is minus infinity where no weak row was found."""

    strong: Float[Tensor, "batch vocab"]
    weak: Float[Tensor, "batch vocab"]
    seen: Bool[Tensor, " batch"]
    distance: Float[Tensor, " batch"]
    rows: int


class _Contrast(Aggregator):
    """p proportional to exp(a log p_strong - b log p_weak) over what the strong row finds plausible.

    That is V = {i : log p_strong_i >= log alpha + max log p_strong}. The strong row is the first valid
    one, the weak row the one of the others with the largest `_distance`. Tokens of V that the weak row
    rules out come before all others, the limit of a vanishing p_weak, and share the probability in
    proportion to p_strong^a. Where the two rows allow no token in common, the strong row is used as
    it is.
    """

    folds: ClassVar[bool] = True
    alpha: float

    @property
    @abstractmethod
    def _factors(self) -> tuple[float, float]:
        """a and b."""

    @abstractmethod
    def _distance(
        self, strong: Float[Tensor, "batch vocab"], row: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, " batch"]:
        """How much a row recommends itself as the weak one; of equal ones the first is taken."""

    def aggregate(self, rows: Rows) -> Float[Tensor, "batch vocab"]:
        return self.finish(self.update(None, rows))

    def fell_back(self, rows: Rows) -> Bool[Tensor, " batch"]:
        if all_possible(rows):
            return super().fell_back(rows)
        return self.fold_fell_back(self.update(None, rows))

    def fold_fell_back(self, accumulator: _Pair) -> Bool[Tensor, " batch"]:
        return ~accumulator.distance.isneginf() & _disjoint(accumulator)

    def init(self, batch: int, vocab: int) -> None:
        return None

    def update(self, accumulator: _Pair | None, rows: Rows) -> _Pair:
        log_probs = row_log_probs(rows)
        pair = accumulator
        for row, valid in zip(log_probs.unbind(1), rows.valid.unbind(1), strict=True):
            pair = _Pair(row, row, valid, _none_yet(row), 1) if pair is None else self._add(pair, row, valid)
        assert pair is not None
        return pair

    def _add(self, pair: _Pair, row: Float[Tensor, "batch vocab"], valid: Bool[Tensor, " batch"]) -> _Pair:
        distance = torch.where(valid & pair.seen, self._distance(pair.strong, row), IMPOSSIBLE)
        # Written so that a NaN is taken and kept.
        further = ~(distance <= pair.distance + TIE) & ~pair.distance.isnan()
        strong = torch.where((valid & ~pair.seen)[:, None], row, pair.strong)
        weak = torch.where(further[:, None], row, pair.weak)
        return _Pair(strong, weak, pair.seen | valid, torch.where(further, distance, pair.distance), pair.rows + 1)

    def finish(self, accumulator: _Pair) -> Float[Tensor, "batch vocab"]:
        strong, weak = accumulator.strong, accumulator.weak
        a, b = self._factors
        plausible = strong >= strong.amax(-1, keepdim=True) + math.log(self.alpha)
        ruled_out = plausible & weak.isneginf() & (b > 0)
        scores = a * strong - b * weak.masked_fill(weak.isneginf(), 0.0)
        kept = torch.where(ruled_out.any(-1, keepdim=True), ruled_out, plausible)
        contrast = torch.log_softmax(scores.masked_fill(~kept, IMPOSSIBLE), -1)
        alone = accumulator.distance.isneginf() | _disjoint(accumulator)
        return torch.where(alone[:, None], strong, contrast)


def _none_yet(row: Float[Tensor, "batch vocab"]) -> Float[Tensor, " batch"]:
    return row.new_full(row.shape[:1], IMPOSSIBLE)


def _disjoint(pair: _Pair) -> Bool[Tensor, " batch"]:
    return no_token(torch.minimum(pair.strong, pair.weak))


@dataclass(frozen=True)
class ContrastRows(_Contrast):
    """Two rows, (strong, weak): z = (1 + beta) z_strong - beta z_weak over what the strong row finds plausible.

    That is V = {i : log p_strong_i >= log alpha + max log p_strong}; other tokens get probability 0.
    What SCMoE (Shi et al. 2024, arXiv 2405.14507) and contrastive decoding as O'Brien and Lewis
    write it (2023, arXiv 2309.09117) use; V is that of Li et al. (2022, arXiv 2210.15097). Tokens of
    V that the weak row rules out come before all others and share the probability in proportion to
    p_strong^(1 + beta). Where the rows allow no token in common the strong row is used as it is, and
    so it is where there is no weak row. beta = 0 is the strong row cut to V. Cost: one exponential
    per row and token. Raises ArgumentError for beta below 0, for alpha outside (0, 1], and where
    there are more than two rows.
    """

    beta: float = 0.5
    alpha: float = 0.1

    def __post_init__(self) -> None:
        beta = finite("ContrastRows", "beta", self.beta, 0.5)
        if beta < 0:
            message = f"ContrastRows(beta={self.beta!r}): beta must not be negative"
            raise ArgumentError(message, "write beta=0.5, or beta=0 for the strong row cut to what is plausible")
        object.__setattr__(self, "beta", beta)
        object.__setattr__(self, "alpha", positive_share("ContrastRows", "alpha", self.alpha, 0.1))

    def update(self, accumulator: _Pair | None, rows: Rows) -> _Pair:
        pair = super().update(accumulator, rows)
        if pair.rows > 2:
            message = f"ContrastRows contrasts two rows, (strong, weak), and there are {pair.rows}"
            raise ArgumentError(
                message, "use a proposer of two rows, or DoLaContrast() to contrast with one of several"
            )
        return pair

    @property
    def _factors(self) -> tuple[float, float]:
        return 1 + self.beta, self.beta

    def _distance(
        self, strong: Float[Tensor, "batch vocab"], row: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, " batch"]:
        return row.new_zeros(row.shape[:1])


@dataclass(frozen=True)
class DoLaContrast(_Contrast):
    """Row 0 against the row furthest from it: log q_N - log q_M over what row 0 finds plausible.

    DoLa's rule (Chuang et al. 2023, arXiv 2309.03883): q_N is row 0, the last layer; the other rows
    are candidate layers, and M is the one with the largest Jensen-Shannon divergence from q_N, of
    equal ones (within 1e-6 nats) the first. Plausible are V = {i : q_N_i >= alpha max q_N}; the others
    get probability 0. Tokens of V that q_M rules out come before all others and share the probability
    in proportion to q_N. Where the two allow no token in common row 0 is used as it is, and so it is
    where there is no other row. Cost: about four exponentials per row and token. Raises ArgumentError
    for alpha outside (0, 1].
    """

    alpha: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", positive_share("DoLaContrast", "alpha", self.alpha, 0.1))

    @property
    def _factors(self) -> tuple[float, float]:
        return 1.0, 1.0

    def _distance(
        self, strong: Float[Tensor, "batch vocab"], row: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, " batch"]:
        """The Jensen-Shannon divergence in nats, as the mean of two divergences from the mixture."""
        mixture = torch.logaddexp(strong, row) - math.log(2)
        return (_divergence(strong, mixture) + _divergence(row, mixture)) / 2


def _divergence(p: Float[Tensor, "batch vocab"], q: Float[Tensor, "batch vocab"]) -> Float[Tensor, " batch"]:
    """sum p (log p - log q) of log-probabilities, 0 log 0 being 0."""
    return torch.where(p.isneginf(), 0.0, p.exp() * (p - q)).sum(-1)
