"""The log-likelihood of given tokens under a proposer and an aggregator: what decoding would have said of them.

A model may score many positions of a text in one forward (`LanguageModel.forced`). Whatever it has no
such form for is stepped (`core/stepped.py`) with the same noise, and so the same numbers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tokenscale.core.cost import Cost
from tokenscale.core.errors import ArgumentError, CapabilityError, PipelineError, PromptError, at_least
from tokenscale.core.model import LanguageModel
from tokenscale.core.noise import Stream, prompt_key
from tokenscale.core.prompt import Prompt
from tokenscale.core.stepped import Given, stepped
from tokenscale.core.strategy import Aggregator, TokenProposer

Text = str | Sequence[int]
MAX_MEMORY_MB = 1024

_plain: Callable[[], TokenProposer] | None = None


def set_plain(make: Callable[[], TokenProposer]) -> None:
    """`pipeline.py` says here what the model itself is as a proposer, so that core need not know it."""
    global _plain
    _plain = make


@dataclass(frozen=True)
class Score:
    """The log-likelihood of one text.

    `token_ids` are the text's. `log_probs` are natural log-probabilities under the aggregate, each token
    given all that stands before it: of every token behind a prompt, else of every token but the first.
    `clean_log_probs` are the same of the clean row alone; None where the proposer has none. `fallbacks`
    counts tokens whose rows allowed no common token. `cost` is the bill: T tokens in n rows are T n rows,
    a parallel forward being one sequential step that reads the weights once; a text that is stepped
    is billed as if it were decoded.
    """

    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    clean_log_probs: tuple[float, ...] | None
    cost: Cost
    fallbacks: int = 0

    @property
    def total(self) -> float:
        """Log-probability of the text in nats."""
        return math.fsum(self.log_probs)

    @property
    def mean(self) -> float:
        """Log-probability per scored token in nats."""
        return self.total / len(self.log_probs)

    @property
    def perplexity(self) -> float:
        """exp(-mean)."""
        return math.exp(-self.mean) if self.mean > -700 else math.inf

    @property
    def gain(self) -> float | None:
        """What the rows add to the clean one: the mean of log_probs - clean_log_probs, in nats per token."""
        if self.clean_log_probs is None:
            return None
        return self.mean - math.fsum(self.clean_log_probs) / len(self.log_probs)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; a number that is not finite is None."""
        figures = {"total": self.total, "mean": self.mean, "perplexity": self.perplexity, "gain": self.gain}
        return {
            "tokens": len(self.log_probs),
            **{name: _finite(value) for name, value in figures.items()},
            "token_ids": list(self.token_ids),
            "log_probs": [_finite(value) for value in self.log_probs],
            "clean_log_probs": None if self.clean_log_probs is None else [_finite(v) for v in self.clean_log_probs],
            "fallbacks": self.fallbacks,
            "cost": self.cost.to_dict(),
        }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def score(
    lm: LanguageModel,
    texts: Sequence[Text],
    proposer: TokenProposer | None = None,
    aggregator: Aggregator | None = None,
    *,
    prompts: Sequence[Any] | None = None,
    seed: int = 0,
    max_memory_mb: int = MAX_MEMORY_MB,
    batch_size: int = 16,
) -> list[Score]:
    """What `LanguageModel.score` says."""
    at_least("score", "seed", seed, 0)
    at_least("score", "max_memory_mb", max_memory_mb, 1)
    at_least("score", "batch_size", batch_size, 1)
    if proposer is None:
        assert _plain is not None, "tokenscale.pipeline has not been imported"
        proposer = _plain()
    _check(lm, proposer)
    if aggregator is not None and not isinstance(aggregator, Aggregator):
        message = f"score joins rows by an aggregator, got {aggregator!r:.80}"
        raise ArgumentError(message, "pass MeanProbability(), or leave it out")
    how = aggregator if aggregator is not None else proposer.default_aggregator
    given = given_texts(lm, texts, prompts, seed)
    if not given:
        return []
    with torch.no_grad():
        outcomes = lm.forced(given, proposer, how, max_memory_mb * 2**20)
        if outcomes is None:
            outcomes = stepped(lm, given, proposer, how, batch_size)
    return [
        Score(
            one.ids if prompts is not None else one.prompt + one.ids,
            o.log_probs,
            o.clean_log_probs,
            o.cost,
            o.fallbacks,
        )
        for one, o in zip(given, outcomes, strict=True)
    ]


def _check(lm: LanguageModel, proposer: TokenProposer) -> None:
    if not isinstance(proposer, TokenProposer):
        raise ArgumentError(f"score runs a proposer, got {proposer!r:.80}", "pass Plain(), or RoE(n=8)")
    proposer.check(lm)
    if missing := ", ".join(sorted(proposer.needs - lm.capabilities)):
        message = f"{proposer!r:.80} needs {missing}, which {lm.name} lacks"
        raise CapabilityError(message, "use another proposer, or a model that offers it")
    if not proposer.takes_processors:
        message = f"{proposer!r:.80} runs the rows that settle the greedy token, so it says little of other tokens"
        raise PipelineError(message, "score with RoE of the same n and tau, or with exact=False")


