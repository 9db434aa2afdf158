"""The shared form: prompts are segments that all their samples, beams and rows read; only tails are their own.

For models whose attention transformers looks up by name, so that ours can take its place. A prompt is
prefilled once for all sequences that begin with it, and what it has in common with an earlier prompt is
not run again. The n rows of a token are n queries of one sequence, and store one key.

Why not the paged cache of transformers (`generation/continuous_batching`): a page belongs to one
sequence's block table, its kernels see one query row per stored key (or a causal block of them), so n
rows of one position would store n keys; forks copy; and on a CPU it runs eager attention over gathered
pages. Segments need no pages: prompts do not grow, and tails are short.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from tokenscale.core.cost import Packed
from tokenscale.core.model import State
from tokenscale.core.plan import Routing, RowPlan
from tokenscale.core.step import Step, pack_experts
from tokenscale.models.attention import laid_out
from tokenscale.models.network import Network, at, reordered
from tokenscale.models.prefix_cache import PrefixCache, headers
from tokenscale.models.prompt_routing import end_to_end
from tokenscale.models.routers import RoutingRecord
from tokenscale.models.segments import Chain, Segment, length, prefill_of
from tokenscale.models.shared_prefill import PackedCache, PackedLayout, Piece
from tokenscale.models.shared_state import SharedState, TailCache
from tokenscale.models.shared_step import StepLayout


class SharedRows:
    """Runs prompts and steps of one network; `windows[l]` is cache layer l's sliding window, None for all keys.

    `prefixes` are the segments kept for later prompts; `prefilled` counts the tokens that were run.
    """

    def __init__(self, network: Network, windows: Sequence[int | None]) -> None:
        self.network, self.windows = network, list(windows)
        self.prefixes = PrefixCache()
        self.prefilled = 0
        self._model_was: Any = None
        self._modules = list(network.model.modules())
        self._config = network.model.config.get_text_config(decoder=True)

    def prefill(self, prompts: Sequence[Sequence[int]], routing: Sequence[Routing] | None, most: int) -> State:
        """A state of empty tails behind all prompts; at most `most` tokens a forward."""
        self._check_model()
        asked = [tuple(prompt) for prompt in prompts]
        if routing is not None:
            # Noisy tokens are functions of more than their ids, so nothing of them is shared.
            chains = [self._alone(ids, one, most) for ids, one in zip(asked, routing, strict=True)]
        else:
            known = {ids: self.prefixes.longest(ids) for ids in dict.fromkeys(asked)}
            begun = self._run_all(headers([ids for ids, chain in known.items() if length(chain) < len(ids)]), most, {})
            chains_of = self._run_all(list(known), most, begun)
            chains = [chains_of[ids] for ids in asked]
        cache = TailCache(len(self.windows), len(asked))
        prefills = [prefill_of(chain, self.network.shape) for chain in chains]
        return SharedState(cache, list(range(len(asked))), prefills, chains)

    def _check_model(self) -> None:
        """Segments of weights that were written to or replaced since, or of other hooks, are of no use.

        What is written through `.data`, and what a hook has changed in itself, is not seen.
        """
        tensors = [*self.network.model.parameters(), *self.network.model.buffers()]
        hooks = [hook for m in self._modules for hook in (*m._forward_hooks, *m._forward_pre_hooks)]
        now = ([_told(tensor) for tensor in tensors], hooks)
        if now != self._model_was:
            self.prefixes.clear()
        self._model_was = now

    def _run_all(
        self, prompts: Sequence[tuple[int, ...]], most: int, begun: Mapping[tuple[int, ...], Chain]
    ) -> dict[tuple[int, ...], Chain]:
        """The chains of prompts, after what is missing of them has run; `begun` are chains that some begin with."""

        def longest(ids: tuple[int, ...]) -> Chain:
            given = [chain for head, chain in begun.items() if ids[: len(head)] == head]
            return max([self.prefixes.longest(ids), *given], key=length)

        chains = {ids: longest(ids) for ids in prompts}
        while pending := [ids for ids in prompts if length(chains[ids]) < len(ids)]:
            wave = list(_wave([Piece(ids, chains[ids]) for ids in pending], most))
            for (ids, _), segment in zip(wave, self._run([piece for _, piece in wave], None), strict=True):
                self.prefixes.keep(segment)
                chains[ids] = (*segment.before, (segment, segment.tokens))
        return chains

    def _alone(self, ids: tuple[int, ...], routing: Routing, most: int) -> Chain:
        """The chain of one prompt whose tokens choose experts as `routing` says."""
        if not ids:
            return ()
        [segment] = self._run([Piece(ids, ())], [routing])
        return ((segment, segment.tokens),)

    def _run(self, pieces: Sequence[Piece], routing: Sequence[Routing] | None) -> list[Segment]:
        """One forward over all pieces, without lm_head."""
        network, cache = self.network, PackedCache(len(self.windows))
        ids = [token for piece in pieces for token in piece.new]
        places = [range(length(piece.chain), len(piece.ids)) for piece in pieces]
        device = network.device
        positions = torch.tensor([place for some in places for place in some], device=device)[None]
        plan = RowPlan(len(ids), None if routing is None else end_to_end(routing))
        with network.varied(plan) as record, laid_out(PackedLayout(cache, pieces, self.windows), self._config):
            network.run(network.blocks.decoder, cache, torch.tensor([ids], device=device), positions, None)
        self.prefilled += len(ids)
        ran = self._ran(record, len(ids))
        starts = np.cumsum([0, *(len(some) for some in places)])
        return [self._segment(p, cache, ran, a, b) for p, a, b in zip(pieces, starts[:-1], starts[1:], strict=True)]

    def _ran(self, record: RoutingRecord, tokens: int) -> Packed:
        shape = self.network.shape
        if not self.network.routers:
            return np.zeros((tokens, shape.moe_layers, -(-shape.experts // 8)), np.uint8)
        return pack_experts(record.marks(1, tokens, shape.experts)[0])

    def _segment(self, piece: Piece, cache: PackedCache, ran: Packed, begin: int, end: int) -> Segment:
        """A piece's tokens, which stand in the places from `begin` to `end` of a forward."""

        def cut(tensor: Tensor) -> Tensor:
            return tensor[0, :, begin:end].clone(memory_format=torch.contiguous_format)

        keys, values = [cut(layer.keys) for layer in cache.layers], [cut(layer.values) for layer in cache.layers]
        return Segment(piece.ids, length(piece.chain), piece.chain, keys, values, ran[begin:end])

    def step(self, state: State, tokens: Int[Tensor, " batch"], plan: RowPlan) -> Step:
        """One forward of `plan.n` rows of every sequence."""
        assert isinstance(state, SharedState)
        cache, network, n = state.cache, self.network, plan.n
        if not state.in_order:
            tokens = torch.empty_like(tokens).index_copy_(0, torch.tensor(state.order), tokens)
            plan = reordered(plan, torch.tensor(state.order).argsort().tolist())
        cache.reserve(1)
        batch, device = len(tokens), network.device
        behind = 0 if plan.commit else 1
        tails = [cache.frame.width - first - behind for first in cache.first]
        positions = [length(chain) + tail for chain, tail in zip(state.chains_by_row, tails, strict=True)]
        layout = StepLayout(state, plan, self.windows, network.kernels is not None)
        heads = network.heads(batch, plan)
        with network.varied(plan) as record, laid_out(layout, self._config):
            ids = tokens.to(device)[:, None].expand(batch, n)
            places = torch.tensor(positions, device=device)[:, None].expand(batch, n)
            out = network.run(heads.decoder if heads else network.model, cache, ids, places, None)
        cache.made = None
        if plan.commit:
            cache.commit(1)
        step = network.step(network.logits(out, heads), record, plan)
        return step if state.in_order else at(step, state.order)


def _told(tensor: Tensor) -> tuple[int, int, torch.dtype]:
    """What differs after a tensor was written to or replaced."""
    plain = type(tensor) in (Tensor, torch.nn.Parameter)  # others may have no memory of their own
    place = tensor.data_ptr() if plain else id(tensor)
    return place, 0 if tensor.is_inference() else tensor._version, tensor.dtype


def _wave(pieces: Sequence[Piece], most: int) -> Iterator[tuple[tuple[int, ...], Any]]:
    """What runs next: whole prompts of `most` tokens together, or the next `most` tokens of a longer one."""
    room = most
    for piece in sorted(pieces, key=lambda p: len(p.new)):
        count = min(len(piece.new), most)
        if count > room:
            return
        room -= count
        yield piece.ids, Piece(piece.ids[: length(piece.chain) + count], piece.chain)
