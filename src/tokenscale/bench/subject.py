"""What is measured: a model as tokenscale runs it, and the same weights for transformers alone."""

from __future__ import annotations

import copy
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from tokenscale.bench.random_models import RANDOM, numbers_tokenizer, random_model
from tokenscale.core.errors import ArgumentError
from tokenscale.core.noise import Stream
from tokenscale.models.hf import HFModel, load, wrap

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
GROUPED = "grouped_mm"


@dataclass(frozen=True)
class Subject:
    """A model by name, in one type of numbers, on so many threads.

    `lm` is ours and `peer` transformers' own object: other modules over the same weights, experts as
    `grouped_mm`, so that nothing of ours runs in it.
    """

    name: str
    lm: HFModel
    peer: Any
    threads: int
    rounds: int

    @classmethod
    def open(cls, name: str, dtype: str | None = None, threads: int | None = None, rounds: int = 7) -> Subject:
        """`name`: one of `random_models.RANDOM`, or what `load` takes. Sets torch's threads. Raises ModelError."""
        if dtype is not None and dtype not in DTYPES:
            raise ArgumentError(f"dtype={dtype!r}: no such type of numbers here", f"write one of {', '.join(DTYPES)}")
        if threads is not None:
            torch.set_num_threads(threads)
        disable_progress_bar()
        kind = None if dtype is None else DTYPES[dtype]
        if name in RANDOM:
            model = random_model(name, kind or torch.float32)
            ours = wrap(model, numbers_tokenizer(model.config.vocab_size))
            return cls(name, ours, twin(model), torch.get_num_threads(), rounds)
        lm = load(name, dtype=kind)
        return cls(name, lm, twin(lm.model), torch.get_num_threads(), rounds)

    @property
    def dtype(self) -> str:
        return str(self.lm.model.dtype).removeprefix("torch.")

    @cached_property
    def vocabulary(self) -> list[int]:
        """The token ids that random prompts are made of: all that end no text and are no padding."""
        out = {*self.lm.eos_ids, *self.lm.suppressed_ids, getattr(self.peer.config, "pad_token_id", None)}
        return [token for token in range(self.lm.vocab_size) if token not in out]

    def prompt(self, tokens: int, number: int = 0) -> tuple[int, ...]:
        """`tokens` random token ids, the same ones for the same number."""
        draws = Stream(("bench", number)).generator(domain=0, block=0)
        return tuple(self.vocabulary[i] for i in draws.integers(len(self.vocabulary), size=tokens).tolist())

    def ending_at(self, ends: list[int] | None) -> Subject:
        """The same weights with other end tokens, for both sides; None: no text ends before its length."""
        ours, peer = twin(self.lm.model, grouped=False), twin(self.peer)
        for model in (ours, peer):
            model.generation_config.eos_token_id = ends
            if model.generation_config.pad_token_id is None:
                model.generation_config.pad_token_id = 0
        return Subject(self.name, wrap(ours, self.lm.tokenizer), peer, self.threads, self.rounds)

    def about(self) -> dict[str, Any]:
        """What a result says of it."""
        return {
            "model": self.name,
            "dtype": self.dtype,
            "threads": self.threads,
            "experts": implementation(self.lm),
            "cache_form": self.lm.cache_form,
        }


def twin(model: Any, grouped: bool = True) -> Any:
    """Other modules over the same weights; with `grouped`, experts as transformers runs them best on a CPU."""
    shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    other = copy.deepcopy(model, shared)
    if grouped:
        with suppress(ValueError):  # of dense models, and of those whose experts run in one way only
            other.set_experts_implementation(GROUPED)
    return other


def implementation(lm: HFModel) -> str:
    """How our side runs experts, in a word; "none" of a dense model."""
    if not lm.shape.moe_layers:
        return "none"
    kernels = lm.network.kernels
    if kernels is not None and kernels.experts:
        return "native kernels"
    return str(getattr(lm.model.config, "_experts_implementation", None) or "eager")
