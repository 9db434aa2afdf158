"""One decode step of static shapes: traced once per kind, compiled, and run with inputs that are written in place.

`torch.export` runs the step's own Python on tensors without values: transformers' forward, our hooks in
its routers, the record of what they chose. What comes out is a graph of tensor operations with nothing
of that Python left in it, which `torch.compile` compiles. The kind, which we keep, is the graph's key.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin

from tokenscale.core.plan import Dropout, Routing, RowPlan
from tokenscale.core.step import Step
from tokenscale.models.attention import laid_out
from tokenscale.models.compiled_attention import BufferLayout
from tokenscale.models.compiled_cache import StaticCache, batch_bucket, row_bucket
from tokenscale.models.heads import UnreadHeads
from tokenscale.models.network import Network

PerKind = Callable[[dict[int | None, Tensor]], Any]
Compiler = Callable[[Any], tuple[Callable[..., Any], bool]]


@dataclass(frozen=True)
class Kind:
    """What one graph is made for: sizes, and the rules by which rows differ.

    `noise` is (MoE layers, experts) of the noise, None for none; `rule` is the routing without its
    tensors, None for the model's own; `dropout` is (rate, layers, hidden), None for none. Which rows are
    noisy, whose key they see and where they are written are inputs.
    """

    batch: int
    rows: int
    columns: int
    rule: Routing | None
    noise: tuple[int, int] | None
    dropout: tuple[float, int, int] | None

    @classmethod
    def of(cls, cache: StaticCache, plan: RowPlan) -> Kind:
        """The kind that serves a plan: batch and rows are rounded up, further rows are as the model's own."""
        rows, routing, rule, noise = row_bucket(plan.n), plan.routing, None, None
        if routing is not None and (routing.noise is not None or any(routing.ranks)):
            ranks = (*routing.ranks, *[None] * (rows - plan.n)) if routing.ranks else ()
            rule = replace(routing, noise=None, noisy=None, ranks=ranks)
            noise = None if routing.noise is None else (routing.noise.shape[0], routing.noise.shape[3])
        dropped = plan.dropout
        dropout = None if dropped is None else (dropped.rate, dropped.uniforms.shape[0], dropped.uniforms.shape[3])
        return cls(batch_bucket(cache.frame.rows), rows, cache.columns, rule, noise, dropout)


@dataclass(frozen=True)
class Numbers:
    """The integers of a step, in one tensor that is copied to the device at once.

    `tokens` and `first` columns of all sequences, the column of which each row sees a key of the current
    token (`own`), the column it stands in (`current`), and where its rows are written (`width`).
    """

    tokens: Int[Tensor, " batch"]
    first: Int[Tensor, " batch"]
    own: Int[Tensor, " rows"]
    current: Int[Tensor, ""]
    width: Int[Tensor, ""]

    @classmethod
    def count(cls, kind: Kind) -> int:
        """How many there are."""
        return 2 * kind.batch + kind.rows + 2

    @classmethod
    def of(cls, packed: Int[Tensor, " numbers"], kind: Kind) -> Numbers:
        """Views of the one tensor."""
        batch = kind.batch
        return cls(packed[:batch], packed[batch : 2 * batch], packed[2 * batch : -2], packed[-2], packed[-1])


