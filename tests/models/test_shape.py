"""The analytic bill against torch's own FLOP counter, and sizes against the parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.models.tiny import FAMILIES, tiny
from tests.models.zoo import tiny_model
from tokenscale.core.plan import RowPlan
from tokenscale.core.prompt import Prompt
from tokenscale.models.hf import wrap
from tokenscale.pipeline import Pipeline
from tokenscale.token_level.decoders import Greedy


def grouped_mm_flops(a: Any, b: Any, *args: Any, **kwargs: Any) -> int:
    """[tokens, inner] x [experts, inner, outer]: every token is multiplied once."""
    return int(2 * a[0] * a[1] * b[-1])


def attention_flops(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    batch, heads, queries, dim = query
    return int(2 * batch * heads * queries * key[2] * (dim + value[3]))


def count(function: Any) -> float:
    """FLOPs that torch saw, with what its counter misses on CPUs added."""
    aten = torch.ops.aten
    mapping = {
        aten._grouped_mm: grouped_mm_flops,
        aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
    }
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        function()
    return float(counter.get_total_flops())


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "mixtral-sliding"])
def test_step_flops_equal_torchs_count(family: str, rows: int) -> None:
    lm = wrap(tiny(family, "eager"), kernels=False)
    assert lm.masked is not None
    if family == "llama" and rows > 1:
        pytest.skip("a dense model takes one row")
    state = lm.masked.prefill([list(range(5, 14))], None, 99)
    seen = count(lambda: lm.masked.step(state, torch.tensor([7]), RowPlan(rows)))
    # Every row sees the nine tokens of the past and itself; the kernel also multiplies the other rows' keys.
    [(per_key, _)] = lm.shape.attention
    masked = per_key * rows * (rows - 1)
    assert seen - masked == pytest.approx(lm.shape.decode_flops([rows], 10), rel=1e-6)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "mixtral-sliding"])
def test_prefill_flops_equal_torchs_count(family: str) -> None:
    lm = wrap(tiny(family, "eager"), kernels=False)
    assert lm.masked is not None
    length = 9
    seen = count(lambda: lm.masked.prefill([list(range(5, 5 + length))], None, 99))
    # The eager kernel multiplies the keys above the diagonal too.
    [(per_key, _)] = lm.shape.attention
    masked = per_key * length * (length - 1) / 2
    assert seen - masked == pytest.approx(lm.shape.prefill_flops(length), rel=1e-6)


def test_a_sliding_window_bounds_attention() -> None:
    full, sliding = (wrap(tiny(family)).shape for family in ("mixtral", "mixtral-sliding"))
    assert sliding.decode_flops([2], 4) == full.decode_flops([2], 4)
    assert sliding.decode_flops([2], 100) == full.decode_flops([2], 4)


@pytest.mark.parametrize("family", FAMILIES)
def test_bytes_add_up_to_the_model(family: str) -> None:
    model = tiny(family)
    shape = wrap(model).shape
    everything = sum(p.nbytes for p in model.parameters()) - model.get_input_embeddings().weight.nbytes
    assert shape.dense_bytes + shape.head_bytes + shape.moe_layers * shape.experts * shape.expert_bytes == everything


@pytest.mark.parametrize("family", FAMILIES)
def test_kv_bytes_are_what_transformers_stores(family: str) -> None:
    model = tiny(family)
    cache = model(torch.arange(3, 6)[None], use_cache=True).cache
    stored = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert wrap(model).shape.kv_bytes * 3 == stored


@pytest.mark.parametrize(
    ("name", "why"),
    [("deepseek_v3", "latent keys"), ("lfm2_moe", "whose state is not plain keys and values"), ("olmoe", "")],
)
def test_a_bill_that_is_an_estimate_says_so(name: str, why: str) -> None:
    lm = wrap(tiny_model(name))
    assert why in lm.bill_note
    assert bool(lm.bill_note) == bool(why)
    [result] = Pipeline(Greedy()).run(lm, [Prompt(token_ids=(3, 4))], max_new_tokens=2)
    assert any("the cost of" in note for note in result.notes) == bool(why)
