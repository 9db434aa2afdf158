"""Causal language models of transformers.

A model runs its rows in one of three forms, which `supported.py` chooses: over prompts that are shared
(`shared_rows.py`), as query rows over the clean cache (`query_rows.py`, or compiled, `compiled.py`), or as
copies of transformers' own cache (`expanded.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import AutoModelForCausalLM

from tokenscale.core.errors import ModelError
from tokenscale.core.model import LanguageModel, State
from tokenscale.core.plan import PLAIN, Routing, RowPlan
from tokenscale.core.prompt import Prompt
from tokenscale.core.step import Step
from tokenscale.core.stepped import Given, Outcome
from tokenscale.core.strategy import Aggregator, TokenProposer
from tokenscale.models.blocks import find_blocks
from tokenscale.models.checkpoint import read_checkpoint
from tokenscale.models.compiled import CompiledRows
from tokenscale.models.compiled_choice import why_uncompiled
from tokenscale.models.expanded import Expanded
from tokenscale.models.fingerprint import fingerprint
from tokenscale.models.layout import lay_out_experts
from tokenscale.models.native.kernels import chosen_kernels
from tokenscale.models.network import PREFILL_TOKENS, Network
from tokenscale.models.parallel import find_ranks
from tokenscale.models.quantised import check_quantised
from tokenscale.models.query_rows import QueryRows
from tokenscale.models.routers import find_routers
from tokenscale.models.scoring import score_texts
from tokenscale.models.shape import model_shape
from tokenscale.models.shared_rows import SharedRows
from tokenscale.models.stored import runs_on
from tokenscale.models.supported import (
    CacheForm,
    bill_note,
    cache_form,
    cache_keyword,
    context_length,
    missing,
    refuse_hidden_experts,
    shared_form,
)
from tokenscale.models.text import Reader, checked_tags, decode, encode


def load(
    path: str | Path,
    *,
    revision: str | None = None,
    dtype: torch.dtype | str | None = None,
    device_map: Any = None,
    attn_implementation: str | None = None,
    quantization_config: Any = None,
    think_tags: Sequence[tuple[str, str]] | None = None,
    compile: bool | None = None,
    kernels: bool | None = None,
    **from_pretrained: Any,
) -> HFModel:
    """A causal language model and its tokenizer, from "demo" or another packaged name, a folder or a hub id.

    Keywords are those of transformers' `from_pretrained`. The packaged models compute in float32.
    On a CPU with a C++ compiler our own kernels run small products (`kernels` False: never, True: or an error);
    else experts run as grouped products where transformers can, and float32 weights are stored as these read them
    fastest. An `experts_implementation` that is given is
    kept. `engine` says what was chosen. `think_tags` are the pairs of texts between which the model thinks, such as
    [("<think>", "</think>")]; None: those that its tokenizer shows (`core.thinking.tags_of`). `compile` compiles
    its decode steps; None: on a GPU, where they can be. Only a hub id reaches the network. Raises ModelError
    for what cannot be loaded, or with compile=True not compiled.
    """
    given = {"revision": revision, "dtype": dtype, "device_map": device_map, "attn_implementation": attn_implementation}
    given |= {"quantization_config": quantization_config, **from_pretrained}
    model, tokenizer = read_checkpoint(path, AutoModelForCausalLM.from_pretrained, given)
    kept = from_pretrained.get("experts_implementation") is not None
    lm = HFModel(model, tokenizer, str(path), think_tags, compile, kernels, own_experts=kept)
    if isinstance(lm.kernels, str):
        lay_out_experts(model)
    return lm


def wrap(
    model: Any,
    tokenizer: Any = None,
    think_tags: Sequence[tuple[str, str]] | None = None,
    compile: bool | None = None,
    kernels: bool | None = None,
) -> HFModel:
    """What `load` returns, for a transformers model in memory, which is left as it is.

    Without a tokenizer only prompts of token ids run, and nothing reads text. Raises ModelError for a
    model that is not causal or is in training mode.
    """
    name = getattr(model, "name_or_path", "") or type(model).__name__
    return HFModel(model, tokenizer, name, think_tags, compile, kernels)


class HFModel(LanguageModel):
    """A transformers causal model. `model` is the transformers object itself.

    `cache_form` is how it runs the rows of a token, "shared", "query rows" or "expanded", and
    `cache_form_reason` why; `engine` says what runs its steps.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        name: str,
        think_tags: Sequence[tuple[str, str]] | None = None,
        compile: bool | None = None,
        kernels: bool | None = None,
        own_experts: bool = False,
    ) -> None:
        if getattr(model, "get_output_embeddings", lambda: None)() is None:
            raise ModelError(f"{type(model).__name__} has no lm_head, so it is no causal model", "load it with LM head")
        if model.training:
            raise ModelError(f"{type(model).__name__} is in training mode, so dropout is on", "call model.eval() first")
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.ranks = find_ranks(model)
        config = model.config.get_text_config(decoder=True)
        routers = find_routers(model)
        refuse_hidden_experts(config, routers, type(model).__name__)
        check_quantised(model, routers)
        form = cache_form(config, type(model))
        self._uncompiled = why_uncompiled(model, form, compile, self.ranks is not None)
        shared = shared_form(model, form)
        form = shared if self._uncompiled else form  # a compiled step has a cache of its own
        self.cache_form, self.cache_form_reason = form.name, form.reason
        blocks = find_blocks(model)
        self.layers, self.hidden_size = len(blocks.layers) or config.num_hidden_layers, config.hidden_size
        self.bill_note = bill_note(config, form)
        self.shape = model_shape(model, routers, form.windows)
        self.kernels = chosen_kernels(model, routers, kernels, self.ranks is not None, own_experts)
        found = None if isinstance(self.kernels, str) else self.kernels
        self.network = Network(model, routers, self.shape, blocks, cache_keyword(model), found)
        expanded = form.name == "expanded"
        shares = form.name == "shared"
        self.joins_free = self.shares_prompts = shares
        self.pads_caches, self.joins_apart = not shares, expanded
        self.masked = None if expanded else QueryRows(self.network, form.windows)
        if self._uncompiled:
            self.rows = self._rows(form)
        else:
            own = shared.name == "shared"
            self.rows = CompiledRows(self.network, form.windows, own_attention=own, required=bool(compile))
        self._lacks = missing(self.network, form)
        self.capabilities = frozenset(name for name, why in self._lacks.items() if not why)
        self.context_length = context_length(config)
        self.vocab_size = model.get_output_embeddings().weight.shape[0]
        self._read_generation_config(model.generation_config)
        self.fingerprint = fingerprint(model, tokenizer)
        self._check_ranks()
        self.think_tags = checked_tags(tokenizer, think_tags)
        self._reader = Reader(tokenizer, self.think_tags)

    def _read_generation_config(self, generation: Any) -> None:
        ends = generation.eos_token_id
        self.eos_ids = frozenset([ends] if isinstance(ends, int) else ends or ())
        self.suppressed_ids = frozenset(generation.suppress_tokens or ())
        names = ("temperature", "top_k", "top_p", "min_p")
        set_by_model = {name: getattr(generation, name, None) for name in names}
        self.sampling_defaults: Mapping[str, float] = {k: v for k, v in set_by_model.items() if v is not None}

    @property
    def rank(self) -> int:
        """Which process of a tensor-parallel model this is; 0 where one process holds all of it."""
        return self.ranks.rank if self.ranks else 0

    @property
    def engine(self) -> str:
        """How steps run: compiled, or uncompiled and why; by kernels of ours, or why not."""
        if isinstance(self.rows, CompiledRows):
            return self.rows.engine
        kernels = f"no kernels: {self.kernels}" if isinstance(self.kernels, str) else self.kernels.told
        return f"{kernels}; uncompiled steps: {self._uncompiled}"

    def _rows(self, form: CacheForm) -> SharedRows | QueryRows | Expanded:
        if form.name == "shared":
            return SharedRows(self.network, form.windows)
        return self.masked or Expanded(self.network, form.pads)

    def _check_ranks(self) -> None:
        if self.ranks and not self.ranks.equal(int(self.fingerprint[:15], 16)):
            message = f"the ranks hold different models: on rank {self.rank} it is {self.name!r}"
            raise ModelError(message, "give every rank the same folder, revision and tokenizer")

    @contextmanager
    def _alone(self, *work: Any) -> Iterator[None]:
        """One forward at a time, since each changes the model while it runs; in step with the other ranks."""
        with _lock_of(self.model), self.ranks.lockstep(*work) if self.ranks else nullcontext():
            yield

    @property
    def cache_devices(self) -> Mapping[torch.device, float]:
        if self.ranks:  # all ranks must decode the same batches, whatever is free on each
            return {}
        places = [runs_on(layer) for layer in self.network.blocks.layers] or [self.network.device]
        return {device: places.count(device) / len(places) for device in set(places)}

    def lacks(self, capability: str) -> str:
        return self._lacks.get(capability) or super().lacks(capability)

    def inspect_layers(self) -> list[str]:
        return [router.name for router in self.network.routers]

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        begin = getattr(self.tokenizer, "bos_token_id", None)
        begin = self.model.generation_config.bos_token_id if begin is None else begin
        return encode(self.tokenizer, prompt, begin, self.name)

    def decode(self, token_ids: Sequence[int]) -> str:
        return decode(self.tokenizer, token_ids, self.name)

    def read(self, prompt: Sequence[int], token_ids: Sequence[int]) -> tuple[str, str]:
        return self._reader.read(prompt, token_ids) if self.think_tags else super().read(prompt, token_ids)

    @torch.no_grad()
    def prefill(self, prompts: Sequence[Sequence[int]], routing: Sequence[Routing] | None = None) -> State:
        with self._alone(prompts, routing):
            return self.rows.prefill(prompts, routing, PREFILL_TOKENS)

    def release(self) -> None:
        if isinstance(self.rows, SharedRows):
            self.rows.prefixes.clear()
        if isinstance(self.rows, CompiledRows):
            self.rows.pool.clear()

    @torch.no_grad()
    def step(self, state: State, tokens: Int[Tensor, " batch"], plan: RowPlan = PLAIN) -> Step:
        with self._alone(tokens, plan):
            return self.rows.step(state, tokens, plan)

    @torch.no_grad()
    def forced(
        self, texts: Sequence[Given], proposer: TokenProposer, aggregator: Aggregator, most_bytes: int
    ) -> list[Outcome] | None:
        if self.masked is None:
            return None
        with self._alone(texts, proposer, aggregator, most_bytes):
            return score_texts(self, self.masked, texts, proposer, aggregator, most_bytes)


_locks: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def _lock_of(model: Any) -> Any:
    """The lock of a transformers model, whoever has wrapped it."""
    return _locks.setdefault(model, RLock())


@cache
def opened(reference: str) -> LanguageModel:
    """The model of a reference, loaded once in a process."""
    return load(reference)