class Inputs:
    """The tensors that a kind's graph reads, at one address each; a step writes them in place."""

    def __init__(self, kind: Kind, device: torch.device) -> None:
        self.kind = kind
        on_gpu = device.type == "cuda"
        self._host = torch.zeros(Numbers.count(kind), dtype=torch.long, pin_memory=on_gpu)
        self.numbers = torch.zeros(Numbers.count(kind), dtype=torch.long, device=device)
        self.noise: Tensor | None = None
        self.noisy: Tensor | None = None
        self.uniforms: Tensor | None = None
        if kind.noise is not None:
            layers, experts = kind.noise
            self.noise = torch.zeros(layers, kind.batch, kind.rows, experts, device=device)
            self.noisy = torch.zeros(layers, kind.batch, kind.rows, dtype=torch.bool, device=device)
        if kind.dropout is not None:
            _, layers, hidden = kind.dropout
            self.uniforms = torch.ones(layers, kind.batch, kind.rows, hidden, device=device)
        for tensor in (self.numbers, self.noise, self.noisy, self.uniforms):
            if tensor is not None:
                torch._dynamo.mark_static_address(tensor, guard=False)

    def write(self, cache: StaticCache, tokens: Int[Tensor, " batch"], plan: RowPlan) -> None:
        """The inputs of a step. Padding sequences repeat the first one's token; padding rows are clean."""
        kind, width = self.kind, cache.frame.width
        spare = kind.batch - len(tokens)
        current = width if plan.commit else width - 1
        own = [current] * kind.rows if plan.current_kv == "clean" else list(range(width, width + kind.rows))
        fed = tokens.tolist()
        # A padding sequence begins in the current column: it sees no key but its own, whatever its row holds.
        first = [*cache.first, *[current] * spare]
        self._host.copy_(torch.tensor([*fed, *[fed[0]] * spare, *first, *own, current, width]))
        self.numbers.copy_(self._host, non_blocking=True)
        if plan.routing is not None:
            _pad_in(self.noise, plan.routing.noise, 0.0)
            _pad_in(self.noisy, plan.routing.noisy, False)
        if plan.dropout is not None:
            _pad_in(self.uniforms, plan.dropout.uniforms, 1.0)


def _pad_in(target: Tensor | None, values: Tensor | None, padding: float | bool) -> None:
    """Writes [layers, batch, rows, ...] into a larger tensor, and padding around it."""
    if target is None or values is None:
        return
    batch, rows = values.shape[1:3]
    target[:, :batch, :rows].copy_(values)
    target[:, batch:].fill_(padding)
    target[:, :batch, rows:].fill_(padding)


class _Buffers(Cache):  # type: ignore[misc]
    """The layers of a traced step; `layer` stored last, the keys `made`.

    A layer is handed all of its buffers back, or with `apart` what it has just made, as attention of ours wants it.
    """

    def __init__(self, keys: Sequence[Tensor], values: Sequence[Tensor], columns: Tensor, apart: bool) -> None:
        super().__init__(layers=[_Layer(k, v, columns) for k, v in zip(keys, values, strict=True)])
        self.layer, self.made, self._apart = 0, keys[0], apart

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *rest: Any, **more: Any) -> tuple[Tensor, Tensor]:
        self.layer, self.made = layer_idx, keys
        every: tuple[Tensor, Tensor] = self.layers[layer_idx].update(keys, values)
        return (keys, values) if self._apart else every


class _Layer(CacheLayerMixin):  # type: ignore[misc]
    """A layer of the buffers, as attention sees it in a traced step: all columns, its own written in place."""

    def __init__(self, keys: Tensor, values: Tensor, columns: Int[Tensor, " rows"]) -> None:
        super().__init__()
        self.keys, self.values, self.columns = keys, values, columns
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: the buffers are there."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.keys.index_copy_(2, self.columns, key_states)
        self.values.index_copy_(2, self.columns, value_states)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return 0  # positions and masks are given, so nobody counts by it

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.keys.shape[2], 0

    def get_max_length(self) -> int:
        return -1


