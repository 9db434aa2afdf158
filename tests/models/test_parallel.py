"""Tensor parallelism: two processes over gloo, each with a part of the weights, do what one does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaForSequenceClassification

import tokenscale as ts
from tests.models.test_load import tokenizer
from tests.models.tiny import tiny
from tests.models.two_ranks import PIPES, outcomes
from tests.models.zoo import tiny_model
from tests.test_docs import blocks, run_python
from tokenscale.core.errors import ModelError, OutOfMemoryError
from tokenscale.core.memory import out_of_memory
from tokenscale.core.noise import Stream
from tokenscale.core.plan import Routing, RowPlan
from tokenscale.models.parallel import Ranks, digest, find_ranks

ROOT = Path(__file__).parent.parent.parent
ATTENTION = [f"self_attn.{name}_proj.weight" for name in "qkvo"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def save(folder: Path, model: Any) -> None:
    model.save_pretrained(folder)
    tokenizer(bos_token="<end>").save_pretrained(folder)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def torchrun(*words: str) -> str:
    """What the script prints in two processes on this machine."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
    command += ["--master-port", str(free_port()), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}:{_further()}"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=900, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr[-6000:]
    return ran.stdout


def _further() -> str:
    return os.environ.get("PYTHONPATH", "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("accelerate")
    folder = tmp_path_factory.mktemp("models")
    for kind in ("mixtral", "olmoe"):
        save(folder / kind, tiny(kind))
    for rank in range(2):
        save(folder / f"rank-{rank}", tiny("olmoe", seed=rank))
    save(folder / "one-head", one_head())
    save(folder / "doge", tiny_model("doge"))
    save(folder / "reward", reward())
    return folder


def reward() -> Any:
    config = tiny("llama").config
    config.num_labels = 1
    return LlamaForSequenceClassification._from_config(config, dtype=torch.float32).eval()


def one_head() -> Any:
    kind = type(tiny("mixtral"))
    config = tiny("mixtral").config
    config.num_key_value_heads = 1
    return kind._from_config(config, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def said(folder: Path) -> list[dict[str, Any]]:
    """What the two processes wrote."""
    torchrun(str(ROOT / "tests" / "models" / "two_ranks.py"), str(folder))
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mixtral", "olmoe"])
@pytest.mark.parametrize("plan", ["tensor", "experts"])
def test_two_ranks_say_what_one_process_says(said: list[dict[str, Any]], folder: Path, kind: str, plan: str) -> None:
    """Tokens and bills, with noise, sampling and dropout, but where a choice hung on less than 1e-5."""
    lm = ts.load(folder / kind)
    alone = json.loads(json.dumps(outcomes(lm, list(PIPES))))
    compared = 0
    for rank in said:
        mine = rank[f"{kind} {plan}"]
        assert (mine["fingerprint"], mine["shape"]) == (lm.fingerprint, repr(lm.shape))
        assert mine["capabilities"] == sorted(lm.capabilities)
        for name, expected in alone.items():
            for one, two in zip(expected, mine["outcomes"][name], strict=True):
                if one[2] == two[2] == 0:
                    assert one == two, name
                    compared += 1
    assert said[0][f"{kind} {plan}"]["outcomes"] == said[1][f"{kind} {plan}"]["outcomes"]
    assert compared > 0.8 * 2 * len(PIPES) * 4  # near-ties are rare


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mixtral", "olmoe"])
def test_each_rank_holds_a_part_of_the_weights(said: list[dict[str, Any]], kind: str) -> None:
    layers = [f"model.layers.{i}.{name}" for i in range(3) for name in ATTENTION + EXPERTS]
    for rank in said:
        for plan, split in (
            ("tensor", {"gate_up_proj": 1, "down_proj": 2}),
            ("experts", {"gate_up_proj": 0, "down_proj": 0}),
        ):
            sharded = rank[f"{kind} {plan}"]["sharded"]
            assert set(sharded) == {*layers, "model.embed_tokens.weight", "lm_head.weight"}
            for name, (whole, local) in sharded.items():
                assert 0 < torch.Size(local).numel() < 0.52 * torch.Size(whole).numel(), name
                if "experts" in name:
                    dim = split[name.rpartition(".")[2]]
                    assert local == [size // (1 + (d == dim)) for d, size in enumerate(whole)]


@pytest.mark.slow
def test_scoring_is_that_of_one_process(said: list[dict[str, Any]], folder: Path) -> None:
    [alone] = ts.load(folder / "olmoe").score(["w5 w6 w7"], ts.RoE(n=3, tau=0.3), prompts=["w3 w4"], seed=1)
    for rank in said:
        assert rank["score"] == pytest.approx(alone.log_probs, abs=1e-5)


@pytest.mark.slow
def test_logits_that_are_read_in_tiles_are_gathered_alike(said: list[dict[str, Any]]) -> None:
    for rank in said:
        assert [texts for texts, _, ties in rank["in tiles"] if not ties] == [
            texts for texts, _, ties in rank["olmoe experts"]["outcomes"]["roe"] if not ties
        ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["other seeds", "other prompts"])
def test_ranks_that_are_given_other_work_are_refused(said: list[dict[str, Any]], name: str) -> None:
    for number, rank in enumerate(said):
        assert f"different prompts, seeds or settings (this is rank {number})" in rank[name]
        assert "fix: run the same script with the same prompts and seeds on every rank" in rank[name]


@pytest.mark.slow
def test_the_script_of_the_page_prints_once_what_one_process_prints(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    page = (ROOT / "docs" / "larger-models.md").read_text()
    [body] = [block.body for block in blocks(page) if "DistributedConfig(" in block.body and block.language == "python"]
    script = tmp_path / "answer.py"
    script.write_text(body)
    alone = run_python(ROOT, str(script))
    assert torchrun(str(script)).splitlines() == alone.splitlines()
    assert len(alone.splitlines()) == 1


@pytest.mark.slow
def test_what_ranks_cannot_share_is_refused(said: list[dict[str, Any]]) -> None:
    for number, rank in enumerate(said):
        assert (rank["rank"], rank["least"]) == (number, 6)
        assert (
            "MixtralForCausalLM has 1 heads of keys and values, which 2 ranks cannot share evenly" in rank["one head"]
        )
        assert "is sharded over ranks, and a reward model runs in one process" in rank["reward"]
        assert "the plan by which transformers shards DogeForCausalLM does not run: The size of tensor" in rank["plan"]
        assert f"the ranks hold different models: on rank {number} it is" in rank["other weights"]


def distributed(**sizes: int) -> Any:
    """A model as transformers leaves it, with a mesh that is never asked."""
    model = tiny("mixtral")
    asked = {"tp_size": 2, "ep_size": 1, "pp_size": 1, "dp_size": 1, **sizes}
    model.config.distributed_config, model._mesh_manager = SimpleNamespace(**asked), object()
    return model


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"pp_size": 2}, "pp_size=2: a pipeline of layers gives its logits to one rank only"),
        ({"dp_size": 4}, r"4 data-parallel replicas \(FSDP\)"),
        ({"ep_size": 4}, "ep_size=4 over other ranks than tp_size=2"),
        ({"tp_size": 4}, "has 2 heads of keys and values, which 4 ranks cannot share evenly"),
    ],
)
def test_other_parallelism_is_refused_by_name(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        find_ranks(distributed(**sizes))


def test_a_model_of_one_process_has_no_ranks() -> None:
    lm = ts.wrap(tiny("mixtral"))
    assert (lm.ranks, lm.rank) == (None, 0)


def test_checksums_tell_work_apart() -> None:
    noise = torch.rand(3, 1, 2, 8)
    other = noise.clone()
    other[2, 0, 1, 7] += 1e-3
    works = [
        (torch.tensor([1, 2]), RowPlan(2, Routing.of(noise))),
        (torch.tensor([1, 2]), RowPlan(2, Routing.of(other))),
        (torch.tensor([2, 1]), RowPlan(2, Routing.of(noise))),
        (torch.tensor([1, 2]), RowPlan(2, Routing.of(noise), current_kv="clean")),
        ([(1, 2), (3,)], None),
        ([(1,), (2, 3)], None),
        ([(1, 2), (3,)], Stream((3, "a"))),
        ([(1, 2), (3,)], Stream((3, "b"))),
    ]
    sums = [digest(work) for work in works]
    assert len(set(sums)) == len(works)
    assert sums == [digest(work) for work in works]
    assert digest(works[0]) == digest((torch.tensor([1, 2]), RowPlan(2, Routing.of(noise.clone()))))


def test_memory_that_runs_out_on_one_rank_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no longer an error that halving the batch answers, since the other ranks go on with the whole one."""
    ranks = Ranks(1, 2, None, torch.device("cpu"))
    monkeypatch.setattr(Ranks, "equal", lambda self, value: True)
    with (
        pytest.raises(OutOfMemoryError, match=r"memory ran out on rank 1 of 2: CUDA out of memory") as caught,
        ranks.lockstep(),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory")
    assert out_of_memory(caught.value) is None
    with pytest.raises(RuntimeError, match="shape"), ranks.lockstep():
        raise RuntimeError("shape mismatch")
