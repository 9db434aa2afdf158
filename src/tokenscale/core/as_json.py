"""Candidates as plain JSON values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenscale.core.data import Candidate


def finite_or_none(value: float) -> float | None:
    """None for NaN, which JSON has not."""
    return value if value == value else None


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
    if c.trace is not None:
        row["trace"] = {
            "entropy": list(c.trace.entropy),
            "disagreement": list(c.trace.disagreement),
            "rows": list(c.trace.rows),
            "distinct_experts": [finite_or_none(v) for v in c.trace.distinct_experts],
        }
    return row