class Forward(nn.Module):
    """The step of a kind as a function of tensors; `per_kind` None has attention be ours.

    With `heads`, where logits are too large to be held at once, it gives hidden states in their place.
    """

    def __init__(self, network: Network, windows: Sequence[int | None], per_kind: PerKind | None, kind: Kind) -> None:
        super().__init__()
        self.model, self.config = network.model, network.model.config.get_text_config(decoder=True)
        self.network, self.windows, self.per_kind, self.kind = network, windows, per_kind, kind
        self.heads = network.heads(kind.batch, RowPlan(kind.rows))

    def forward(
        self,
        numbers: Int[Tensor, " numbers"],
        noise: Float[Tensor, "moe_layers batch rows experts"] | None,
        noisy: Bool[Tensor, "moe_layers batch rows"] | None,
        uniforms: Float[Tensor, "layers batch rows hidden"] | None,
        keys: list[Tensor],
        values: list[Tensor],
    ) -> tuple[Tensor | None, ...]:
        """(logits or hidden states, experts, changed, noisy) of a Step."""
        kind, given = self.kind, Numbers.of(numbers, self.kind)
        shape = kind.batch, kind.rows
        columns, apart = given.width + torch.arange(kind.rows, device=numbers.device), self.per_kind is None
        cache = _Buffers(keys, values, columns, apart)
        seen = {window: visible(given, kind.columns, window) for window in set(self.windows)}
        with ExitStack() as stack:
            record = stack.enter_context(self.network.varied(self.plan(noise, noisy, uniforms)))
            if apart:
                stack.enter_context(laid_out(BufferLayout(cache, seen, self.windows), self.config))
            out = self.network.run(
                self.heads.decoder if self.heads else self.model,
                cache,
                given.tokens[:, None].expand(shape),
                (given.current - given.first)[:, None].expand(shape),
                None if self.per_kind is None else self.per_kind(seen),
            )
        made = out.last_hidden_state if self.heads else out.logits.float()
        step = self.network.step(made, record, self.plan(noise, noisy, uniforms))
        return step.logits, step.experts, step.changed, step.noisy

    def plan(self, noise: Tensor | None, noisy: Tensor | None, uniforms: Tensor | None) -> RowPlan:
        """How rows differ, with the tensors of the graph."""
        kind, dropout = self.kind, None
        routing = None if kind.rule is None else replace(kind.rule, noise=noise, noisy=noisy)
        if kind.dropout is not None and uniforms is not None:
            dropout = Dropout(kind.dropout[0], uniforms)
        return RowPlan(kind.rows, routing, dropout)


def visible(given: Numbers, columns: int, window: int | None) -> Bool[Tensor, "batch rows columns"]:
    """`masks.row_mask` over all columns of the buffers: the past of the sequence, and one key of the current token."""
    column = torch.arange(columns, device=given.first.device)
    seen = (column >= given.first[:, None]) & (column < given.current)
    if window is not None:
        seen = seen & (column > given.current - window)
    return seen[:, None] | (column == given.own[:, None])


class Graph:
    """A kind's compiled step and its inputs. As a CUDA graph it returns what its next run overwrites."""

    def __init__(self, forward: Forward, cache: StaticCache, compiler: Compiler) -> None:
        self.inputs = Inputs(forward.kind, forward.network.device)
        self.kind, self._heads = forward.kind, forward.heads
        self.traced = traced(forward, self._arguments(cache))
        self._run, self._cudagraphs = compiler(self.traced)

    def _arguments(self, cache: StaticCache) -> tuple[Any, ...]:
        given, pairs = self.inputs, [layer.views(self.kind.batch) for layer in cache.layers]
        return given.numbers, given.noise, given.noisy, given.uniforms, [k for k, _ in pairs], [v for _, v in pairs]

    def __call__(self, cache: StaticCache, tokens: Int[Tensor, " batch"], plan: RowPlan) -> Step:
        """The outcome of a step, without what was padding. Writes keys and values behind the cache's last column."""
        self.inputs.write(cache, tokens, plan)
        if self._cudagraphs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        found = self._run(*self._arguments(cache))
        real = [None if value is None else value[: len(tokens), : plan.n] for value in found]
        if self._cudagraphs:
            real = [None if value is None else value.clone() for value in real]
        made, *marks = real
        assert made is not None
        return Step.of(UnreadHeads(self._heads, made) if self._heads else made, *marks)


def traced(forward: Forward, arguments: tuple[Any, ...]) -> nn.Module:
    """The graph of a step's tensor operations, on the model's own parameters. Raises whatever tracing meets."""
    return torch.export.export(forward, arguments, strict=False).module(check_guards=False)
