"""Routers that need code of their own: sparsemixer (phimoe), product keys (doge), token tables (deepseek_v4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tokenscale.models.routing.draw import Draw
from tokenscale.models.routing.replay import Routed


@dataclass(frozen=True)
class TokenTable:
    """Experts are looked up by the token's id: there is no choice that noise could move."""

    def plain(self, call: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Routed:
        output = call(*args, **kwargs)
        return Routed(output, output[2], output[2])

    def route(
        self, module: nn.Module, call: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], draw: Draw
    ) -> Routed:
        raise AssertionError("a table of tokens supports nothing, so no draw reaches it")


@dataclass(frozen=True)
class SparseMixer:
    """Two experts, one after the other, each the maximum of the logits (Liu et al. 2024, arXiv 2409.12136).

    A gate weight is the softmax over the logits that are not far below the chosen one's. The two
    maxima are replaced by the experts that were drawn and their logits; what is far below them is
    masked out as before.
    """

    def plain(self, call: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Routed:
        output = call(*args, **kwargs)
        return Routed(output, output[2], output[2])

    def route(
        self, module: nn.Module, call: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], draw: Draw
    ) -> Routed:
        mixer = _Maxima(draw)
        with mixer:
            output = call(*args, **kwargs)
        assert mixer.clean is not None
        return Routed(output, output[2], mixer.clean)


class _Maxima(TorchFunctionMode):
    """Draws from the logits as they are made, and hands out the drawn experts in place of maxima."""

    def __init__(self, draw: Draw) -> None:
        super().__init__()
        self.draw = draw
        self.clean: Int[Tensor, "tokens two"] | None = None
        self._left: list[Int[Tensor, "tokens one"]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name == "linear":
            return self._logits(result)
        if name == "max" and self._left:
            index = self._left.pop(0)
            return torch.return_types.max((args[0].gather(-1, index), index))
        return result

    def _logits(self, logits: Float[Tensor, "tokens experts"]) -> Float[Tensor, "tokens experts"]:
        draw = self.draw
        self.clean = logits.topk(2, dim=-1).indices
        moved = draw.moved_logits(logits) if draw.moves_logits else draw.moved_scores(logits)
        chosen = draw.choose(logits, moved, self.clean, 2)
        self._left = [chosen[:, :1], chosen[:, 1:]]
        return draw.moved_logits(logits).to(logits.dtype) if draw.perturbs_weights else logits


@dataclass(frozen=True)
class ProductKeys:
    """Experts are pairs of keys, R = x_i + y_j, and their weights the softmax of R over the chosen (doge).

    transformers takes x and y out of the logits of all tokens of a forward as if they were one, so
    that tokens route each other; token by token, as in generation, each routes itself. Here each
    always routes itself, whatever else is in the forward.
    """

    def plain(self, call: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Routed:
        return self._run(call, args, kwargs, None)

    def route(
        self, module: nn.Module, call: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], draw: Draw
    ) -> Routed:
        return self._run(call, args, kwargs, draw)

    def _run(self, call: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], draw: Draw | None) -> Routed:
        keys = _Keys(draw)
        with keys:
            output = call(*args, **kwargs)
        return Routed(output, keys.chosen[0], keys.clean[0])


@dataclass
class _Keys(TorchFunctionMode):
    """Parts x from y token by token, then chooses among all pairs."""

    draw: Draw | None
    chosen: list[Int[Tensor, "tokens width"]] = field(default_factory=list)
    clean: list[Int[Tensor, "tokens top_k"]] = field(default_factory=list)
    _pairs: Int[Tensor, "tokens pairs"] | None = None
    _logits: Any = None

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        result = func(*args, **(kwargs or {}))
        if name == "linear" and self._logits is None:
            self._logits = result
        elif name == "view" and args[0] is self._logits:
            tokens, keys = args[0][..., 0].numel(), args[0].shape[-1] // 2
            return args[0].reshape(tokens, 2, keys).transpose(0, 1)
        elif name == "topk" and self._pairs is None:
            first, second = result[1]
            self._pairs = (first.unsqueeze(-1) * first.shape[-1] + second.unsqueeze(-2)).flatten(-2)
        elif name == "topk" and not self.chosen:
            return self._choose(args[0], result)
        return result

    def _choose(self, sums: Float[Tensor, "tokens pairs"], result: Any) -> Any:
        pairs = self._pairs
        assert pairs is not None
        self.clean.append(pairs.gather(-1, result[1]))
        draw = self.draw
        if draw is None:
            self.chosen.append(self.clean[0])
            return result
        place = pairs.argsort(dim=-1)
        own = sums.gather(-1, place)
        moved = None
        if draw.noise is not None:
            moved = draw.moved_logits(own) if draw.moves_logits else draw.moved_scores(own)
        weighed = draw.moved_logits(own).to(own.dtype) if draw.perturbs_weights else own
        chosen = self._widest(own, moved)
        self.chosen.append(chosen)
        used = chosen.where(chosen >= 0, chosen[:, :1])
        return weighed.gather(-1, used).masked_fill(chosen < 0, -torch.inf), place.gather(-1, used)

    def _widest(self, own: Tensor, moved: Tensor | None) -> Int[Tensor, "tokens width"]:
        """The chosen of all tokens, -1 where a token runs fewer than others."""
        assert self.draw is not None
        top_k = self.clean[0].shape[-1]
        parts = self.draw.widths(top_k, len(own), own.device)
        if len(parts) == 1:
            return self.draw.choose(own, moved, self.clean[0], parts[0][0])
        chosen = torch.full((len(own), parts[-1][0]), -1, device=own.device)
        for width, here in parts:
            chosen[here, :width] = self.draw.choose(own, moved, self.clean[0], width)[here]
        return chosen
