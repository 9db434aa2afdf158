"""Every aggregator once more, in numpy and float64, on the valid rows of one sequence: logits [rows, vocab]."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import entr, log_softmax, logsumexp, rel_entr, softmax

from tokenscale.testing.aggregator_cases import Oracle


def log(p: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(p)


def proportional_to(p: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Log-probabilities of what is left to normalise; the first row's where nothing is."""
    return log(p / p.sum()) if p.sum() else log_softmax(logits[0])


def mixture(logits: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return log((weights[:, None] * softmax(logits, axis=-1)).sum(0) / weights.sum())


def mean_probability(logits: np.ndarray) -> np.ndarray:
    return logsumexp(log_softmax(logits, -1), axis=0) - np.log(len(logits))


def mean_logit(logits: np.ndarray) -> np.ndarray:
    """From raw logits: constants of rows cancel, which is the invariant the aggregator takes care of otherwise."""
    mean = logits.mean(0)
    return mean - logsumexp(mean) if np.isfinite(mean).any() else log_softmax(logits[0])


def log_sum_exp_logits(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits)
    return log(weights.sum(0) / weights.sum())


def min_probability(logits: np.ndarray) -> np.ndarray:
    return proportional_to(softmax(logits, axis=-1).min(0), logits)


def max_probability(logits: np.ndarray) -> np.ndarray:
    return proportional_to(softmax(logits, axis=-1).max(0), logits)


def median_probability(logits: np.ndarray) -> np.ndarray:
    return proportional_to(np.median(softmax(logits, axis=-1), axis=0), logits)


def confidence_weighted(logits: np.ndarray) -> np.ndarray:
    return mixture(logits, softmax(logits, axis=-1).max(-1))


def entropy_weighted(logits: np.ndarray) -> np.ndarray:
    return mixture(logits, np.exp(-entr(softmax(logits, axis=-1)).sum(-1)))


def token_vote(smoothing: float) -> Oracle:
    """Votes counted one by one."""

    def oracle(logits: np.ndarray) -> np.ndarray:
        votes = np.zeros(logits.shape[-1])
        for row in logits:
            best = np.flatnonzero(row == row.max())
            votes[best] += 1 / len(best)
        mean = softmax(logits, axis=-1).mean(0)
        return log((1 - smoothing) * votes / len(logits) + smoothing * mean)

    return oracle


def clean_anchored(weight: float) -> Oracle:
    def oracle(logits: np.ndarray) -> np.ndarray:
        others = len(logits) - 1
        return mixture(logits, np.array([weight, *[(1 - weight) / others] * others]) if others else np.ones(1))

    return oracle


def weighted(logits: np.ndarray, valid: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """All rows of a sequence: weights belong to places."""
    used = np.where(valid, weights, 0.0)
    used = used if used.any() else (np.arange(len(logits)) == np.argmax(valid)) * 1.0
    return mixture(logits, used)


def contrast(
    logits: np.ndarray, alpha: float, score: Callable[[np.ndarray, np.ndarray], np.ndarray], strength: float
) -> np.ndarray:
    """Of two rows; what is scored infinite outranks everything, and is ordered by the strong row."""
    strong, weak = log_softmax(logits, axis=-1)
    if not np.isfinite(np.minimum(strong, weak)).any():
        return strong
    plausible = np.exp(strong) >= alpha * np.exp(strong.max()) * (1 - 1e-12)
    with np.errstate(invalid="ignore"):
        scores = np.where(plausible, score(strong, weak), -np.inf)
    if np.isposinf(scores).any():
        scores = np.where(np.isposinf(scores), strength * strong, -np.inf)
    return log_softmax(scores)


def contrast_rows(beta: float, alpha: float) -> Oracle:
    def oracle(logits: np.ndarray) -> np.ndarray:
        if len(logits) == 1:
            return log_softmax(logits[0])
        return contrast(logits, alpha, lambda s, w: (1 + beta) * s - beta * w if beta else s, 1 + beta)

    return oracle


def jensen_shannon(p: np.ndarray, q: np.ndarray) -> float:
    mean = (p + q) / 2
    return float((rel_entr(p, mean) + rel_entr(q, mean)).sum() / 2)


def dola_contrast(alpha: float) -> Oracle:
    def oracle(logits: np.ndarray) -> np.ndarray:
        if len(logits) == 1:
            return log_softmax(logits[0])
        probs = softmax(logits, axis=-1)
        chosen, distance = 0, -np.inf
        for row in range(1, len(logits)):
            candidate = jensen_shannon(probs[0], probs[row])
            if candidate > distance + 1e-6:
                chosen, distance = row, candidate
        return contrast(logits[[0, chosen]], alpha, lambda s, w: s - w, 1.0)

    return oracle
