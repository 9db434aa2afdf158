"""What rows should be: one full forward per row, without a cache, alone in its batch.

A row's own choices are made by what is independent of the forms: routers are told by `watch`, whose
tests are elsewhere (it also keeps doge's router, which mixes the tokens of a text, causal). The clean
row's key comes from a cache that gives what it stored and takes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import DynamicCache

from tokenscale.core.plan import Routing
from tokenscale.models.routers import find_routers, watch

PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12, 13, 14], [12, 13], [20, 21, 22, 23, 24]]


def last_only(routers: Sequence[Any], noise: torch.Tensor, length: int) -> Routing:
    """Noise, [layers, experts], on the choices of the last of `length` tokens."""
    full = torch.zeros(len(routers), 1, length, noise.shape[-1])
    full[:, 0, -1] = noise
    return Routing(full, (torch.arange(length) == length - 1).expand(len(routers), 1, length))


class Frozen(DynamicCache):
    """Gives attention what it stored, of a sliding layer the last window of it, and takes nothing."""

    def update(self, key_states: Any, value_states: Any, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        layer = self.layers[layer_idx]
        return layer.keys, layer.values


class Oracle:
    """A model's rows, one full forward each."""

    def __init__(self, model: Any) -> None:
        self.model, self.routers = model, find_routers(model)

    @torch.no_grad()
    def alone(self, ids: Sequence[int], noise: torch.Tensor | None = None) -> torch.Tensor:
        """Logits after the last token, whose routing is noisy."""
        routing = None if noise is None else last_only(self.routers, noise, len(ids))
        with watch(self.routers, routing):
            return self.model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0, -1]

    @torch.no_grad()
    def routed(self, ids: Sequence[int], noise: torch.Tensor) -> torch.Tensor:
        """Logits after the last token, where the routing of all tokens is noisy: noise [layers, tokens, experts]."""
        routing = Routing(noise[:, None], torch.ones(len(noise), 1, len(ids), dtype=torch.bool))
        with watch(self.routers, routing):
            return self.model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0, -1]

    @torch.no_grad()
    def with_clean_key(self, ids: Sequence[int], noise: torch.Tensor, window: int | None = None) -> torch.Tensor:
        """Logits of a noisy row that sees the clean row's keys and values of the last token instead of its own."""
        cache = DynamicCache()
        with watch(self.routers, None):
            self.model(input_ids=torch.tensor([list(ids)]), cache=cache, use_cache=True)
        for layer in cache.layers:
            if window is not None:
                layer.keys, layer.values = layer.keys[..., -window:, :], layer.values[..., -window:, :]
        keys = cache.layers[0].keys.shape[-2]
        cache.__class__ = Frozen
        with watch(self.routers, last_only(self.routers, noise, 1)):
            return self.model(
                input_ids=torch.tensor([[ids[-1]]]),
                cache=cache,
                use_cache=True,
                position_ids=torch.tensor([[len(ids) - 1]]),
                attention_mask=torch.zeros(1, 1, 1, keys),
            ).logits[0, -1]

    @torch.no_grad()
    def early(self, ids: Sequence[int], layers: Sequence[int], norm: Any) -> torch.Tensor:
        """Logits of what decoder layers put out for the last token, from the states that transformers records.

        The state behind the last layer is recorded after the norm already. What a model does behind
        lm_head is done by running it again on the one position.
        """
        with watch(self.routers, None):
            out = self.model(input_ids=torch.tensor([list(ids)]), use_cache=False, output_hidden_states=True)
        states = out.hidden_states
        normed = [states[i + 1] if i + 2 == len(states) else norm(states[i + 1]) for i in layers]
        return torch.stack([self._head(state[0, -1]) for state in normed])

    def _head(self, state: torch.Tensor) -> torch.Tensor:
        def given(module: Any, args: Any, output: Any) -> Any:
            output.last_hidden_state = state[None, None]
            return output

        decoder = self.model.base_model if self.model.base_model is not self.model else self.model.model
        handle = decoder.register_forward_hook(given)
        try:
            return self.model(input_ids=torch.tensor([[5]]), use_cache=False).logits[0, -1]
        finally:
            handle.remove()


@contextmanager
def dropping(blocks: Sequence[Any], kept: torch.Tensor) -> Iterator[None]:
    """Feed-forward blocks whose output for the last token is multiplied by `kept`, [layers, hidden]."""
    originals = [block.forward for block in blocks]

    def forward(*args: Any, original: Any, factor: torch.Tensor) -> Any:
        out = original(*args)
        first = (out[0] if isinstance(out, tuple) else out).clone()
        first[:, -1] *= factor
        return (first, *out[1:]) if isinstance(out, tuple) else first

    try:
        for block, original, factor in zip(blocks, originals, kept, strict=True):
            block.forward = lambda *args, original=original, factor=factor: forward(
                *args, original=original, factor=factor
            )
        yield
    finally:
        for block in blocks:
            del block.forward


def noise_like(layers: int, batch: int, rows: int, experts: int, seed: int) -> torch.Tensor:
    """Gumbel noise at tau = 1 for every row but the clean one."""
    uniform = torch.rand(layers, batch, rows, experts, generator=torch.Generator().manual_seed(seed))
    noise = -(-uniform.clamp(1e-6, 1 - 1e-6).log()).log()
    noise[:, :, 0] = 0
    return noise
