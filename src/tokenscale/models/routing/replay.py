"""Record and replay: a router's own code runs again, with another choice of experts.

First the router runs with noisy logits, and what it ranks is noted. Then it runs as it is, and its
ranking operation gives the experts that were drawn, with their clean scores. So groups, biases,
renormalisation and scaling stay the model's own code. Cost: one more run of the router (its matrix
product too), and about a microsecond per operation.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tokenscale.core.errors import RoutingError
from tokenscale.models.routing.draw import Draw, tokens
from tokenscale.models.routing.rule import Rule, gives_tensors

Chooser = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # scores, own choice, scores before groups: the choice


NOTHING: dict[str, Any] = {}


class Seen(Exception):
    """What a router ranks is known, and the rest of its run is not needed."""


@dataclass(frozen=True)
class Routed:
    """A router's output, the experts chosen (-1: none), and those of the model's own choice."""

    output: Any
    chosen: Int[Tensor, "*tokens width"]
    clean: Int[Tensor, "*tokens top_k"]


class Pass(TorchFunctionMode):
    """One run of a router: `edit` replaces its logits, `choose` its choice; what it ranked is noted.

    `weigh`: the logits that gate weights are made of are replaced too, not those alone that are ranked.
    A run without `choose` stops when it has ranked.
    """

    def __init__(
        self,
        rule: Rule,
        edit: Callable[[Tensor], Tensor] | None = None,
        choose: Chooser | None = None,
        weigh: bool = False,
    ):
        super().__init__()
        self.rule, self.edit, self.choose = rule, edit, choose
        after = weigh and rule.made_at is not None
        self._before = rule.taken_at if edit is not None and not after else -1
        self._after = rule.made_at if edit is not None and after else None
        self._places = {rule.masked_at, rule.choice_at, self._after}
        self.ranked: Tensor | None = None
        self.unmasked: Tensor | None = None
        self.plain: Tensor | None = None
        self.chosen: Tensor | None = None
        self._names, self._number = rule.operations, -1
        self._done, self._strange = False, ""

    def run(self, call: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], name: str) -> Any:
        """Calls the router. Raises RoutingError where it does other operations than when it was tried."""
        output = None
        with contextlib.suppress(Seen), self:
            output = call(*args, **kwargs)
        if self.chosen is None:
            raise RoutingError(
                f"the router {name} did not rank its {self.rule.experts} experts as it did when it was tried"
                f"{self._strange}",
                "load the model without fused kernels and without compiling it",
            )
        return output

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = NOTHING) -> Any:
        kwargs = kwargs or NOTHING
        if self._done:
            return func(*args, **kwargs)
        number, name = self._number + 1, func.__name__
        if number == self._before and name == self._names[number]:
            args, kwargs = self._edited(args, kwargs)
        result = func(*args, **kwargs)
        # Operations that give no tensor, such as the reading of a shape, have no number.
        if not isinstance(result, Tensor) and not gives_tensors(result):
            return result
        self._number = number
        if name == self._names[number]:
            return self._noted(number, args, kwargs, result) if number in self._places else result
        self._done, self._strange = True, f" ({name} instead of {self._names[number]})"
        return result

    def _noted(self, number: int, args: Any, kwargs: Any, result: Any) -> Any:
        first = args[0] if args else next(iter(kwargs.values()))
        if number == self.rule.masked_at:
            self.unmasked = first
        if number == self._after:
            assert self.edit is not None
            return self.edit(result)
        return self._chosen(first, result) if number == self.rule.choice_at else result

    def _edited(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """The arguments with the edited logits. What is only ranked is not rounded to half precision."""
        assert self.edit is not None
        if self.choose is None and "dtype" in kwargs:
            kwargs = {**kwargs, "dtype": torch.float32}
        if args:
            return (self.edit(args[0]), *args[1:]), kwargs
        name, logits = next(iter(kwargs.items()))
        return args, {**kwargs, name: self.edit(logits)}

    def _chosen(self, scores: Any, result: Any) -> Any:
        self._done, self.ranked, self.plain = True, scores, result[1]
        if self.choose is None:
            self.chosen = result[1]
            raise Seen
        self.chosen = self.choose(scores, result[1], self.unmasked)
        values = scores.gather(-1, self.chosen)
        if self.unmasked is not None:
            # An expert that was drawn from outside the groups has the weight of its own score.
            free = self.unmasked.gather(-1, self.chosen)
            alike = self.chosen.shape == result[1].shape
            values = torch.where((self.chosen == result[1]).all(-1, keepdim=True), values, free) if alike else free
        return torch.return_types.topk((values, self.chosen))


@dataclass(frozen=True)
class Replay:
    """The way of a router whose rule was read."""

    rule: Rule
    name: str

    def plain(self, call: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Routed:
        """The router as it is, with what it chose."""
        if self.rule.indices_at is not None:
            output = call(*args, **kwargs)
            indices = (output if isinstance(output, tuple) else (output,))[self.rule.indices_at]
            return Routed(output, indices, indices)
        seen = Pass(self.rule, choose=lambda scores, plain, unmasked: plain)
        output = seen.run(call, args, kwargs, self.name)
        assert seen.chosen is not None
        return Routed(output, seen.chosen, seen.chosen)

    def route(
        self, module: nn.Module, call: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], draw: Draw
    ) -> Routed:
        """The router with its choice as `draw` says."""
        own = moved = clean = free = None
        if draw.perturbs_weights or (draw.needs_order and draw.moves_logits):
            first = Pass(self.rule)
            first.run(call, args, kwargs, self.name)
            own, clean, free = first.ranked, first.plain, first.unmasked
        if draw.moves_logits:
            noisy = Pass(self.rule, edit=draw.moved_logits)
            noisy.run(call, args, kwargs, self.name)
            moved = noisy.ranked

        def chooser(width: int) -> Chooser:
            def choose(scores: Tensor, plain: Tensor, unmasked: Tensor | None) -> Tensor:
                before, beyond = (scores, unmasked) if own is None else (own, free)
                after = draw.moved_scores(before) if moved is None and draw.noise is not None else moved
                usual = self._usual(before, plain if clean is None else clean)
                return draw.choose(before, after, usual, width, beyond)

            return choose

        parts: list[tuple[Any, Tensor, Tensor | None]] = []
        for width, here in draw.widths(self.rule.top_k, tokens(args[0]), args[0].device):
            last = Pass(self.rule, self._weights_edit(draw), chooser(width), weigh=True)
            with _Taking(module, width):
                output = last.run(call, args, kwargs, self.name)
            assert last.ranked is not None
            assert last.plain is not None
            assert last.chosen is not None
            parts.append((output, last.chosen, here))
            clean = self._usual(last.ranked, last.plain) if clean is None else clean
        assert clean is not None
        output, chosen = merged(parts)
        return Routed(output, chosen, clean)

    def _usual(self, scores: Tensor, plain: Tensor) -> Tensor:
        """The model's own choice; where its `top_k` was another for a while, made anew."""
        return plain if plain.shape[-1] == self.rule.top_k else scores.topk(self.rule.top_k, dim=-1).indices

    def _weights_edit(self, draw: Draw) -> Callable[[Tensor], Tensor] | None:
        """Gate weights of the noisy logits, in the logits' own type."""
        if not draw.perturbs_weights:
            return None
        return lambda logits: draw.moved_logits(logits).to(logits.dtype)