def given_texts(
    lm: LanguageModel, texts: Sequence[Text], prompts: Sequence[Any] | None = None, seed: int = 0
) -> list[Given]:
    """Texts and prompts as token ids, each with its stream.

    The stream is that of the first copy that decoding the prompt with `seed` would make: options of one
    prompt share it, a pair of prompt and text that comes again does not. Without a prompt the text's own
    ids name it. Raises ArgumentError and PromptError.
    """
    if isinstance(texts, str):
        raise ArgumentError("score takes a list of texts, got one string", "write score([text], ...)")
    if prompts is not None and (isinstance(prompts, str) or len(prompts) != len(texts)):
        raise ArgumentError(
            f"score got {len(texts)} texts and other than {len(texts)} prompts", "give one prompt a text"
        )
    repeats: Counter[tuple[object, tuple[int, ...]]] = Counter()
    found = []
    for number, text in enumerate(texts):
        prompt = None if prompts is None else _prompt(prompts[number])
        head = () if prompt is None else lm.encode(prompt)
        ids = _text_ids(lm, head, text, number)
        key = None if prompt is None else prompt.key
        place = (key if key is not None else head, ids)
        if key is None:
            key = prompt_key(head or ids, repeats[place])
        repeats[place] += 1
        cut = 0 if head else 1
        _check_ids(lm, (*head, *ids), len(ids) - cut, number)
        found.append(Given((*head, *ids[:cut]), ids[cut:], Stream((seed, key)).child(0)))
    return found


def _prompt(value: Any) -> Prompt:
    if isinstance(value, Sequence) and value and all(isinstance(i, int) for i in value):
        return Prompt(token_ids=tuple(value))
    return Prompt.of(value)


def _text_ids(lm: LanguageModel, head: tuple[int, ...], text: Text, number: int) -> tuple[int, ...]:
    """Ids of a text: behind a prompt without special tokens, which stand at the prompt's beginning."""
    if isinstance(text, str):
        whole = lm.encode(Prompt(token_ids=head, suffix=text) if head else Prompt(text=text))
        return whole[len(head) :]
    if not isinstance(text, Sequence) or not all(isinstance(i, int) for i in text):
        raise ArgumentError(f"text {number} is {text!r:.80}", "pass strings, or sequences of token ids")
    return tuple(int(i) for i in text)


def _check_ids(lm: LanguageModel, ids: tuple[int, ...], scored: int, number: int) -> None:
    if scored < 1:
        message = f"text {number} has no token that could be scored: the first of a text is only given"
        raise PromptError(message, "give a longer text, or a prompt before it")
    if len(ids) > lm.context_length:
        message = f"text {number} has {len(ids)} tokens, and the context of {lm.name} holds {lm.context_length}"
        raise PromptError(message, "cut it into pieces, or use a model with a longer context")
    wrong = [i for i in ids if not 0 <= i < lm.vocab_size]
    if wrong:
        raise PromptError(f"{lm.name} has no token id {wrong[0]} (text {number})", f"use ids below {lm.vocab_size}")


def gain_interval(scores: Sequence[Score], level: float = 0.95) -> tuple[float | None, tuple[float, float] | None]:
    """The gain per token over all texts, and its interval where there are at least two.

    g = sum_i d_i / sum_i T_i, d_i being text i's sum of log_probs - clean_log_probs and T_i its tokens. The
    interval is Student's, of a ratio estimate over k texts: s = sqrt(k / (k - 1) sum_i (d_i - g T_i)^2) / sum_i T_i
    (Cochran 1977, section 2.11). (None, None) without a clean row, or where a difference is not a number.
    """
    if any(s.gain is None or not math.isfinite(s.gain) for s in scores):
        return None, None
    tokens = [len(s.log_probs) for s in scores]
    sums = [float(s.gain or 0.0) * t for s, t in zip(scores, tokens, strict=True)]
    gain, count = math.fsum(sums) / sum(tokens), len(scores)
    if count < 2:
        return gain, None
    squares = math.fsum((d - gain * t) ** 2 for d, t in zip(sums, tokens, strict=True))
    from scipy.stats import t as student  # here, since it takes long to load

    quantile = float(student.ppf((1 + level) / 2, count - 1))
    half = quantile * math.sqrt(count / (count - 1) * squares) / sum(tokens)
    return gain, (gain - half, gain + half)


@dataclass(frozen=True)
class Chosen:
    """An answer to a question of several options: `index` of the most likely one, and all scores."""

    index: int
    scores: tuple[Score, ...]


def choose_option(
    lm: LanguageModel,
    prompt: Any,
    options: Sequence[Text],
    proposer: TokenProposer | None = None,
    aggregator: Aggregator | None = None,
    *,
    length_normalised: bool = False,
    seed: int = 0,
    max_memory_mb: int = MAX_MEMORY_MB,
) -> Chosen:
    """The option with the highest log-probability behind a prompt, or per token where `length_normalised`.

    Options are texts as they follow the prompt, their leading space included. The first of equals wins. All
    options draw the same noise at the same position. Cost: that of scoring each. Raises what
    `LanguageModel.score` raises, and ArgumentError for fewer than two options.
    """
    if isinstance(options, str) or len(options) < 2:
        raise ArgumentError(
            f"choose_option chooses among at least two options, got {options!r:.80}", "give a list of texts"
        )
    scores = score(
        lm, options, proposer, aggregator, prompts=[prompt] * len(options), seed=seed, max_memory_mb=max_memory_mb
    )
    values = [s.mean if length_normalised else s.total for s in scores]
    return Chosen(values.index(max(values)), tuple(scores))
