"""The built-in sequence strategies keep what the abstract class promises."""

from __future__ import annotations

import pytest

from tokenscale.core.prompt import Prompt
from tokenscale.core.strategy import SequenceStrategy
from tokenscale.sequence_level.chain_of_thought import ChainOfThought
from tokenscale.sequence_level.self_consistency import SelfConsistency
from tokenscale.testing import check_sequence_strategy

PROMPTS = [
    Prompt(text="Q: 1 + 1?\nA:"),
    Prompt(token_ids=(1, 2)),
    Prompt.of([{"role": "user", "content": "1 + 1?"}]),
]


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("strategy", [ChainOfThought(), SelfConsistency(1), SelfConsistency(5, answers="letter")])
def test_strategies_keep_their_promises(strategy: SequenceStrategy, prompt: Prompt) -> None:
    check_sequence_strategy(strategy, prompt=prompt)
