"""Writes docs/architectures.md from the tests' tiny models: python -m tools.architectures

The page says of every architecture what the library finds in a tiny random model of it, and which
suite runs its tests. `page()` is the text; a test compares it with the committed page.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from tests.models.test_forms_zoo import CHANGES, QUICK
from tests.models.test_routers import ONE_EACH
from tests.models.zoo import NOT_MOE, SAME, ZOO, causal_class, tiny_config
from tokenscale.models.blocks import find_blocks
from tokenscale.models.inspection import COUNTED_AT, inspect_built

PAGE = Path(__file__).parent.parent / "docs" / "architectures.md"
SHOWN = {
    "tests/models/test_zoo.py::test_a_new_architecture_turns_this_red": (
        "the list is what a scan of transformers' sources finds"
    ),
    "tests/models/test_routers.py::test_the_family_of_every_architecture": (
        "the router family, experts and top-k that are found"
    ),
    "tests/models/test_router_choices.py::test_noisy_rows_run_the_experts_and_weights_of_the_rule": (
        "experts and gate weights of noisy rows equal a numpy float64 oracle of the family's rule"
    ),
    "tests/models/test_router_choices.py::test_zero_noise_through_the_noisy_path_is_the_model": (
        "noise of 0 through the noisy path is the plain model"
    ),
    "tests/models/test_forms_zoo.py::test_the_form_is_the_one_that_fits": "the cache form, and why",
    "tests/models/test_forms_zoo.py::test_noisy_rows_in_a_batch_that_changes": (
        "noisy rows in that form equal full forwards without a cache, within 1e-5, in batches that change"
    ),
    "tests/models/test_inspection.py::test_active_parameters_are_those_that_get_a_gradient": (
        "active parameters are those that one token gives a gradient"
    ),
    "tests/models/test_inspection.py::test_flops_and_kv_bytes_are_those_of_a_real_forward": (
        "FLOPs and KV bytes that `inspect` counts without weights are those of a forward with weights"
    ),
}
HEAD = """# Architectures

<!-- Written by `python -m tools.architectures`. Edit that script, not this page. -->

The token level works on the mixture-of-experts causal models that transformers defines. This table has one
row for each of the {count} architectures of transformers {version}, found by a scan of its sources and tested
on a tiny random model. For a model of your own, ask the model:

```sh
tokenscale inspect demo
```

It needs no weights: a folder with `config.json` alone is enough. A hub id reaches the network, because you name
it. The command prints layers, routers, parameters, FLOPs and KV bytes, the cache form, whether steps can be
compiled, and what RoE costs at n = 1 to 64. Its counts of distinct experts assume independent rows under uniform
routing, E (1 - (1 - k/E)^n); the rows of one token choose much alike, so real routing overlaps more.

## What the columns say

- **router**: how a layer chooses its experts.
- **cache form**: in the *shared* form all rows, samples and beams of a prompt read one copy of its keys. *Query
  rows* run as queries over a clean cache per sequence, whose size hardly grows with n. *Expanded* rows are
  copies of the cache; the layers that make copies necessary stand in brackets.
- **RoE**: whether routing noise is offered, else why not.
- **lacks**: what the model refuses by name. *dropout* (`MCDropout`) and *early layers* (`DoLa`): its residual
  stream has several lanes, or its layers several feed-forward blocks, so that neither has its plain meaning.
  *clean key*: `current_kv="clean"`, since an expanded row has a cache of its own, in which no other row's key stands.
- **bill**: whether the FLOPs that bills count for a step that sees {counted} keys equal those that torch counts in
  transformers' own code, within 1%. *x1.25* says that torch counts 1.25 times the bill on the tiny model; the
  factor of a large model is another, and `inspect` prints its figures. transformers' code may itself do more
  than the model needs: it expands latent keys at every step, and runs every expert of Llama 4.
  *not counted*: the code asks for values, which a model without weights has not.
- **test**: which suite runs the tests of routers and of rows: `make test` runs one architecture per router
  family and cache form, `make test-all` all of them.

## The table

"""


def row(name: str) -> str:
    """The line of one architecture."""
    kind = causal_class(name)
    with torch.device("meta"):
        config = tiny_config(name, **CHANGES.get(name, {}))
        model = kind._from_config(config, attn_implementation="eager", dtype=torch.float32)
    found = inspect_built(model.eval(), name)
    form = found.cache_form
    if form == "expanded":
        form += f" ({found.cache_form_reason.rpartition('(')[2].rstrip(')')})"
    cells = (
        f"`{name}`",
        kind.__name__,
        "<br>".join(sorted(found.families)),
        form,
        f"no: {found.roe}" if found.roe else "yes",
        _lacks(model, found.cache_form),
        _bill(found),
        _suites(name),
    )
    return "| " + " | ".join(cells) + " |"


def _lacks(model: Any, form: str) -> str:
    blocks = find_blocks(model)
    lacking = {"dropout": blocks.no_dropout, "early layers": blocks.no_early_layers, "clean key": form == "expanded"}
    return ", ".join(name for name, why in lacking.items() if why)


def _bill(found: Any) -> str:
    if found.flops_counted is None or found.flops_billed is None:
        return "not counted"
    ratio = found.flops_counted / found.flops_billed
    return "equal" if abs(ratio - 1) < 0.01 else f"x{ratio:.2f}"


def _suites(name: str) -> str:
    routers = "test" if name in ONE_EACH else "test-all"
    rows = "test" if name in QUICK else "test-all"
    return routers if routers == rows else f"routers: {routers}, rows: {rows}"


def page() -> str:
    """The whole page."""
    header = ("architecture", "class", "router", "cache form", "RoE", "lacks", "bill", "test")
    table = ["| " + " | ".join(header) + " |", "| " + " | ".join("---" for _ in header) + " |", *map(row, ZOO)]
    shown = [f"- `{test}`: {what}." for test, what in SHOWN.items()]
    same = [f"- `{name}` has the causal class of `{other}`." for name, other in SAME.items()]
    others = [f"- `{name}`: {reason}." for name, reason in NOT_MOE.items()]
    head = HEAD.format(count=len(ZOO), version=transformers.__version__, counted=COUNTED_AT)
    parts = [
        head + "\n".join(table),
        "## Which test shows what\n\n" + "\n".join(shown),
        "## Model types without a row\n\n" + "\n".join([*same, *others]),
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