class _Taking:
    """A module's `top_k` is another for a while, where it has one (some shape their output by it)."""

    def __init__(self, module: nn.Module, width: int) -> None:
        self.module, self.width = module, width

    def __enter__(self) -> None:
        self.before = getattr(self.module, "top_k", None)
        if self.before == self.width:
            self.before = None
        if self.before is not None:
            self.module.top_k = self.width  # type: ignore[assignment]

    def __exit__(self, *exception: object) -> None:
        if self.before is not None:
            self.module.top_k = self.before


def merged(parts: Sequence[tuple[Any, Tensor, Bool[Tensor, " tokens"] | None]]) -> tuple[Any, Tensor]:
    """One output of several, each for its tokens; narrower ones are padded by a repeated index with weight 0."""
    output, chosen, _ = parts[0]
    for other, indices, here in parts[1:]:
        assert here is not None
        output = tuple(joined(a, b, here) for a, b in zip(output, other, strict=True))
        chosen = joined(chosen, indices, here, -1)
    return output, chosen


def joined(narrow: Tensor, wide: Tensor, here: Bool[Tensor, " tokens"], padding: int | None = None) -> Tensor:
    """`wide` where `here`, else `narrow`, padded with zeros, a repeated index or `padding`."""
    missing = wide.shape[-1] - narrow.shape[-1]
    if missing:
        repeated = narrow[..., :1].expand(*narrow.shape[:-1], missing)
        if padding is not None:
            repeated = torch.full_like(repeated, padding)
        elif narrow.is_floating_point():
            repeated = torch.zeros_like(repeated)
        narrow = torch.cat([narrow, repeated], dim=-1)
    leading = wide.shape[:1] if wide.shape[0] == here.numel() else wide.shape[:2]
    mask = here.to(wide.device).view(*leading, *[1] * (wide.ndim - len(leading)))
    return torch.where(mask, wide, narrow)
