"""Every mixture-of-experts architecture that transformers can shard, over two processes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.models.test_parallel import ROOT, save, torchrun
from tests.models.zoo import ZOO, tiny_model

CANNOT_BE_LOADED = {"mistral4", "sarvam_moe"}  # by AutoModelForCausalLM, once saved
DO_NOT_RUN = {"doge", "gemma4", "inkling_text"}  # in transformers itself
REORDERED = {"inkling2_loop_text", "inkling2_text"}  # their plan stores gate and up rank by rank


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    pytest.importorskip("accelerate")
    folder = tmp_path_factory.mktemp("zoo")
    for name in ZOO:
        model = tiny_model(name)
        if model.tp_plan and name not in CANNOT_BE_LOADED:
            save(folder / name, model)
    torchrun(str(ROOT / "tests" / "models" / "two_ranks_zoo.py"), str(folder))
    ranks = [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0] == ranks[1]
    return dict(ranks[0])


@pytest.mark.slow
def test_sharded_architectures_say_what_whole_ones_say(said: dict[str, Any]) -> None:
    ran = [(name, plan, found) for name, plans in said.items() for plan, found in plans.items() if "same" in found]
    for name, plan, found in ran:
        assert found["differ by"] < 2e-5, (name, plan)
        assert found["same"] or found["near ties"], (name, plan)
        assert found["fingerprint"] or (plan == "tensor" and name in REORDERED), (name, plan)
    assert sum(found["same"] for *_, found in ran) >= len(ran) - 2
    assert len({name for name, *_ in ran}) > 50


@pytest.mark.slow
def test_those_that_do_not_run_are_refused_when_loaded(said: dict[str, Any]) -> None:
    refused = {
        (name, plan): f["refused"] for name, plans in said.items() for plan, f in plans.items() if "refused" in f
    }
    for (name, plan), message in refused.items():
        assert "does not run" in message or "has no `" in message, (name, plan, message)
    assert {name for (name, _), message in refused.items() if "does not run" in message} == DO_NOT_RUN
