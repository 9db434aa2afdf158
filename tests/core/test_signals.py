"""Signals of confidence, against their formulas in numpy."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tokenscale.core.signals import TOP, confidence, self_certainty

LOGITS = arrays(np.float64, st.tuples(st.integers(1, 3), st.integers(1, 40)), elements=st.floats(-20, 20))


def normalised(logits: np.ndarray) -> np.ndarray:
    return (
        logits
        - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - logits.max(-1, keepdims=True)
    )


@given(LOGITS)
def test_confidence_is_minus_the_mean_of_the_top_log_probabilities(logits: np.ndarray) -> None:
    log_probs = normalised(logits)
    wanted = -np.sort(log_probs, -1)[:, ::-1][:, :TOP].mean(-1)
    np.testing.assert_allclose(confidence(torch.from_numpy(log_probs)), wanted, atol=1e-9)


@given(LOGITS)
def test_self_certainty_is_the_divergence_of_the_uniform_distribution(logits: np.ndarray) -> None:
    log_probs = normalised(logits)
    vocab = log_probs.shape[-1]
    wanted = (1 / vocab * (np.log(1 / vocab) - log_probs)).sum(-1)
    found = self_certainty(torch.from_numpy(log_probs))
    np.testing.assert_allclose(found, wanted, atol=1e-9)
    assert (found >= -1e-9).all()


@given(LOGITS, st.integers(1, 5))
def test_impossible_tokens_are_no_part_of_self_certainty(logits: np.ndarray, count: int) -> None:
    """Tokens of probability 0, as contrasts and constraints make them, leave both signals finite."""
    log_probs = torch.from_numpy(normalised(logits))
    wider = torch.cat((log_probs, torch.full((len(log_probs), count), float("-inf"), dtype=torch.float64)), -1)
    torch.testing.assert_close(self_certainty(wider), self_certainty(log_probs))
    assert confidence(wider).isfinite().all()
