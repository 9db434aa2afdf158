"""transformers models: the only file that loads checkpoints.

A step runs n query rows of every sequence in one forward over the clean cache (`clean_cache.py`),
with the routers watched and, where the plan says so, perturbed (`routers.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from tokenscale.core.cost import Prefill
from tokenscale.core.data import Prompt
from tokenscale.core.errors import ModelError
from tokenscale.core.model import ROUTING_NOISE, LanguageModel, State
from tokenscale.core.plan import PLAIN, Routing, RowPlan
from tokenscale.core.step import Step, no_experts, pack_experts
from tokenscale.models.clean_cache import CleanCache, CleanState
from tokenscale.models.fingerprint import fingerprint
from tokenscale.models.masks import additive, prefill_mask, row_mask
from tokenscale.models.routers import RoutingRecord, find_routers, watch
from tokenscale.models.shape import model_shape
from tokenscale.models.source import LOADABLE, PACKAGED, find
from tokenscale.models.supported import cache_keyword, layer_windows, refuse_hidden_experts
from tokenscale.models.text import decode, encode

PREFILL_TOKENS = 8192  # tokens, padding included, of one prefill forward


def load(
    path: str | Path,
    *,
    revision: str | None = None,
    dtype: torch.dtype | str | None = None,
    device_map: Any = None,
    attn_implementation: str | None = None,
    quantization_config: Any = None,
    **from_pretrained: Any,
) -> HFModel:
    """A causal language model and its tokenizer, from "demo", "demo-noisy", a folder or a hub id.

    Keywords are those of transformers' `from_pretrained`. The packaged models compute in float32.
    Experts run as grouped products where transformers can, on a CPU too, unless `experts_implementation`
    says otherwise. Only a hub id reaches the network. Raises ModelError for what cannot be loaded.
    """
    source = find(path)
    given = {"revision": revision, "dtype": dtype, "device_map": device_map, "attn_implementation": attn_implementation}
    given |= {"quantization_config": quantization_config, **from_pretrained}
    keywords = {name: value for name, value in given.items() if value is not None}
    hint = _hint(keywords)
    if str(path) in PACKAGED:
        keywords.setdefault("dtype", torch.float32)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **({"revision": revision} if revision else {}))
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"the tokenizer of {str(path)!r} cannot be read: {error}", LOADABLE) from error
    try:
        with _no_bars():
            model = AutoModelForCausalLM.from_pretrained(source, **keywords)
    except OSError as error:
        raise ModelError(f"the model {str(path)!r} cannot be loaded: {error}", LOADABLE) from error
    except Exception as error:  # transformers raises anything for a wrong keyword: AttributeError, ImportError
        raise ModelError(f"the model {str(path)!r} cannot be loaded: {error}", hint) from error
    return HFModel(model, tokenizer, str(path))


def _hint(keywords: Mapping[str, Any]) -> str:
    """The fix where transformers refuses what its class was given: the caller's keywords, if there are any."""
    if not keywords:
        return LOADABLE
    given = ", ".join(f"{name}={value!r:.60}" for name, value in keywords.items())
    return f"leave out or change what was given: {given} (see transformers' from_pretrained)"


@contextmanager
def _no_bars() -> Iterator[None]:
    """Keeps transformers' own progress bars out of a program's output; a download shows its bar."""
    before = logging.set_tqdm_hook(lambda _, args, keywords: logging.EmptyTqdm(*args, **keywords))
    try:
        yield
    finally:
        logging.set_tqdm_hook(before)


def wrap(model: Any, tokenizer: Any = None) -> HFModel:
    """What `load` returns, for a transformers model in memory, which is left as it is.

    Without a tokenizer only prompts of token ids run, and nothing reads text. Raises ModelError for a
    model that is not causal, is in training mode, or whose layers are not attention layers.
    """
    return HFModel(model, tokenizer, getattr(model, "name_or_path", "") or type(model).__name__)


