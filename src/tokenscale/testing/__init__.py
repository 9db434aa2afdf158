"""Conformance suites for authors of parts: call one in a test, and it raises AssertionError where a promise breaks.

Each suite checks what the abstract class of its part promises, on a part of yours. The suites for
aggregators and decoders search for counterexamples and need the test extra (hypothesis).
"""

from tokenscale.testing.aggregator import INVARIANTS, check_aggregator
from tokenscale.testing.aggregator_table import DECLARED, Declared
from tokenscale.testing.backend import check_backend
from tokenscale.testing.decoder import check_decoder
from tokenscale.testing.language_model import check_language_model
from tokenscale.testing.proposer import check_proposer
from tokenscale.testing.runs import check_runs
from tokenscale.testing.scorer import check_scorer
from tokenscale.testing.sequence_strategy import check_sequence_strategy, respond

__all__ = [
    "DECLARED",
    "INVARIANTS",
    "Declared",
    "check_aggregator",
    "check_backend",
    "check_decoder",
    "check_language_model",
    "check_proposer",
    "check_runs",
    "check_scorer",
    "check_sequence_strategy",
    "respond",
]
