"""The log-likelihood of a text under RoE, in few forwards against token by token."""

from __future__ import annotations

from dataclasses import replace

import torch

from tokenscale.bench.bandwidth import Limits
from tokenscale.bench.clock import interleaved
from tokenscale.bench.comparison import faster
from tokenscale.bench.part import LeftOut, Outcome, Sizes
from tokenscale.bench.steps import STREAM
from tokenscale.bench.subject import Subject
from tokenscale.bench.work import counted
from tokenscale.core.model import ROUTING_NOISE
from tokenscale.core.strategy import TokenProposer
from tokenscale.token_level.plain import Plain
from tokenscale.token_level.roe import RoE

TAU = 0.3
LEAST, AIM = 5.0, 10.0


class Parallel:
    """`lm.score`. Every call has a new text."""

    def __init__(self, subject: Subject, tokens: int, proposer: TokenProposer) -> None:
        self.subject, self.tokens, self.proposer, self.calls = subject, tokens, proposer, 0
        self.found: tuple[float, ...] = ()

    def prepare(self) -> None:
        self.ids = self.subject.prompt(self.tokens + 1, self.calls)
        self.calls += 1

    @torch.no_grad()
    def __call__(self) -> None:
        [score] = self.subject.lm.score([self.ids], self.proposer)
        self.found = score.log_probs


class Stepped(Parallel):
    """What decoding runs: a step a token."""

    @torch.no_grad()
    def __call__(self) -> None:
        proposals = self.proposer.start(self.subject.lm, [self.ids[:1]], [STREAM])
        aggregator, found = self.proposer.default_aggregator, list[float]()
        for token, following in zip(self.ids, self.ids[1:], strict=False):
            rows, _ = proposals.propose(torch.tensor([token]))
            found.append(float(aggregator.aggregate(rows)[0, following]))
        self.found = tuple(found)


def measure(subject: Subject, sizes: Sizes, limits: Limits) -> Outcome:
    """n rows and one. The noise of both ways differs (their streams do), their work does not."""
    if ROUTING_NOISE not in subject.lm.capabilities:
        raise LeftOut(f"RoE does not run on it: {subject.lm.lacks(ROUTING_NOISE)}")
    tokens, n = sizes.scored, sizes.score_rows
    work, peer = f"scoring {tokens} tokens, n = {n}", f"stepping, n = {n}"
    ours, stepped = (
        Parallel(subject, tokens, RoE(n=n, tau=TAU, clean_layers=0)),
        Stepped(subject, tokens, RoE(n=n, tau=TAU, clean_layers=0)),
    )
    one, single = Parallel(subject, tokens, Plain()), Stepped(subject, tokens, Plain())
    plain, stepping = f"scoring {tokens} tokens, n = 1", "stepping, n = 1"
    seconds = interleaved({work: ours, peer: stepped, plain: one, stepping: single}, sizes.rounds)
    difference = max(abs(a - b) for a, b in zip(one.found, single.found, strict=True))
    shape = subject.lm.shape
    flops = n * tokens * (shape.dense_flops + shape.head_flops + shape.expert_flops)
    flops += n * float(shape.attention_flops(range(1, tokens + 1)).sum())
    with counted(subject.lm) as tally:
        stepped.prepare()
        stepped()
    read = shape.dense_bytes + shape.head_bytes + shape.moe_layers * shape.experts * shape.expert_bytes
    comparisons = [
        faster(seconds, work, peer, work, LEAST, AIM).with_limit(limits.seconds(read, flops)),
        faster(seconds, plain, stepping, plain).with_limit(limits.seconds(read, flops / n)),
    ]
    comparisons[0] = replace(comparisons[0], details={"forwards of stepping": tally.steps})
    return Outcome("scoring", comparisons, {"tau": TAU, "largest difference at n = 1": difference})