class HFModel(LanguageModel):
    """A transformers causal model. `model` is the transformers object itself."""

    def __init__(self, model: Any, tokenizer: Any, name: str) -> None:
        if getattr(model, "get_output_embeddings", lambda: None)() is None:
            raise ModelError(f"{type(model).__name__} has no lm_head, so it is no causal model", "load it with LM head")
        if model.training:
            raise ModelError(f"{type(model).__name__} is in training mode, so dropout is on", "call model.eval() first")
        self.model, self.tokenizer, self.name = model, tokenizer, name
        config = model.config.get_text_config(decoder=True)
        self._windows = layer_windows(config, type(model).__name__)
        self._routers = find_routers(model)
        refuse_hidden_experts(config, self._routers, type(model).__name__)
        self._cache_keyword = cache_keyword(model)
        self.layers, self.hidden_size = config.num_hidden_layers, config.hidden_size
        self.context_length = getattr(config, "max_position_embeddings", None) or 2**31
        self.vocab_size = model.get_output_embeddings().weight.shape[0]
        generation = model.generation_config
        ends = generation.eos_token_id
        self.eos_ids = frozenset([ends] if isinstance(ends, int) else ends or ())
        self.suppressed_ids = frozenset(generation.suppress_tokens or ())
        names = ("temperature", "top_k", "top_p", "min_p")
        set_by_model = {name: getattr(generation, name, None) for name in names}
        self.sampling_defaults: Mapping[str, float] = {k: v for k, v in set_by_model.items() if v is not None}
        self.shape = model_shape(model, self._routers, self._windows)
        self._no_noise = self._why_no_noise()
        self.capabilities = frozenset() if self._no_noise else frozenset({ROUTING_NOISE})
        self.fingerprint = fingerprint(model, tokenizer)

    def _why_no_noise(self) -> str:
        """Why routing noise is not to be had; empty where it is."""
        attention = self.model.config._attn_implementation
        if not self._routers:
            return "it is a dense model, without routers"
        if attention not in ("eager", "sdpa"):
            return f"{attention} attention takes no mask of ours; load it with sdpa or eager attention"
        unknown = {type(r.module).__name__ for r in self._routers if r.renormalise is None}
        return f"its routers ({', '.join(sorted(unknown))}) are not softmax routers" if unknown else ""

    def lacks(self, capability: str) -> str:
        return self._no_noise if capability == ROUTING_NOISE else super().lacks(capability)

    def inspect_layers(self) -> list[str]:
        return [router.name for router in self._routers]

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        begin = getattr(self.tokenizer, "bos_token_id", None)
        begin = self.model.generation_config.bos_token_id if begin is None else begin
        return encode(self.tokenizer, prompt, begin, self.name)

    def decode(self, token_ids: Sequence[int]) -> str:
        return decode(self.tokenizer, token_ids, self.name)

    @torch.no_grad()
    def prefill(self, prompts: Sequence[Sequence[int]], routing: Sequence[Routing] | None = None) -> State:
        # The group of the longest prompts comes first: the others then fit into its buffers.
        groups = _groups([len(p) for p in prompts])[::-1]
        state = self._prefill([prompts[i] for i in groups[0]])
        for group in groups[1:]:
            state = state.join(self._prefill([prompts[i] for i in group]))
        places = {index: place for place, index in enumerate(i for group in groups for i in group)}
        return state.select([places[i] for i in range(len(prompts))])

    def _prefill(self, prompts: list[Sequence[int]]) -> CleanState:
        """One forward over left-padded prompts, without lm_head."""
        length = max(len(p) for p in prompts)
        cache = CleanCache(len(self._windows), len(prompts))
        cache.first = [length - len(p) for p in prompts]
        if length == 0:
            return CleanState(cache, list(range(len(prompts))), self._no_prefills(len(prompts)))
        device = self.model.device
        ids = torch.tensor([[0] * (length - len(p)) + list(p) for p in prompts], device=device)
        first = torch.tensor(cache.first, device=device)
        positions = (torch.arange(length, device=device) - first[:, None]).clamp_min(0)
        mask = None
        if any(cache.first) or any(self._windows):
            mask = self._per_kind({w: prefill_mask(first, length, w) for w in set(self._windows)})
        with watch(self._routers, None) as record:
            self._forward(self.model.base_model, cache, ids, positions, mask)
        cache.commit(length)
        cache.frame.start = min(cache.first)
        return CleanState(cache, list(range(len(prompts))), self._prefills(record, first, length))

    def _prefills(self, record: RoutingRecord, first: Int[Tensor, " batch"], length: int) -> list[Prefill]:
        if not self._routers:
            return self._no_prefills(len(first))
        real = torch.arange(length, device=first.device) >= first[:, None]
        marks = record.marks(len(first), length, self.shape.experts) & real[..., None, None]
        runs = marks.sum((1, 2, 3)).tolist()
        return [Prefill(e, r) for e, r in zip(pack_experts(marks.any(1)), runs, strict=True)]

    def _no_prefills(self, count: int) -> list[Prefill]:
        return [Prefill(experts, 0) for experts in pack_experts(no_experts(count, self.shape))]

    @torch.no_grad()
    def step(self, state: State, tokens: Int[Tensor, " batch"], plan: RowPlan = PLAIN) -> Step:
        assert isinstance(state, CleanState)
        cache, device, n = state.cache, self.model.device, plan.n
        places = None if state.in_order else torch.tensor(state.order)
        if places is not None:
            tokens = torch.empty_like(tokens).index_copy_(0, places, tokens)
            plan = _reordered(plan, state.order)
        batch = len(tokens)
        cache.reserve(n)
        lengths = torch.tensor([cache.frame.width - column for column in cache.first], device=device)
        with watch(self._routers, plan.routing) as record:
            logits = self._forward(
                self.model,
                cache,
                tokens.to(device)[:, None].expand(batch, n),
                lengths[:, None].expand(batch, n),
                self._row_masks(cache, n),
            ).logits.float()
        cache.commit(1)
        experts = record.marks(batch, n, self.shape.experts) if self._routers else None
        changed = record.changed(batch, n, self.shape.experts) if plan.routing is not None else None
        noisy = None if plan.routing is None or plan.routing.noisy is None else plan.routing.noisy.permute(1, 2, 0)
        if places is None:
            return Step(logits, experts, changed, noisy)
        back = places.to(device)
        return Step(logits[back], _at(experts, back), _at(changed, back), _at(noisy, places))

    def _row_masks(self, cache: CleanCache, n: int) -> Any:
        """None where one row sees everything that is stored."""
        if n == 1 and not any(self._windows) and max(cache.first) == cache.frame.start:
            return None
        return self._per_kind({w: row_mask(cache, n, w, self.model.device) for w in set(self._windows)})

    def _per_kind(self, visible: dict[int | None, Tensor]) -> Any:
        """One mask, or for a model of mixed layers a mask per kind, by the names of transformers."""
        masks = {w: additive(v, self.model.dtype) for w, v in visible.items()}
        if len(masks) == 1:
            return next(iter(masks.values()))
        return {"full_attention" if window is None else "sliding_attention": mask for window, mask in masks.items()}

    def _forward(
        self,
        module: Any,
        cache: CleanCache,
        ids: Int[Tensor, "batch length"],
        positions: Int[Tensor, "batch length"],
        mask: Any,
    ) -> Any:
        keywords = {self._cache_keyword: cache}
        return module(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, **keywords)


def _groups(lengths: Sequence[int]) -> list[list[int]]:
    """Prompts from short to long, in groups of at most PREFILL_TOKENS tokens, padding included."""
    groups: list[list[int]] = [[]]
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if groups[-1] and (len(groups[-1]) + 1) * lengths[index] > PREFILL_TOKENS:
            groups.append([])
        groups[-1].append(index)
    return [sorted(group) for group in groups]


def _at(value: Tensor | None, index: Tensor) -> Tensor | None:
    return None if value is None else value[index]


def _reordered(plan: RowPlan, order: list[int]) -> RowPlan:
    """The plan with sequence b's noise where sequence b's row is."""
    if plan.routing is None:
        return plan
    return replace(plan, routing=plan.routing.at(torch.tensor(order).argsort()))
