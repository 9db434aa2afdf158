"""Which invariants the built-in aggregators do not keep, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tokenscale.core.strategy import Aggregator
from tokenscale.token_level.aggregators import (
    CleanAnchored,
    ConfidenceWeighted,
    ContrastRows,
    DoLaContrast,
    EntropyWeighted,
    LogSumExpLogits,
    MaxProbability,
    MeanLogit,
    MeanProbability,
    MedianProbability,
    MinProbability,
    TokenVote,
    Weighted,
)


@dataclass(frozen=True)
class Declared:
    """What an aggregator declares to the suite, as arguments of `check_aggregator`.

    `without` names the invariants that it does not keep, each with the reason. `lipschitz` bounds how
    much a log-probability moves when logits move by at most 1. `rows`, where given, is the one number
    of rows that it is checked with.
    """

    without: Mapping[str, str] = field(default_factory=dict)
    lipschitz: float = 2.0
    rows: int | None = None


_RENORMALISED_UP = "what is left after the vetoes is renormalised, so an agreed token can gain over every row"
_CONTRAST = {
    "equal rows": "tokens outside the plausible set get probability 0, and DoLa's ratio of equal rows is flat",
    "permutation": "the first row is the strong one",
    "lower bound": "a token that the weak row likes better loses",
    "upper bound": "a token that the weak row likes less gains",
    "rounding": "a token enters or leaves the plausible set at once",
}

DECLARED: Mapping[type[Aggregator], Declared] = {
    MeanProbability: Declared(),
    MeanLogit: Declared({"upper bound": _RENORMALISED_UP}),
    LogSumExpLogits: Declared({"shift": "a row's weight is the sum of its exponentials, which a constant scales"}),
    # Four, not two: each row's log-probability moves by two, and so does the sum that renormalises.
    MinProbability: Declared({"upper bound": _RENORMALISED_UP}, lipschitz=4.0),
    MaxProbability: Declared(
        {"lower bound": "the largest probabilities sum to more than 1, and renormalising lowers all of them"},
        lipschitz=4.0,
    ),
    MedianProbability: Declared(
        {
            "lower bound": "medians may sum to more than 1",
            "upper bound": "medians may sum to less than 1",
        },
        lipschitz=4.0,
    ),
    TokenVote: Declared(
        {
            "one row": "a row's vote goes to its first choice whole",
            "equal rows": "a row's vote goes to its first choice whole",
            "lower bound": "a token without votes has only its part of the smoothing",
            "upper bound": "a row's vote goes to its first choice whole",
            "rounding": "a vote goes to another token at once",
        }
    ),
    # Weight and probability both move by two, the sum of the weights by two.
    ConfidenceWeighted: Declared(lipschitz=6.0),
    # |dH| <= E|log p + H| <= the standard deviation of log p, at most 1.4 for 8 tokens; twice that, and two.
    EntropyWeighted: Declared(lipschitz=4.8),
    ContrastRows: Declared({**_CONTRAST, "duplication": "it contrasts two rows, and refuses four"}, rows=2),
    DoLaContrast: Declared(
        {
            **_CONTRAST,
            "noisy permutation": "of rows equally far from row 0 the first is taken",
            "duplication": "the copy of row 0 is a candidate, the nearest one: only a lone row 0 meets it",
        }
    ),
    CleanAnchored: Declared(
        {
            "permutation": "the first row is the clean one",
            "duplication": "the copy of the clean row counts among the others",
        }
    ),
    Weighted: Declared(
        {
            "permutation": "weights belong to places",
            "noisy permutation": "weights belong to places",
            "absent rows": "weights belong to places, so rows must not move up",
            "oracle": "weights belong to places, and the oracle sees valid rows alone",
            "duplication": "there is one weight per row, and two for each is an error",
        },
        rows=3,
    ),
}
