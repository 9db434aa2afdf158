"""What the benchmarks share: the model, the machine's name, interleaved rounds."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers


def random_olmoe(experts: str = "grouped_mm") -> Any:
    """A random OLMoE: hidden 512, 8 layers, 64 experts of inner size 256, top-8, 8 heads, float32, sdpa."""
    config = transformers.OlmoeConfig(
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=256,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_experts=64,
        num_experts_per_tok=8,
        max_position_embeddings=1024,
        pad_token_id=0,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    model = transformers.OlmoeForCausalLM._from_config(
        config, attn_implementation="sdpa", experts_implementation=experts, dtype=torch.float32
    )
    return model.eval()


def machine() -> dict[str, Any]:
    """Where the figures come from."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def interleaved(arms: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every arm in every round, after one round that does not count. Arms take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for round_ in range(rounds + 1):
        for name, arm in arms.items():
            start = time.perf_counter()
            arm()
            if round_:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: dict[str, list[float]], slow: str, fast: str) -> dict[str, float]:
    """How many times faster: the median over rounds of the paired ratio, with the quartiles."""
    ratios = [a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4)
    return {"median": round(median, 2), "lower_quartile": round(low, 2), "upper_quartile": round(high, 2)}
