"""Mixtures in which a row weighs by how sure it is."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tokenscale.core.strategy import Rows
from tokenscale.token_level.aggregators.fold import IMPOSSIBLE, Fold, row_log_probs


class _WeightedSum(NamedTuple):
    """log sum_i w_i p_i, and log sum_i w_i."""

    total: Float[Tensor, "batch vocab"]
    weight: Float[Tensor, " batch"]


class _SureRows(Fold):
    """p = sum_i w_i softmax(z_i) / sum_i w_i, with weights that are a function of each row by itself."""

    @abstractmethod
    def _log_weights(self, log_probs: Float[Tensor, "batch rows vocab"]) -> Float[Tensor, "batch rows"]:
        """log w_i."""

    def _summary(self, rows: Rows) -> _WeightedSum:
        log_probs = row_log_probs(rows)
        log_weights = self._log_weights(log_probs)
        weighted = (log_probs + log_weights[..., None]).masked_fill_(~rows.valid[..., None], IMPOSSIBLE)
        return _WeightedSum(weighted.logsumexp(1), log_weights.masked_fill(~rows.valid, IMPOSSIBLE).logsumexp(1))

    def _merge(self, before: _WeightedSum, after: _WeightedSum) -> _WeightedSum:
        total = torch.logaddexp(before.total, after.total)
        return _WeightedSum(total, torch.logaddexp(before.weight, after.weight))

    def finish(self, accumulator: _WeightedSum) -> Float[Tensor, "batch vocab"]:
        log_probs: Tensor = accumulator.total - accumulator.weight[:, None]
        return log_probs


@dataclass(frozen=True)
class ConfidenceWeighted(_SureRows):
    """The mean of the rows' probabilities, each row weighted by the probability of its most likely token.

    p = sum_i w_i softmax(z_i) / sum_i w_i, w_i = max over the vocabulary of softmax(z_i): a row that is
    sure counts up to as many times more as the vocabulary has tokens. Cost: as MeanProbability.
    """

    def _log_weights(self, log_probs: Float[Tensor, "batch rows vocab"]) -> Float[Tensor, "batch rows"]:
        return log_probs.amax(-1)


@dataclass(frozen=True)
class EntropyWeighted(_SureRows):
    """The mean of the rows' probabilities, each row weighted by exp(-H_i), H_i being its entropy in nats.

    p = sum_i w_i softmax(z_i) / sum_i w_i, w_i = exp(-H_i) = 1 / (perplexity of row i). The weights are
    those of LeEns at temperature 1 (Qiu et al. 2024, "Entropy-Based Decoding for Retrieval-Augmented
    Large Language Models", arXiv 2406.17519), which multiplies the rows where this adds them.
    Cost: three exponentials per row and token.
    """

    def _log_weights(self, log_probs: Float[Tensor, "batch rows vocab"]) -> Float[Tensor, "batch rows"]:
        negative: Tensor = -torch.special.entr(log_probs.exp()).sum(-1)
        return negative
