"""Sampling with mixed lengths: a vote behind a long prompt, and many prompts of mixed length.

Lengths are mixed by chance: a fixed share of the vocabulary ends a text, on both sides, so each token ends it
with about that probability. Both sides sample the same distribution (temperature 0.7, nothing cut off) with
random numbers of their own, so lengths are equal in expectation, not one by one: ratios are of tokens per second.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace

import torch

from tokenscale.bench.bandwidth import Limits
from tokenscale.bench.clock import Ratio, interleaved
from tokenscale.bench.comparison import Comparison, Target
from tokenscale.bench.part import Outcome, Sizes
from tokenscale.bench.subject import Subject
from tokenscale.bench.work import Tally, counted
from tokenscale.core.prompt import Prompt
from tokenscale.pipeline import Pipeline
from tokenscale.sequence_level.self_consistency import SelfConsistency
from tokenscale.token_level.decoders import Sample

TEMPERATURE = 0.7
MULTIPLIER = 2654435761  # Knuth's: spreads consecutive ids
PEER_BATCH = 16
LEAST_VOTE, LEAST_PROMPTS = 2.0, 1.5


def endings(vocabulary: Sequence[int], mean_length: float) -> list[int]:
    """Token ids that end a text, about one in `mean_length`, spread over the vocabulary."""
    chosen = [token for token in vocabulary if token * MULTIPLIER % 2**32 < 2**32 / mean_length]
    return chosen or [vocabulary[-1]]


class Vote:
    """Our vote of k answers. Every call has a new prompt and seed."""

    def __init__(self, subject: Subject, sizes: Sizes) -> None:
        self.subject, self.sizes, self.calls = subject, sizes, 0
        self.tokens: list[int] = []

    def prepare(self) -> None:
        self.ids = self.subject.prompt(self.sizes.prompt, self.calls)
        self.calls += 1

    def __call__(self) -> None:
        pipe = Pipeline(Sample(temperature=TEMPERATURE), SelfConsistency(k=self.sizes.k))
        asked = [Prompt(token_ids=self.ids)]
        [self.result] = pipe.run(self.subject.lm, asked, seed=self.calls, max_new_tokens=self.sizes.new_tokens)
        self.tokens.append(sum(len(c.token_ids) for c in self.result.candidates))


class GeneratedVote(Vote):
    """transformers' `generate(num_return_sequences=k)`."""

    def __call__(self) -> None:
        out = generated(self.subject, [self.ids], self.sizes.new_tokens, self.calls, self.sizes.k)
        self.tokens.append(sum(out))


class Prompts:
    """Our run over prompts of mixed length."""

    def __init__(self, subject: Subject, sizes: Sizes) -> None:
        self.subject, self.sizes, self.calls = subject, sizes, 0
        self.tokens: list[int] = []

    def prepare(self) -> None:
        shortest, count, first = max(2, self.sizes.longest // 8), self.sizes.prompts, self.calls * self.sizes.prompts
        lengths = [shortest + i * MULTIPLIER % (self.sizes.longest - shortest + 1) for i in range(count)]
        self.asked = [self.subject.prompt(length, first + i) for i, length in enumerate(lengths)]
        self.calls += 1

    def __call__(self) -> None:
        asked, most = [Prompt(token_ids=ids) for ids in self.asked], self.sizes.new_tokens
        pipe = Pipeline(Sample(temperature=TEMPERATURE))
        results = pipe.run(self.subject.lm, asked, seed=self.calls, max_new_tokens=most)
        self.tokens.append(sum(len(result.winner.token_ids) for result in results))


class GeneratedPrompts(Prompts):
    """transformers' `generate` in batches, prompts of like length together, which pads least."""

    def __call__(self) -> None:
        asked, count = sorted(self.asked, key=len), 0
        for start in range(0, len(asked), PEER_BATCH):
            batch = asked[start : start + PEER_BATCH]
            count += sum(generated(self.subject, batch, self.sizes.new_tokens, self.calls))
        self.tokens.append(count)


@torch.no_grad()
def generated(subject: Subject, prompts: Sequence[Sequence[int]], most: int, seed: int, copies: int = 1) -> list[int]:
    """How many tokens `generate` wrote for each sequence, the end token included; prompts are padded on the left."""
    torch.manual_seed(seed)
    longest, peer = max(map(len, prompts)), subject.peer
    pad = peer.generation_config.pad_token_id
    ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in prompts], device=peer.device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=peer.device)
    sampling = {"do_sample": True, "temperature": TEMPERATURE, "top_k": 0, "top_p": 1.0}
    out = peer.generate(ids, attention_mask=mask, max_new_tokens=most, num_return_sequences=copies, **sampling)
    new, ends = out[:, longest:], torch.tensor(peer.generation_config.eos_token_id, device=peer.device)
    ended = torch.isin(new, ends)
    first = torch.where(ended.any(1), ended.int().argmax(1) + 1, new.shape[1])
    return [int(length) for length in first]


