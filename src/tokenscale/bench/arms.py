"""What our steps are timed against: transformers' own forwards, with and without our rows' routes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import DynamicCache

from tokenscale.bench.part import LeftOut
from tokenscale.bench.subject import Subject, twin
from tokenscale.models.hf import wrap
from tokenscale.models.routers import Router, find_routers
from tokenscale.models.routing.softmax import Softmax, gates
from tokenscale.models.supported import cache_keyword

Routes = Int[Tensor, "moe_layers rows top_k"]


class Replay:
    """Makes a model's routers give recorded experts, with their own gate weights, in place of those they choose.

    `routes` None: the router's own. Raises LeftOut for routers other than softmax and top-k.
    """

    def __init__(self, model: Any) -> None:
        routers = find_routers(model)
        if not routers or not all(isinstance(router.way, Softmax) and router.method == "forward" for router in routers):
            raise LeftOut("its routers do not take recorded routes")
        self.routes: Routes | None = None
        for layer, router in enumerate(routers):
            router.module.forward = self._replaying(layer, router)

    def _replaying(self, layer: int, router: Router) -> Callable[..., Any]:
        own, way = router.module.forward, router.way
        assert isinstance(way, Softmax)

        def forward(*args: Any, **kwargs: Any) -> Any:
            logits, weights, indices = own(*args, **kwargs)
            if self.routes is None:
                return logits, weights, indices
            chosen = self.routes[layer]
            return logits, gates(logits, chosen, way.renormalise).to(weights.dtype), chosen

        return forward


def prefilled(peer: Any, prompt: Sequence[int]) -> tuple[DynamicCache, dict[str, Any]]:
    """transformers' cache of all but the last prompt token, and the keyword arguments that pass it."""
    cache = DynamicCache(config=peer.config)
    given = {cache_keyword(peer): cache, "use_cache": True}
    with torch.no_grad():
        peer(input_ids=torch.tensor([prompt[:-1]], device=peer.device), logits_to_keep=1, **given)
    return cache, given


class Forwards:
    """`count` forwards of one token at one position, in turn; one token stays in the cache."""

    def __init__(self, subject: Subject, prompt: Sequence[int], count: int) -> None:
        self.model, self.count = subject.peer, count
        self.token = torch.tensor([[prompt[-1]]], device=self.model.device)
        self.cache, self.given = prefilled(self.model, prompt)

    @torch.no_grad()
    def __call__(self) -> Tensor:
        total = torch.zeros(())
        for number in range(self.count):
            if number:
                self.cache.crop(-1)
            total = total + self.model(input_ids=self.token, **self.given).logits[:, -1].float().softmax(-1)
        return total / self.count


class OwnCaches:
    """A batch expanded n times, a cache each, whose rows run the experts of our rows (`routes`, one entry a call)."""

    def __init__(self, subject: Subject, prompt: Sequence[int], n: int, routes: Sequence[Routes]) -> None:
        self.model, self.routes = twin(subject.peer), iter(routes)
        self.replay = Replay(self.model)
        self.tokens = torch.full((n, 1), prompt[-1], device=self.model.device)
        self.cache, self.given = prefilled(self.model, prompt)
        self.cache.batch_repeat_interleave(n)

    def prepare(self) -> None:
        self.replay.routes = next(self.routes)

    @torch.no_grad()
    def __call__(self) -> Tensor:
        logits: Tensor = self.model(input_ids=self.tokens, **self.given).logits
        return logits[:, -1].float().softmax(-1).mean(0)


class Unrelated:
    """The guard: our engine's step of n sequences of one token each, without a past, on the routes of our rows."""

    def __init__(self, subject: Subject, prompt: Sequence[int], n: int, routes: Sequence[Routes]) -> None:
        model = twin(subject.lm.model, grouped=False)
        self.lm, self.routes = wrap(model), iter(routes)
        self.replay = Replay(model)
        self.tokens = torch.tensor(subject.prompt(n, number=2))
        self.check(routes[0])

    def check(self, routes: Routes) -> None:
        """The routes must reach the experts, or nothing is compared. Raises LeftOut."""
        self.replay.routes = routes
        step = self.lm.step(self.lm.prefill([()] * len(self.tokens)), self.tokens)
        wanted = torch.zeros(step.experts.shape, dtype=torch.bool) if step.experts is not None else torch.zeros(0)
        wanted.scatter_(-1, routes.transpose(0, 1)[:, None], True)
        if step.experts is None or not torch.equal(step.experts.cpu(), wanted):
            raise LeftOut("recorded routes do not reach its experts")

    def prepare(self) -> None:
        self.replay.routes = next(self.routes)
        self.state = self.lm.prefill([()] * len(self.tokens))

    @torch.no_grad()
    def __call__(self) -> Tensor:
        return self.lm.step(self.state, self.tokens).logits
