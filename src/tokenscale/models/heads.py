"""lm_head apart from the decoder: which models allow it, and logits that are made when they are read.

A model's own code makes all logits, whatever it does behind lm_head (scaling, softcapping): it is called with a
decoder that hands out hidden states which were computed before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tokenscale.core.memory import out_of_memory
from tokenscale.core.unread import Logits, Unread
from tokenscale.models.routing.router import replaced
from tokenscale.models.stored import runs_on

TRIAL = ((1, 2), (3, 1))
CLOSE = 1e-6  # relative to the largest logit


@dataclass(frozen=True)
class Heads:
    """The logits of hidden states, by the code of `model` behind `decoder`, inside of `kernels()`.

    `kind` is the class of what the decoder returns; `vocab` logits a row come out, on `device`.
    """

    model: Any
    decoder: nn.Module
    kernels: Callable[[], AbstractContextManager[Any]]
    kind: type
    vocab: int
    device: torch.device

    def __call__(self, hidden: Float[Tensor, "batch rows hidden"]) -> Float[Tensor, "batch rows vocab"]:
        """Raw and in float32. Cost: the product with lm_head."""
        ids = torch.zeros(hidden.shape[:2], dtype=torch.long, device=runs_on(self.model.get_input_embeddings()))

        def handed(*args: Any, **kwargs: Any) -> Any:
            return self.kind(last_hidden_state=hidden)

        with torch.no_grad(), self.kernels(), replaced(self.decoder, "forward", handed):
            logits: Tensor = self.model(input_ids=ids, use_cache=False).logits
        return logits.float()


@dataclass(frozen=True)
class UnreadHeads(Unread):
    """Logits of hidden states."""

    heads: Heads
    hidden: Float[Tensor, "batch rows hidden"]

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.hidden.shape[:2], self.heads.vocab))

    @property
    def device(self) -> torch.device:
        return self.heads.device

    def read(self) -> Float[Tensor, "batch rows vocab"]:
        return self.heads(self.hidden)

    def part(self, sequences: slice, rows: slice) -> UnreadHeads:
        return UnreadHeads(self.heads, self.hidden[sequences, rows])

    def at(self, places: Int[Tensor, " some"]) -> UnreadHeads:
        return UnreadHeads(self.heads, self.hidden[places.to(self.hidden.device)])

    def in_rows(self, n: int) -> UnreadHeads:
        return UnreadHeads(self.heads, self.hidden.reshape(-1, n, self.hidden.shape[-1]))


def joined(parts: Sequence[Logits]) -> Logits:
    """The sequences of all parts, one part after the other; unread where all are."""
    unread = [part for part in parts if isinstance(part, UnreadHeads)]
    if len(unread) == len(parts):
        return UnreadHeads(unread[0].heads, torch.cat([part.hidden for part in unread]))
    return torch.cat([part if isinstance(part, Tensor) else part.read() for part in parts])


def find_heads(model: Any, decoder: nn.Module, kernels: Callable[[], AbstractContextManager[Any]]) -> Heads | None:
    """How a model's logits are made of its decoder's hidden states; None where they are made otherwise.

    Found by a trial of a few tokens, in which both ways must agree, of all tokens together and of one alone.
    Cost: two short forwards.
    """
    ids = torch.tensor(TRIAL, device=runs_on(model.get_input_embeddings()))
    try:
        with torch.no_grad(), kernels():
            wanted = model(input_ids=ids, use_cache=False).logits.float()
            out = decoder(input_ids=ids, use_cache=False)
        heads = Heads(model, decoder, kernels, type(out), wanted.shape[-1], wanted.device)
        found, alone = heads(out.last_hidden_state), heads(out.last_hidden_state[1:, 1:])
    except Exception as error:
        if out_of_memory(error):
            raise
        return None  # whatever goes wrong in a model of another plan, its own forward remains
    last = wanted[1:, 1:]
    if found.shape != wanted.shape or alone.shape != last.shape:
        return None
    largest = max(1.0, float(wanted.abs().amax()))
    # A product of one row may be rounded otherwise than that of several, to the model's own type.
    rounding = max(CLOSE, torch.finfo(model.dtype).eps)
    same = torch.allclose(found, wanted, rtol=0, atol=CLOSE * largest)
    return heads if same and torch.allclose(alone, last, rtol=0, atol=rounding * largest) else None
