"""Greedy decoding against transformers' `generate`: the same prompts, the same tokens, no early end."""

from __future__ import annotations

from dataclasses import replace

import torch

from tokenscale.bench.bandwidth import Limits
from tokenscale.bench.clock import interleaved
from tokenscale.bench.comparison import Comparison, faster
from tokenscale.bench.part import Outcome, Sizes
from tokenscale.bench.subject import Subject
from tokenscale.bench.work import counted
from tokenscale.core.prompt import Prompt
from tokenscale.pipeline import Pipeline
from tokenscale.token_level.decoders import Greedy

PROMPT, BATCHES = 32, (1, 16)
LEAST = 1.5
PEER = "transformers generate"


class Ours:
    """Our loop. Every call has new prompts, the same as the peer's call of that number."""

    def __init__(self, subject: Subject, batch: int, tokens: int, prompt: int) -> None:
        self.subject, self.batch, self.tokens, self.prompt = subject, batch, tokens, prompt
        self.calls = 0
        self.found: list[list[int]] = []

    def prepare(self) -> None:
        first = self.calls * self.batch
        self.prompts = [self.subject.prompt(self.prompt, first + i) for i in range(self.batch)]
        self.calls += 1

    def __call__(self) -> None:
        asked = [Prompt(token_ids=ids) for ids in self.prompts]
        results = Pipeline(Greedy()).run(self.subject.lm, asked, max_new_tokens=self.tokens)
        self.found = [list(result.winner.token_ids) for result in results]


class Theirs(Ours):
    """transformers' `generate`."""

    @torch.no_grad()
    def __call__(self) -> None:
        ids = torch.tensor(self.prompts, device=self.subject.peer.device)
        given = {"attention_mask": torch.ones_like(ids), "max_new_tokens": self.tokens, "do_sample": False}
        self.found = self.subject.peer.generate(ids, **given)[:, ids.shape[1] :].tolist()


def measure(subject: Subject, sizes: Sizes, limits: Limits) -> Outcome:
    """Batches 1 and 16."""
    endless = subject.ending_at(None)
    comparisons = [compared(endless, sizes, limits, batch) for batch in BATCHES]
    return Outcome("greedy", comparisons, {"prompt_tokens": PROMPT})


def compared(subject: Subject, sizes: Sizes, limits: Limits, batch: int, prompt: int = PROMPT) -> Comparison:
    """One batch; of 16 half as many tokens, so that a round stays short."""
    tokens = sizes.new_tokens if batch == 1 else max(1, sizes.new_tokens // 2)
    ours, theirs = Ours(subject, batch, tokens, prompt), Theirs(subject, batch, tokens, prompt)
    work = f"greedy, batch {batch}"
    seconds = interleaved({work: ours, PEER: theirs}, sizes.rounds)
    equal = sum(a == b for a, b in zip(ours.found, theirs.found, strict=True))
    with counted(subject.lm) as tally:
        ours.prepare()
        ours()
    found = faster(seconds, work, PEER, work, LEAST).with_limit(tally.seconds(limits))
    return replace(found, details={"new_tokens": tokens, "equal_sequences": f"{equal} of {batch}"})
