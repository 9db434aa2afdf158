"""One decoding step: bytes that must be read over the machine's bandwidth, against the time it takes."""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch import Tensor

from tokenscale.bench.bandwidth import Limits
from tokenscale.bench.clock import interleaved
from tokenscale.bench.part import LeftOut, Outcome, Sizes
from tokenscale.bench.steps import STREAM
from tokenscale.bench.subject import Subject
from tokenscale.bench.work import expert_loads, step_bytes
from tokenscale.core.model import ROUTING_NOISE, LanguageModel
from tokenscale.core.plan import RowPlan
from tokenscale.token_level.roe import RoE


class Forward:
    """A model's step of n rows, the noise drawn ahead: the forward and lm_head, no aggregation.

    tau = 0 are n equal rows, which `RoE` itself would not run: it is the model itself then.
    """

    def __init__(self, lm: LanguageModel, prompt: tuple[int, ...], n: int, tau: float, calls: int) -> None:
        self.lm, self.state, self.token = lm, lm.prefill([prompt[:-1]]), torch.tensor([prompt[-1]])
        self.plans = iter([_plan(lm, prompt, n, tau, call) for call in range(calls)])
        self.experts: list[Tensor | None] = []

    def prepare(self) -> None:
        self.plan = next(self.plans)

    @torch.no_grad()
    def __call__(self) -> Tensor:
        step = self.lm.step(self.state, self.token, self.plan)
        self.experts.append(step.experts)
        return step.logits  # large ones are computed when they are read

    @property
    def loads(self) -> list[int]:
        """Distinct experts of every call, summed over MoE layers; read when no clock runs."""
        return [expert_loads(experts) for experts in self.experts]


def _plan(lm: LanguageModel, prompt: tuple[int, ...], n: int, tau: float, call: int) -> RowPlan:
    if n == 1 or tau == 0:
        return RowPlan(n)
    position = len(prompt) - 1 + call
    planned = RoE(n=n, tau=tau, clean_layers=0).row_plan(lm, STREAM, len(prompt), range(position, position + 1))
    assert planned is not None
    return planned[0]


def measure(subject: Subject, sizes: Sizes, limits: Limits) -> Outcome:
    """A point for every n and tau (one for n = 1), all arms in turn."""
    taus = sizes.taus if ROUTING_NOISE in subject.lm.capabilities else (0.0,)
    if not taus:
        raise LeftOut("RoE does not run on it")
    prompt = subject.prompt(sizes.context - sizes.steps // 2)
    places = [(n, tau) for n in sizes.roofline_rows for tau in (taus if n > 1 else taus[:1])]
    arms = {f"{n} rows, tau {tau}": Forward(subject.lm, prompt, n, tau, sizes.steps + 1) for n, tau in places}
    seconds = interleaved(arms, sizes.steps)
    points = []
    for (n, tau), (name, arm) in zip(places, arms.items(), strict=True):
        points.append(_point(subject, limits, sizes, n, tau, seconds[name], arm.loads))
    return Outcome("roofline", facts={"points": points})


def _point(
    subject: Subject, limits: Limits, sizes: Sizes, n: int, tau: float, seconds: list[float], loads: list[int]
) -> dict[str, Any]:
    shape, load = subject.lm.shape, statistics.fmean(loads[1:])
    read = step_bytes(shape, load, [sizes.context])
    limit = limits.seconds(read)
    return {
        "n": n,
        "tau": tau,
        "ms": 1e3 * statistics.median(seconds),
        "limit_ms": 1e3 * limit,
        "times_limit": statistics.median(seconds) / limit,
        "megabytes": read / 1e6,
        "experts_per_layer": load / shape.moe_layers if shape.moe_layers else 0.0,
    }
