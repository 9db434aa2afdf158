"""Greedy decoding against llama.cpp and transformers: the same random OLMoE, the same tokens, in one process.

    python -m benchmarks.llama_cpp --out benchmarks/results/llama_cpp.json

Needs the extra `bench` (llama-cpp-python, built for this machine, and gguf). The model is written as GGUF in its own
type; logits of both sides are compared first. Prompts have one token, so each new token is one forward on all
sides. llama.cpp runs with and without its flash attention (which rounds to half precision); the faster counts.
Two OpenMP pools live in the process, torch's and llama.cpp's, and one that has nothing to do spins for a while. Whether
that disturbs the other is seen: both sides run by themselves too, without arms taking turns.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import gguf_olmoe
from benchmarks.common import finish
from tokenscale.bench import bandwidth, suite
from tokenscale.bench.clock import interleaved
from tokenscale.bench.comparison import faster
from tokenscale.bench.greedy import PEER, Ours, Theirs
from tokenscale.bench.part import QUICK, Outcome, Sizes
from tokenscale.bench.subject import DTYPES, Subject
from tokenscale.bench.work import counted

MODEL, CHECKED = "random-olmoe", 32
FLASH = {"llama.cpp": llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED}
FLASH |= {"llama.cpp, flash attention": llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED}
KV_TYPES = {"float32": 0, "bfloat16": 30}  # ggml's numbers of the types
LEAST, AIM = 0.6, 1.0


@llama_cpp.llama_log_callback
def silent(level: int, text: bytes, data: Any) -> None:
    """llama.cpp says much while it loads."""


class LlamaCpp:
    """A model in llama.cpp, one sequence, the numbers of its cache in the model's own type."""

    def __init__(self, path: Path, dtype: str, threads: int, flash: int, vocab_size: int) -> None:
        llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self.vocab_size = vocab_size
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        given = llama_cpp.llama_context_default_params()
        given.n_ctx, given.n_batch, given.n_threads, given.n_threads_batch = 256, 256, threads, threads
        given.type_k = given.type_v = KV_TYPES[dtype]
        given.flash_attn_type = flash
        self.context = llama_cpp.llama_init_from_model(self.model, given)
        if not self.model or not self.context:
            raise RuntimeError(f"llama.cpp did not load {path}")

    def forget(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def logits(self, token: int) -> NDArray[np.float32]:
        """Those behind one token more; a view that the next call overwrites."""
        batch = llama_cpp.llama_batch_get_one((llama_cpp.llama_token * 1)(token), 1)
        if code := llama_cpp.llama_decode(self.context, batch):
            raise RuntimeError(f"llama_decode returned {code}")
        found = llama_cpp.llama_get_logits_ith(self.context, -1)
        return np.ctypeslib.as_array(found, shape=(self.vocab_size,))

    def greedy(self, prompt: Sequence[int], new_tokens: int) -> list[int]:
        """`new_tokens` tokens behind a prompt of one."""
        self.forget()
        [token], found = prompt, list[int]()
        for _ in range(new_tokens):
            token = int(self.logits(token).argmax())
            found.append(token)
        return found

    def close(self) -> None:
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)


class Peer(Ours):
    """llama.cpp's arm: the same prompts as ours."""

    def __init__(self, subject: Subject, tokens: int, llama: LlamaCpp) -> None:
        super().__init__(subject, 1, tokens, 1)
        self.llama = llama

    def __call__(self) -> None:
        self.found = [self.llama.greedy(self.prompts[0], self.tokens)]


@torch.no_grad()
def difference(subject: Subject, llama: LlamaCpp) -> float:
    """The largest difference of a logit over a text of random tokens, against transformers."""
    ids = subject.prompt(CHECKED)
    wanted = subject.peer(torch.tensor([ids])).logits[0].float().numpy()
    llama.forget()
    return max(float(np.abs(llama.logits(token) - row).max()) for token, row in zip(ids, wanted, strict=True))


@torch.no_grad()
def rounding(subject: Subject) -> float:
    """What transformers itself differs by from its logits with the same weights in float32."""
    ids = torch.tensor([subject.prompt(CHECKED)])
    exact = copy.deepcopy(subject.peer).float()(ids).logits
    return float((subject.peer(ids).logits.float() - exact).abs().max())


def measure(dtype: str, threads: Sequence[int], sizes: Sizes, quick: bool) -> list[dict[str, Any]]:
    """An entry for every number of threads."""
    subject = Subject.open(MODEL, dtype, threads[0], sizes.rounds)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        gguf_olmoe.write(subject.peer, path)
        found = []
        for count in threads:
            torch.set_num_threads(count)
            limits = bandwidth.measured(count, DTYPES[dtype], suite.QUICK_MEGABYTES if quick else bandwidth.MEGABYTES)
            one = replace(subject, threads=count)
            outcome = compared(one.ending_at(None), sizes, limits, path)
            found.append(outcome.to_dict(one, limits, sizes))
    return found


def compared(subject: Subject, sizes: Sizes, limits: bandwidth.Limits, path: Path) -> Outcome:
    """One number of threads."""
    make = partial(LlamaCpp, path, subject.dtype, subject.threads, vocab_size=subject.lm.vocab_size)
    llamas = {name: make(flash=flash) for name, flash in FLASH.items()}
    work = "greedy, batch 1"
    ours, theirs = Ours(subject, 1, sizes.new_tokens, 1), Theirs(subject, 1, sizes.new_tokens, 1)
    arms: dict[str, Callable[[], Any]] = {work: ours, PEER: theirs}
    arms |= {name: Peer(subject, sizes.new_tokens, llama) for name, llama in llamas.items()}
    differences = {name: difference(subject, llama) for name, llama in llamas.items()}
    seconds = interleaved(arms, sizes.rounds)
    best = min(llamas, key=lambda name: statistics.median(seconds[name]))
    alone = {name: interleaved({name: arms[name]}, sizes.rounds)[name] for name in (work, best)}
    with counted(subject.lm) as tally:
        ours()
    limit = tally.seconds(limits)
    comparisons = [
        faster(seconds, work, best, work, LEAST, AIM).with_limit(limit),
        faster(seconds, work, PEER, work).with_limit(limit),
    ]
    facts = {
        "largest difference of a logit": differences,
        "rounding": rounding(subject),
        "equal tokens": ours.found == arms[best].found,  # type: ignore[attr-defined]
        "ms per token": {name: 1e3 * statistics.median(seconds[name]) / sizes.new_tokens for name in arms},
        "alone, ms per token": {name: 1e3 * statistics.median(v) / sizes.new_tokens for name, v in alone.items()},
        "limit, ms per token": 1e3 * limit / sizes.new_tokens,
        "llama-cpp-python": version("llama-cpp-python"),
    }
    for llama in llamas.values():
        llama.close()
    return Outcome("llama_cpp", comparisons, facts)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtypes", nargs="+", default=list(KV_TYPES), choices=list(KV_TYPES))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--quick", action="store_true", help="one round: to see that it runs")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    sizes = QUICK if options.quick else Sizes()
    found = [entry for dtype in options.dtypes for entry in measure(dtype, options.threads, sizes, options.quick)]
    finish(found, options.out, "python -m benchmarks.llama_cpp")


if __name__ == "__main__":
    main()
