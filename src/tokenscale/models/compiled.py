"""Query rows whose decode step is compiled: few shapes, one graph for each, CUDA graphs on a GPU.

A step is the one of `query_rows.py`, over a cache in bucketed buffers (`compiled_cache.py`), traced and
compiled once per kind (`compiled_step.py`). Prompts are prefilled as they are there. What cannot be
compiled is run there too: reading early layers, whose hooks compare values, and anything that tracing or
the compiler refuses.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from tokenscale.core.errors import ModelError, TokenscaleError, TokenscaleWarning
from tokenscale.core.memory import out_of_memory
from tokenscale.core.model import State
from tokenscale.core.plan import RowPlan
from tokenscale.core.step import Step
from tokenscale.models.clean_cache import CleanCache, CleanState
from tokenscale.models.compiled_cache import Pool, StaticCache, row_bucket
from tokenscale.models.compiled_step import Forward, Graph, Kind
from tokenscale.models.network import Network, at, reordered
from tokenscale.models.query_rows import QueryRows
from tokenscale.models.routing.router import words

SYNCHRONISING = "grouped_mm_fallback"
"""transformers' grouped products for what torch has none (float32 on a GPU): they wait for the device."""


class CompiledRows(QueryRows):
    """Query rows with compiled steps. `graphs` are those made so far; `failed` says why no more are made.

    `own_attention`: transformers' attention can be ours. `backend` is torch.compile's. `required`: what cannot
    be compiled is an error, not a warning. `pool` keeps buffers for the next run.
    """

    def __init__(
        self,
        network: Network,
        windows: Sequence[int | None],
        *,
        own_attention: bool = False,
        backend: str = "inductor",
        required: bool = False,
    ) -> None:
        super().__init__(network, windows)
        self._own_attention = own_attention
        self._traceable = replace(network, kernels=None)  # they are called by address, which no graph can hold
        self.graphs: dict[Kind, Graph] = {}
        self.failed = ""
        self._backend, self._required, self.pool = backend, required, Pool()

    @property
    def engine(self) -> str:
        """How steps are run, in words."""
        if self.failed:
            return f"uncompiled steps: {self.failed}"
        on_gpu = self.network.device.type == "cuda"
        return f"compiled steps ({self._backend}{', CUDA graphs' if on_gpu else ''})"

    def step(self, state: State, tokens: Int[Tensor, " batch"], plan: RowPlan) -> Step:
        """One forward of `plan.n` rows of every sequence."""
        assert isinstance(state, CleanState)
        if self.failed or not self._fits(state.cache, plan):
            return super().step(state, tokens, plan)
        cache = self._static(state, plan)
        ordered = tokens, plan
        if not state.in_order:
            place = torch.tensor(state.order)
            ordered = torch.empty_like(tokens).index_copy_(0, place, tokens), reordered(plan, place.argsort().tolist())
        step = self._ran(cache, *ordered)
        if step is None:
            return super().step(state, tokens, plan)
        if plan.commit:
            cache.commit(1)
        return step if state.in_order else at(step, state.order)

    def _fits(self, cache: CleanCache, plan: RowPlan) -> bool:
        """Whether a plan can be compiled. Those that are refused are told so where they are run uncompiled."""
        routing = plan.routing
        if plan.early_layers or not all(layer.is_initialized for layer in cache.layers):
            return False
        if routing is None:
            return True
        if routing.noise is not None and routing.noise.shape[1:3] != (cache.frame.rows, plan.n):
            return False
        return not any(router.supports and router.lacks(*words(routing)) for router in self.network.routers)

    def _static(self, state: CleanState, plan: RowPlan) -> StaticCache:
        """The state's cache in bucketed buffers, with room for the step's rows."""
        room = row_bucket(plan.n)
        if not isinstance(state.cache, StaticCache):
            state.cache = StaticCache(state.cache, self.pool, room)
        state.cache.reserve(room)
        return state.cache

    def _ran(self, cache: StaticCache, tokens: Int[Tensor, " batch"], plan: RowPlan) -> Step | None:
        """The step by the graph of its kind, which is made at its first use; None where that cannot be."""
        kind = Kind.of(cache, plan)
        try:
            if kind not in self.graphs:
                self.graphs[kind] = self._graph(kind, cache)
            return self.graphs[kind](cache, tokens, plan)
        except TokenscaleError:
            raise
        except Exception as error:  # tracing and compilers raise anything; a step stores nothing before it is done
            if out_of_memory(error):
                raise
            self._fail(error)
            return None

    def _graph(self, kind: Kind, cache: StaticCache) -> Graph:
        """A new graph. Attention that turns out not to be as ours needs it is the model's own from then on."""
        per_kind = None if self._own_attention else self.per_kind
        try:
            return Graph(Forward(self._traceable, self.windows, per_kind, kind), cache, self._compiler)
        except ModelError:
            if not self._own_attention:
                raise
        self._own_attention = False
        return self._graph(kind, cache)

    def _compiler(self, graph: Any) -> tuple[Callable[..., Any], bool]:
        """A traced step compiled, and whether it runs as a CUDA graph."""
        cudagraphs = self.network.device.type == "cuda" and self._backend == "inductor"
        cudagraphs = cudagraphs and not any(SYNCHRONISING in str(node.target) for node in graph.graph.nodes)
        mode = "reduce-overhead" if cudagraphs else None
        run = torch.compile(graph, fullgraph=True, dynamic=False, backend=self._backend, mode=mode)
        return run, cudagraphs

    def _fail(self, error: Exception) -> None:
        """From here on steps are run uncompiled. Raises ModelError where they must not be."""
        name = type(self.network.model).__name__
        lines = " ".join(line.strip() for line in str(error).strip().splitlines()[:2])
        reason = f"{type(error).__name__}: {lines:.200}"
        if "data-dependent" in lines:
            reason = 'its code waits for values, as that of "eager" experts does'
        message = f"a step of {name} cannot be compiled ({reason})"
        if self._required:
            raise ModelError(message, "leave compile=True out, or load it with compile=False") from error
        self.failed = reason
        self.graphs.clear()
        warnings.warn(f"{message}, so steps run uncompiled. Load it with compile=False", TokenscaleWarning, 2)
