"""A hundred problems share one batch, whatever their strategies, and each gets what it gets alone."""

from __future__ import annotations

import pytest

import tokenscale as ts
from tokenscale.core.decode import LocalBackend
from tokenscale.models.toy import ToyModel

PROBLEMS = 100
BATCH = 64


@pytest.mark.parametrize(
    "text",
    [
        "AdaptiveSelfConsistency(max_k=4)",
        'StepBeam(width=1, expand=2, scorer=LogProb(), step=" ")',
        pytest.param('ChainOfThought(extract="The answer is ") | SelfConsistency(k=2)', marks=pytest.mark.slow),
        "BeamSearch(width=2)",
    ],
)
def test_a_hundred_problems_share_one_batch(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model runs a sixth of the steps, or fewer, that the problems would take one after the other."""
    lm, pipe = ToyModel(), ts.Pipeline.parse(text)
    prompts = [ts.Prompt(text=f"Q: {i} + 1?\nA:", key=str(i)) for i in range(PROBLEMS)]
    ticks: list[int] = []
    tick = LocalBackend.tick
    monkeypatch.setattr(LocalBackend, "tick", lambda self: ticks.append(len(self._groups)) or tick(self))
    results = pipe.run(lm, prompts, max_new_tokens=5, batch_size=BATCH)
    assert len(ticks) * 6 < sum(result.cost.sequential_steps for result in results)
    assert max(ticks) > BATCH // 2
    alone = [pipe.run(lm, [prompts[i]], max_new_tokens=5)[0] for i in (0, 57, 99)]
    assert alone == [results[i] for i in (0, 57, 99)]
