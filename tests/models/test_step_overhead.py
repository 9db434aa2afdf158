"""What a step of the decode loop asks of torch outside of the model's forward, counted."""

from __future__ import annotations

from typing import Any

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

import tokenscale as ts

SHORT, LONG = 4, 12


class Outside(TorchDispatchMode):
    """Counts operations while no forward of the model runs."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.count, self.inside = 0, False
        self._hooks = [model.register_forward_pre_hook(self._enter), model.register_forward_hook(self._leave)]

    def _enter(self, *args: Any) -> None:
        self.inside = True

    def _leave(self, *args: Any) -> None:
        self.inside = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not self.inside
        return func(*args, **(kwargs or {}))

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()


@pytest.mark.parametrize(
    ("pipe", "prompts", "most"),
    [(ts.Pipeline(ts.Greedy()), 1, 45), (ts.Pipeline(ts.Greedy()), 16, 45), (ts.RoE(8, 1.0) | ts.Greedy(), 1, 100)],
    ids=["greedy", "greedy of 16", "RoE"],
)
def test_few_operations_stand_between_two_forwards(pipe: ts.Pipeline, prompts: int, most: int) -> None:
    lm = ts.load("demo")

    def counted(tokens: int) -> int:
        with Outside(lm.model) as outside:
            found = pipe.run(lm, [f"{i} + 1" for i in range(prompts)], seed=0, max_new_tokens=tokens)
        assert {len(result.candidates[0].token_ids) for result in found} == {tokens}
        return outside.count

    first, short = counted(SHORT), counted(SHORT)  # what is made once is made in the first run
    assert short <= first
    assert (counted(LONG) - short) / (LONG - SHORT) <= most
