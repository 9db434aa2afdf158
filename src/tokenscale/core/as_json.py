"""Candidates as plain JSON values."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenscale.core.data import Candidate


def finite_or_none(value: float) -> float | None:
    """None for NaN and infinities, which JSON has not."""
    return value if math.isfinite(value) else None


def candidate_dict(c: Candidate) -> dict[str, Any]:
    """A candidate's text, tokens, cost and trace."""
    row: dict[str, Any] = {
        "text": c.text,
        "answer": c.answer,
        "token_ids": list(c.token_ids),
        "log_prob": c.log_prob,
        "finish_reason": c.finish_reason,
        "cost": c.cost.to_dict(),
    }
    if c.thinking:
        row["thinking"] = c.thinking
    if c.score is not None:
        row["score"] = finite_or_none(c.score)
    if c.signals:
        row["signals"] = {name: list(values) for name, values in c.signals}
    if c.trace is not None:
        row["trace"] = {
            "entropy": list(c.trace.entropy),
            "disagreement": list(c.trace.disagreement),
            "rows": list(c.trace.rows),
            "distinct_experts": [finite_or_none(v) for v in c.trace.distinct_experts],
        }
    return row
