"""The abstract classes' own behaviour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from tokenscale.core.data import RoutingStats
from tokenscale.core.errors import PipelineError
from tokenscale.core.stage import Composable, Kind, require_stage
from tokenscale.core.starting import all_valid, start_all
from tokenscale.core.strategy import Aggregator, Rows
from tokenscale.models.toy import ToyModel
from tokenscale.token_level.decoders import Greedy
from tokenscale.token_level.plain import Plain
from tokenscale.token_level.roe import RoE


@dataclass(frozen=True)
class FirstRow(Aggregator):
    """Takes row 0; has no fold."""

    def aggregate(self, rows: Rows) -> Any:
        return rows.logits[:, 0].log_softmax(-1)


def test_an_aggregator_without_fold_says_so() -> None:
    assert not FirstRow.folds
    for call in (
        lambda a: a.init(1, 2),
        lambda a: a.update(None, all_valid(torch.zeros(1, 1, 2))),
        lambda a: a.finish(None),
    ):
        with pytest.raises(NotImplementedError, match="FirstRow has no fold form"):
            call(FirstRow())


def test_kinds_go_from_inner_to_outer() -> None:
    assert [k.name for k in Kind] == [
        "PROPOSER",
        "AGGREGATOR",
        "CONSTRAINT",
        "DECODER",
        "PROMPTING",
        "SEARCH",
        "CHOOSING",
        "SCORER",
    ]
    assert [RoE.kind, FirstRow.kind, Greedy.kind] == [Kind.PROPOSER, Kind.AGGREGATOR, Kind.DECODER]


def test_only_stages_compose() -> None:
    with pytest.raises(TypeError):
        Greedy() | 3  # type: ignore[operator]
    assert issubclass(Greedy, Composable)


def test_what_is_no_stage_is_refused() -> None:
    assert require_stage(Greedy()) == Greedy()
    with pytest.raises(PipelineError, match=r"Greedy is a class, not a stage\n  fix: write Greedy\(...\)"):
        require_stage(Greedy)
    with pytest.raises(PipelineError, match="3 is not a stage"):
        require_stage(3)


def test_equal_prompts_start_from_one_prefill() -> None:
    prefilled: list[int] = []

    class Counting(ToyModel):
        """Counts the prompts it prefills."""

        def prefill(self, prompts: Any, routing: Any = None) -> Any:
            prefilled.append(len(prompts))
            return super().prefill(prompts, routing)

    lm = Counting()
    prompts = [(1, 2), (3, 4, 5), (1, 2), (4, 3), (3, 4, 5)]
    state, caches = start_all(lm, prompts)
    assert [c.prompt for c in caches] == prompts
    assert prefilled == [3]
    assert state.lengths == [1, 2, 1, 1, 2]
    step = lm.step(state, torch.tensor([2, 5, 2, 3, 5]))
    for prompt, logits in zip(prompts, step.logits[:, 0], strict=True):
        wanted = torch.from_numpy(lm.exact_log_probs(prompt)).float()
        torch.testing.assert_close(logits.log_softmax(-1), wanted, rtol=0, atol=1e-6)


def test_a_plain_proposer_has_nothing_to_note() -> None:
    assert Plain().notes(RoutingStats(10, 0, 1, 1)) == ()
    Plain().check(ToyModel(moe_layers=0))
