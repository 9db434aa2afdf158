"""One RoE step of n rows against n forwards, a batch with n caches, n rows without a past, and the byte limit."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tokenscale.bench.arms import Forwards, OwnCaches, Routes, Unrelated
from tokenscale.bench.bandwidth import Limits
from tokenscale.bench.clock import Seconds, interleaved
from tokenscale.bench.comparison import Comparison, faster, within, within_limit
from tokenscale.bench.part import LeftOut, Outcome, Sizes
from tokenscale.bench.subject import Subject
from tokenscale.bench.work import step_bytes
from tokenscale.core.model import ROUTING_NOISE, LanguageModel
from tokenscale.core.noise import Stream
from tokenscale.token_level.roe import RoE

TAU = 1.0
STREAM = Stream((0, "bench"))
# What the issue asks for: rows -> least ratio, by type of numbers, with a compiler.
AGAINST_FORWARDS = {"float32": {8: 4.0, 16: 6.0, 32: 9.0}, "bfloat16": {8: 6.0, 16: 9.0, 32: 14.0}}
AGAINST_CACHES = {8: 2.0, 16: 2.5, 32: 4.0}
LIMIT, LIMIT_AIM, GUARD = 2.0, 1.5, 1.10
LIMITED, LIMITED_THREADS = (1, 8, 32), 2


class Step:
    """RoE's own step: propose and aggregate. Every call moves on by one position, as the other arms do."""

    def __init__(self, lm: LanguageModel, prompt: tuple[int, ...], n: int) -> None:
        proposer = RoE(n=n, tau=TAU, clean_layers=0)
        self.proposals = proposer.start(lm, [prompt], [STREAM])
        self.aggregator, self.token = proposer.default_aggregator, torch.tensor([prompt[-1]])
        self.experts: list[Tensor] = []

    @torch.no_grad()
    def __call__(self) -> Tensor:
        rows, [work] = self.proposals.propose(self.token)
        aggregate = self.aggregator.aggregate(rows)
        self.experts.append(work.experts)
        return aggregate

    @property
    def loads(self) -> list[int]:
        """Distinct experts of every call, summed over MoE layers; read when no clock runs."""
        return [int(experts.sum()) for experts in self.experts]


def recorded(lm: LanguageModel, prompt: tuple[int, ...], n: int, calls: int) -> list[Routes]:
    """The experts that each row of `Step` runs, call by call: the same prompt, token, and noise."""
    proposer, state = RoE(n=n, tau=TAU, clean_layers=0), lm.prefill([prompt[:-1]])
    token, routes = torch.tensor([prompt[-1]]), list[Routes]()
    for position in range(len(prompt) - 1, len(prompt) - 1 + calls):
        planned = proposer.row_plan(lm, STREAM, len(prompt), range(position, position + 1))
        assert planned is not None
        experts = lm.step(state, token, planned[0]).experts
        assert experts is not None
        marks = experts[0].transpose(0, 1)  # layers, rows, experts
        routes.append(marks.byte().topk(lm.shape.top_k, dim=-1).indices)
    return routes


def measure(subject: Subject, sizes: Sizes, limits: Limits) -> Outcome:
    """All n in turn; n = 1 stands beside the first of them."""
    if why := subject.lm.lacks(ROUTING_NOISE) if ROUTING_NOISE not in subject.lm.capabilities else "":
        raise LeftOut(f"RoE does not run on it: {why}")
    comparisons, left_out, loads = list[Comparison](), list[str](), dict[str, float]()
    for n in (1, *sizes.ns):
        found, missing, load = _rows(subject, sizes, limits, n)
        comparisons += found
        left_out += [reason for reason in missing if reason not in left_out]
        loads[str(n)] = load / subject.lm.shape.moe_layers
    return Outcome("steps", comparisons, {"tau": TAU, "distinct experts per layer": loads}, left_out)


def _rows(subject: Subject, sizes: Sizes, limits: Limits, n: int) -> tuple[list[Comparison], list[str], float]:
    """Comparisons of n rows, what is left out of them, and distinct experts over all layers, the mean of a step."""
    prompt = subject.prompt(sizes.context - sizes.steps // 2)
    ours = Step(subject.lm, prompt, n)
    name, forwards = (
        f"RoE step, n = {n}",
        f"transformers: {n} forwards in turn" if n > 1 else "transformers: one forward",
    )
    caches, guard = (
        f"transformers: a batch of {n} with caches of their own",
        f"{n} unrelated rows, no past, same routes",
    )
    arms: dict[str, Callable[[], Any]] = {name: ours, forwards: Forwards(subject, prompt, n)}
    left_out = list[str]()
    if n > 1:
        routes = recorded(subject.lm, prompt, n, sizes.steps + 1)
        for other, arm in ((caches, OwnCaches), (guard, Unrelated))[: 2 if sizes.guard else 1]:
            try:
                arms[other] = arm(subject, prompt, n, routes)
            except LeftOut as reason:
                left_out.append(f"{other.replace(str(n), 'n')}: {reason}")
    seconds = interleaved(arms, sizes.steps)
    load = statistics.fmean(ours.loads[1:])
    limit = limits.seconds(step_bytes(subject.lm.shape, load, [sizes.context]))
    return _comparisons(subject, seconds, (name, forwards, caches, guard), n, limit), left_out, load


def _comparisons(subject: Subject, seconds: Seconds, names: Sequence[str], n: int, limit: float) -> list[Comparison]:
    name, forwards, caches, guard = names
    least = AGAINST_FORWARDS.get(subject.dtype, {}).get(n)
    found = [faster(seconds, name, forwards, name, least).with_limit(limit)]
    if caches in seconds:
        found.append(faster(seconds, name, caches, name, AGAINST_CACHES.get(n)).with_limit(limit))
    if guard in seconds:
        found.append(within(seconds, name, guard, name, GUARD).with_limit(limit))
    if n in LIMITED:
        most, aim = (LIMIT, LIMIT_AIM) if subject.threads >= LIMITED_THREADS else (None, None)
        found.append(within_limit(seconds, name, limit, name, most, aim))
    return found
