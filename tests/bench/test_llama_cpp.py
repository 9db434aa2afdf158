"""A model written as GGUF is the same model in llama.cpp. Needs the extra `bench`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")

from benchmarks import gguf_olmoe, llama_cpp, pages
from benchmarks.llama_cpp import FLASH, LlamaCpp, difference
from tokenscale.bench.bandwidth import Limits
from tokenscale.bench.part import QUICK
from tokenscale.bench.subject import Subject


@pytest.fixture
def gguf(tiny: Subject, tmp_path: Path) -> Path:
    gguf_olmoe.write(tiny.peer, tmp_path / "model.gguf")
    return tmp_path / "model.gguf"


def test_logits_agree(tiny: Subject, gguf: Path) -> None:
    exact = LlamaCpp(gguf, "float32", 1, FLASH["llama.cpp"], tiny.lm.vocab_size)
    assert difference(tiny, exact) < 1e-4
    flash = LlamaCpp(gguf, "float32", 1, FLASH["llama.cpp, flash attention"], tiny.lm.vocab_size)
    assert difference(tiny, flash) < 0.1  # of logits with a deviation of 0.7: its attention rounds to half precision
    for llama in (exact, flash):
        llama.close()


def test_all_sides_write_the_same_tokens(tiny: Subject, gguf: Path, limits: Limits) -> None:
    outcome = llama_cpp.compared(tiny.ending_at(None), QUICK, limits, gguf)
    assert outcome.facts["equal tokens"]
    assert [one.against for one in outcome.comparisons] in [[name, "transformers generate"] for name in FLASH]
    assert outcome.comparisons[0].limit == pytest.approx(outcome.facts["limit, ms per token"] * QUICK.new_tokens)
    assert outcome.facts["rounding"] == 0.0
    results = json.loads(json.dumps({"llama_cpp": {"runs": [outcome.to_dict(tiny, limits, QUICK)]}}))
    text = pages.llama(results)
    assert "| 0.0e+00 |" in text
    assert text.rstrip().splitlines()[-1].startswith("- random-olmoe-tiny, float32, 1 thread: tokenscale ")


def test_bfloat16_is_written_bit_by_bit(tmp_path: Path) -> None:
    subject = Subject.open("random-olmoe-tiny", "bfloat16", 1)
    gguf_olmoe.write(subject.peer, tmp_path / "half.gguf")
    llama = LlamaCpp(tmp_path / "half.gguf", "bfloat16", 1, FLASH["llama.cpp"], subject.lm.vocab_size)
    assert difference(subject, llama) < 5 * llama_cpp.rounding(subject)
    llama.close()
