"""The model itself as a proposer."""

from __future__ import annotations

import pytest
import torch

from tokenscale.core.noise import Stream
from tokenscale.models.toy import ToyModel
from tokenscale.testing import check_proposer
from tokenscale.token_level.aggregators import MeanProbability
from tokenscale.token_level.plain import Plain


@pytest.mark.parametrize("layers", [0, 2])
def test_it_conforms(layers: int) -> None:
    check_proposer(Plain(), ToyModel(moe_layers=layers))


def test_its_row_is_the_models_distribution() -> None:
    lm = ToyModel()
    proposals = Plain().start(lm, [(1, 2, 3)], [Stream((0,))])
    rows, _ = proposals.propose(torch.tensor([3]))
    assert rows.logits.shape == (1, 1, lm.vocab_size)
    found = MeanProbability().aggregate(rows)[0]
    wanted = torch.from_numpy(lm.exact_log_probs((1, 2, 3))).float()
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    assert not Plain().random