def vote(subject: Subject, sizes: Sizes, limits: Limits) -> Outcome:
    """Self-consistency."""
    ending = subject.ending_at(endings(subject.vocabulary, sizes.new_tokens / 2))
    ours, theirs = Vote(ending, sizes), GeneratedVote(ending, sizes)
    work = f"self-consistency, k = {sizes.k}, {sizes.prompt} prompt tokens, mixed lengths"
    peer = f"transformers generate(num_return_sequences={sizes.k})"
    found = per_token(work, peer, ours, theirs, sizes.rounds, LEAST_VOTE)
    ours.prepare()
    ours()
    bill, shape = ours.result.cost, ending.lm.shape
    prompt = sizes.prompt - 1
    read = shape.dense_bytes + min(shape.experts, prompt * shape.top_k) * shape.moe_layers * shape.expert_bytes
    tally = Tally(step_bytes=max(0.0, bill.bytes - read), prefill_bytes=read, prefill_flops=shape.prefill_flops(prompt))
    seconds = tally.seconds(limits) * statistics.fmean(ours.tokens[:-1]) / ours.tokens[-1]
    return Outcome("vote", [found.with_limit(seconds)])


def prompts(subject: Subject, sizes: Sizes, limits: Limits) -> Outcome:
    """Many prompts."""
    ending = subject.ending_at(endings(subject.vocabulary, sizes.new_tokens / 2))
    ours, theirs = Prompts(ending, sizes), GeneratedPrompts(ending, sizes)
    work = f"{sizes.prompts} prompts of mixed length, mixed output length"
    rounds = max(1, sizes.rounds // 2)
    found = per_token(work, f"transformers generate in batches of {PEER_BATCH}", ours, theirs, rounds, LEAST_PROMPTS)
    with counted(ending.lm) as tally:
        ours.prepare()
        ours()
    return Outcome("prompts", [found.with_limit(tally.seconds(limits))])


def per_token(
    work: str, peer: str, ours: Vote | Prompts, theirs: Vote | Prompts, rounds: int, least: float
) -> Comparison:
    """Times of both sides, and how many times more tokens per second we write."""
    seconds = interleaved({work: ours, peer: theirs}, rounds)
    mine, other = ours.tokens[1:], theirs.tokens[1:]
    speed = [n / s for n, s in zip(mine, seconds[work], strict=True)]
    their_speed = [n / s for n, s in zip(other, seconds[peer], strict=True)]
    ratio = Ratio.of([a / b for a, b in zip(speed, their_speed, strict=True)])
    plain = Ratio.of([b / a for a, b in zip(seconds[work], seconds[peer], strict=True)])
    details = {
        "tokens_per_second": statistics.median(speed),
        "their_tokens_per_second": statistics.median(their_speed),
        "tokens": statistics.fmean(mine),
        "their_tokens": statistics.fmean(other),
        "times faster in seconds": plain.median,
    }
    one, two = (1e3 * statistics.median(seconds[name]) for name in (work, peer))
    return replace(Comparison(work, peer, one, two, ratio, Target(least=least)), details=details)
