"""Device maps: layers on several devices, weights that are offloaded, and what is missing for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tokenscale as ts
from tests.models.second_device import CPU, SECOND, Placing, on, place
from tests.models.test_load import tokenizer
from tests.models.tiny import tiny
from tokenscale.core.errors import ModelError
from tokenscale.models.expanded import Expanded
from tokenscale.models.hf import HFModel
from tokenscale.models.query_rows import QueryRows

PROMPTS = [(5, 6, 7, 8, 9), (12, 13), (14,)]
PIPES = {
    "greedy": ts.Pipeline(ts.Greedy()),
    "roe": ts.Pipeline(ts.RoE(n=4, tau=0.3)),
    "noisy prefill": ts.Pipeline(ts.RoE(n=3, tau=0.3, cache="private", prefill="noisy")),
    "samples": ts.Pipeline(ts.RoE(n=3, tau=0.5), ts.SelfConsistency(k=3)),
    "beams": ts.Pipeline(ts.BeamSearch(width=3, num_return=2)),
    "dropout": ts.Pipeline(ts.MCDropout(n=3)),
    "early layers": ts.Pipeline(ts.DoLa()),
    "experts of other ranks": ts.Pipeline(ts.SCMoE(weak=2)),
    "noisy samples": ts.Pipeline(ts.ExpertSample(tau=0.5), ts.SelfConsistency(k=2)),
}
QUICK = ("roe", "early layers")
FORMS = {
    "own": lambda lm: lm.rows,
    "query rows": lambda lm: QueryRows(lm.network, [None] * 3),
    "expanded": lambda lm: Expanded(lm.network, pads=True),
}


def run(lm: HFModel, pipe: ts.Pipeline) -> list[Any]:
    asked = [ts.Prompt(token_ids=ids, key=str(ids)) for ids in PROMPTS]
    results = pipe.run(lm, asked, seed=3, max_new_tokens=4)
    return [([c.token_ids for c in r.candidates], r.cost, r.routing) for r in results]


def spread(elsewhere: str) -> Any:
    """A model of which the named layers lie on the second device; "e" is the input table, "h" lm_head and the norm."""
    model = tiny("olmoe")
    for number, layer in enumerate(model.model.layers):
        place(layer, str(number) in elsewhere)
    place(model.model.embed_tokens, "e" in elsewhere)
    for module in (model.model.norm, model.lm_head):
        place(module, "h" in elsewhere)
    rotary = model.model.rotary_emb
    place(rotary, "e" in elsewhere)
    return model


@pytest.mark.parametrize(
    ("form", "name"),
    [
        (form, name) if name in QUICK else pytest.param(form, name, marks=pytest.mark.slow)
        for form in FORMS
        for name in PIPES
    ],
)
def test_layers_on_two_devices_say_what_they_say_on_one(form: str, name: str) -> None:
    pipe = PIPES[name]
    alone = ts.wrap(tiny("olmoe"), tokenizer())
    alone.network = replace(alone.network, kernels=None) if hasattr(alone.network, "kernels") else alone.network
    alone.rows = FORMS[form](alone)
    expected = run(alone, pipe)
    for elsewhere in ("0h", "e12"):
        with Placing():
            lm = ts.wrap(spread(elsewhere), tokenizer())
            lm.rows = FORMS[form](lm)
            assert run(lm, pipe) == expected, elsewhere
            assert lm.fingerprint == alone.fingerprint


def test_scoring_on_two_devices() -> None:
    texts = {"texts": [(5, 6, 7, 8), (9, 10, 11)], "prompts": [(1, 2), (3,)]}
    expected = ts.wrap(tiny("olmoe")).score(proposer=ts.RoE(n=3, tau=0.3), **texts)
    with Placing():
        lm = ts.wrap(spread("e02"))
        for one, two in zip(expected, lm.score(proposer=ts.RoE(n=3, tau=0.3), **texts), strict=True):
            assert one.log_probs == pytest.approx(two.log_probs, abs=1e-5)


def test_caches_lie_with_their_layers() -> None:
    with Placing():
        lm = ts.wrap(spread("12"))
        assert {device: round(share, 3) for device, share in lm.cache_devices.items()} == {CPU: 0.333, SECOND: 0.667}
        rows = QueryRows(lm.network, [None] * 3)
        state = rows.prefill([(5, 6, 7), (8, 9)], None, 100)
        assert [layer.keys.device for layer in state.cache.layers] == [CPU, SECOND, SECOND]


def test_the_pretended_device_tells_what_is_not_moved() -> None:
    there = on(torch.ones(3), True)
    with Placing():
        assert torch.zeros(2, device=SECOND).device == there.device == SECOND
        assert there.to("cpu").device == there.cpu().device == CPU
        with pytest.raises(RuntimeError, match="expected all tensors on one device"):
            there + torch.ones(3)
        with pytest.raises(RuntimeError, match="indexed from another device"):
            torch.ones(3)[there > 0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny("olmoe").save_pretrained(tmp_path)
    tokenizer(bos_token="<end>").save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("device_map", ["cpu", {"": "cpu"}, "auto"], ids=str)
def test_a_map_of_one_device_is_the_model_itself(folder: Path, device_map: Any) -> None:
    pytest.importorskip("accelerate")
    lm, plain = ts.load(folder, device_map=device_map), ts.load(folder)
    assert lm.fingerprint == plain.fingerprint
    assert run(lm, PIPES["roe"]) == run(plain, PIPES["roe"])


@pytest.mark.parametrize("first", ["cpu", "disk"])
def test_weights_on_disk(folder: Path, tmp_path: Path, first: str) -> None:
    """They come back for every forward; fingerprint, bill and tokens are those of the model in memory."""
    pytest.importorskip("accelerate")
    places = {"model.embed_tokens": first, "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "disk"}
    places |= {"model.layers.0": "disk", "model.layers.1": "cpu", "model.layers.2": "disk"}
    lm = ts.load(folder, device_map=places, offload_folder=str(tmp_path / "off"))
    plain = ts.load(folder)
    assert lm.model.model.layers[0].mlp.experts.down_proj.is_meta
    assert (lm.fingerprint, lm.shape, lm.capabilities) == (plain.fingerprint, plain.shape, plain.capabilities)
    for name in ("roe", "dropout", "early layers"):
        assert run(lm, PIPES[name]) == run(plain, PIPES[name])


@pytest.mark.parametrize("keyword", [{"device_map": "auto"}, {"tp_plan": "auto"}], ids=str)
def test_accelerate_is_named_where_it_is_missing(
    folder: Path, keyword: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenscale.models.checkpoint.is_accelerate_available", lambda: False)
    [name] = keyword
    with pytest.raises(
        ModelError, match=rf'(?s){name} needs the package accelerate.*fix: pip install "tokenscale\[larger\]"'
    ):
        ts.load(folder, **keyword)
