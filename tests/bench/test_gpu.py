"""The benchmark for GPUs runs through on the processor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu


@pytest.mark.slow
def test_a_tiny_model_on_the_processor(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    found = gpu.main(["--tiny", "--out", str(out)])
    assert json.loads(out.read_text()) == found
    assert set(found["steps"]) == {f"{engine}, n = {n}" for engine in ("compiled", "uncompiled") for n in (1, 4)}
    assert found["engines"]["compiled"] == "compiled steps (eager)"
    for batch in (1, 2):
        same = found[f"greedy, batch {batch}"]["same tokens as generate"]
        assert same == {"compiled": f"{batch} of {batch}", "uncompiled": f"{batch} of {batch}"}


def test_without_a_gpu_nothing_else_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "no GPU is there" in capsys.readouterr().err
