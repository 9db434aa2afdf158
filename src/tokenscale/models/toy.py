"""A small mixture-of-experts model with exact probabilities: the oracle of tests and of the docs' examples."""

from __future__ import annotations

import hashlib
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from scipy.special import log_softmax
from torch import Tensor

from tokenscale.core.cost import ModelShape, Packed
from tokenscale.core.data import Prompt
from tokenscale.core.errors import CapabilityError, ModelError, PromptError, at_least
from tokenscale.core.model import PLAIN, ROUTING_NOISE, LanguageModel, RowPlan, State, Step
from tokenscale.models.toy_tokenizer import END, ToyTokenizer

Array = NDArray[np.float64]
Marks = NDArray[np.bool_]

WORDS = (*string.digits, " ", "\n", ".", "+", "=", " and", " so", " then", " gives", " The answer is ")
SPELLING = string.ascii_letters + string.punctuation
AGE_SLOPE = 0.05


class Weights(NamedTuple):
    """The seeded tables, float64. Levels are the MoE layers and one more."""

    embed: Array  # vocab width
    keys: Array  # levels width width
    router: Array  # moe_layers width experts
    expert: Array  # moe_layers experts width width
    unembed: Array  # width vocab


class Pass(NamedTuple):
    """One token's way through the model in one row."""

    keys: Array  # levels width
    experts: Marks  # moe_layers experts
    changed: Marks  # moe_layers
    hidden: Array  # width


@dataclass
class _Sequence:
    """One sequence's cache: the keys of its tokens, [tokens, levels, width], never changed in place."""

    past: Array
    prefill_experts: Packed


class ToyState(State):
    """Caches, one per sequence. A state that was given away by `select` or `join` refuses further use."""

    def __init__(self, sequences: list[_Sequence]) -> None:
        self._sequences: list[_Sequence] | None = sequences

    @property
    def sequences(self) -> list[_Sequence]:
        if self._sequences is None:
            raise ModelError("this state was given away by select or join", "use the state that they returned")
        return self._sequences

    def _give_away(self) -> list[_Sequence]:
        sequences, self._sequences = self.sequences, None
        return sequences

    @property
    def lengths(self) -> list[int]:
        return [len(s.past) for s in self.sequences]

    @property
    def prefill_experts(self) -> list[Packed]:
        return [s.prefill_experts for s in self.sequences]

    def select(self, index: Sequence[int]) -> ToyState:
        sequences = self._give_away()
        return ToyState([_Sequence(sequences[i].past, sequences[i].prefill_experts) for i in index])

    def join(self, other: State) -> ToyState:
        assert isinstance(other, ToyState)
        return ToyState(self._give_away() + other._give_away())


class ToyModel(LanguageModel):
    """A transformer-like model in float64 whose every number is a function of the token ids alone.

    With x = embed[token], at each level l: k = tanh(x keys[l]); x += sum over the past and the own
    token of softmax(k_t . x / sqrt(width) - age_t / 20) k_t; then, in an MoE layer, with u = tanh(x)
    and R = u router[l]: I = TopK(R + shift, k), gates = softmax(R)[I] renormalised, and
    x += sum over I of gate_e tanh(u expert[l, e]). The logits are sharpness * tanh(x) unembed. So all
    tokens before it bear on a distribution, and a wrong cache shows.

    It writes `words` and reads the characters of `spelling` too, whose logits are -inf. Id 0 begins
    and ends every text. `moe_layers` 0 is a dense model. Each sequence and row is computed by
    itself: nothing depends on the batch, to the last bit.
    """

    def __init__(
        self,
        words: Sequence[str] = WORDS,
        *,
        spelling: str = SPELLING,
        moe_layers: int = 4,
        experts: int = 6,
        top_k: int = 2,
        width: int = 8,
        context_length: int = 512,
        sharpness: float = 3.0,
        seed: int = 0,
        with_tokenizer: bool = True,
        suppressed_ids: Sequence[int] = (),
    ) -> None:
        at_least("ToyModel", "moe_layers", moe_layers, 0)
        pieces = (*words, *(c for c in spelling if c not in words))
        self.vocab_size, self._writable = len(pieces) + 1, len(words) + 1
        self._tokenizer = ToyTokenizer(pieces)
        self.tokenizer = self._tokenizer if with_tokenizer else None
        self.context_length, self.top_k, self.sharpness = context_length, top_k, sharpness
        self.eos_ids, self.suppressed_ids = frozenset({END}), frozenset(suppressed_ids)
        self.capabilities = frozenset({ROUTING_NOISE} if moe_layers else ())
        self.sampling_defaults = {}
        self.name = "toy" if moe_layers else "dense toy"
        self.weights = _weights(self.vocab_size, moe_layers, experts, width, seed)
        self.shape = _shape(self.weights, top_k)
        digest = hashlib.blake2b(repr((pieces, len(words), top_k, sharpness)).encode(), digest_size=16)
        for table in self.weights:
            digest.update(table.tobytes())
        self.fingerprint = digest.hexdigest()

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        if prompt.token_ids is None:
            text = prompt.text
            if text is None:
                text = "".join(f"{m['role']}: {m['content']}\n" for m in prompt.chat()) + "assistant: "
            return tuple(self._encode(text)) or (END,)
        wrong = [i for i in prompt.token_ids if not 0 <= i < self.vocab_size]
        if wrong:
            raise PromptError(f"{self.name} has no token id {wrong[0]}", f"use ids below {self.vocab_size}")
        return (*prompt.token_ids, *self._encode(prompt.suffix)) or (END,)

    def _encode(self, text: str) -> list[int]:
        if text and self.tokenizer is None:
            raise CapabilityError(f"{self.name} has no tokenizer", "pass the prompt as Prompt(token_ids=...)")
        return self._tokenizer.encode(text)

    def decode(self, token_ids: Sequence[int]) -> str:
        if self.tokenizer is None:
            raise CapabilityError(f"{self.name} has no tokenizer", "read token_ids instead of text")
        return self._tokenizer.decode(token_ids)

    def lacks(self, capability: str) -> str:
        return super().lacks(capability) if self.shape.moe_layers else "it is a dense model, without routers"

    def inspect_layers(self) -> list[str]:
        return [f"layers.{i}" for i in range(self.shape.moe_layers)]

    def prefill(self, prompts: Sequence[Sequence[int]]) -> ToyState:
        return ToyState([self._prefill(p) for p in prompts])

    def _prefill(self, prompt: Sequence[int]) -> _Sequence:
        past = np.zeros((0, *self.weights.keys.shape[:2]))
        experts = np.zeros((self.shape.moe_layers, self.shape.experts), np.bool_)
        for token in prompt:
            row = self._forward(past, token)
            past, experts = np.concatenate([past, row.keys[None]]), experts | row.experts
        return _Sequence(past, np.packbits(experts, axis=-1))

    def step(self, state: State, tokens: Int[Tensor, " batch"], plan: RowPlan = PLAIN) -> Step:
        assert isinstance(state, ToyState)
        if max(state.lengths, default=0) >= self.context_length:
            raise ModelError(f"{self.name} holds {self.context_length} tokens", "ask for fewer new tokens")
        shift = None if plan.shift is None else plan.shift.double().numpy()
        rows = [
            [self._forward(s.past, token, None if shift is None else shift[:, b, i]) for i in range(plan.n)]
            for b, (s, token) in enumerate(zip(state.sequences, tokens.tolist(), strict=True))
        ]
        for sequence, (clean, *_) in zip(state.sequences, rows, strict=True):
            sequence.past = np.concatenate([sequence.past, clean.keys[None]])
        return Step(
            logits=torch.tensor(np.array([[self._logits(r.hidden) for r in s] for s in rows]), dtype=torch.float32),
            experts=torch.tensor(np.array([[r.experts for r in s] for s in rows])) if self.capabilities else None,
            changed=None if shift is None else torch.tensor(np.array([[r.changed for r in s] for s in rows])),
            choices=plan.choices,
        )

    def _forward(self, past: Array, token: int, shift: Array | None = None) -> Pass:
        """One token after `past`; `shift`, [moe_layers, experts], moves the choice of experts."""
        layers, x = self.shape.moe_layers, self.weights.embed[token]
        keys = np.empty(past.shape[1:])
        experts = np.zeros((layers, self.shape.experts), np.bool_)
        changed = np.zeros(layers, np.bool_)
        age = AGE_SLOPE * np.arange(len(past), -1, -1)
        for level in range(layers + 1):
            keys[level] = np.tanh(x @ self.weights.keys[level])
            seen = np.concatenate([past[:, level], keys[level][None]])
            x = x + _softmax(seen @ x / np.sqrt(len(x)) - age) @ seen
            if level == layers:
                break
            u = np.tanh(x)
            scores = u @ self.weights.router[level]
            clean = self._top(scores)
            chosen = clean if shift is None else self._top(scores + shift[level])
            experts[level, chosen], changed[level] = True, set(chosen) != set(clean)
            x = x + _softmax(scores[chosen]) @ np.tanh(u @ self.weights.expert[level, chosen])
        return Pass(keys, experts, changed, x)

    def _top(self, scores: Array) -> NDArray[np.intp]:
        return np.argsort(-scores, kind="stable")[: self.top_k]

    def _logits(self, hidden: Array) -> Array:
        logits: Array = self.sharpness * np.tanh(hidden) @ self.weights.unembed
        logits[self._writable :] = -np.inf
        return logits

    def exact_log_probs(self, prefix: Sequence[int]) -> Array:
        """Natural log-probabilities of the token after `prefix` (not empty), float64, shape [vocab]."""
        row = self._forward(self._prefill(prefix[:-1]).past, prefix[-1])
        return np.asarray(log_softmax(self._logits(row.hidden)))

    def continuations(
        self,
        prompt: Sequence[int],
        length: int,
        log_probs: Callable[[tuple[int, ...]], Array] | None = None,
    ) -> dict[tuple[int, ...], float]:
        """Every possible continuation that ends with the end token or has `length` tokens, with its probability.

        `log_probs` maps a prefix to the next token's distribution; None is the model's own. Cost:
        one call per prefix, so writable vocabulary to the power of `length`.
        """
        next_token = log_probs or self.exact_log_probs
        ended, growing = dict[tuple[int, ...], float](), dict[tuple[int, ...], float]({(): 1.0})
        for _ in range(length):
            grown = dict[tuple[int, ...], float]()
            for ids, probability in growing.items():
                following = np.exp(next_token((*prompt, *ids)))
                for token in np.flatnonzero(following).tolist():
                    target = ended if token in self.eos_ids else grown
                    target[(*ids, token)] = probability * float(following[token])
            growing = grown
        return ended | growing


def _softmax(scores: Array) -> Array:
    powers = np.exp(scores - scores.max())
    shares: Array = powers / powers.sum()
    return shares


def _weights(vocab: int, moe_layers: int, experts: int, width: int, seed: int) -> Weights:
    random = np.random.default_rng(seed)
    return Weights(
        embed=random.normal(size=(vocab, width)),
        keys=random.normal(size=(moe_layers + 1, width, width)) / np.sqrt(width),
        router=random.normal(size=(moe_layers, width, experts)) / np.sqrt(width),
        expert=random.normal(size=(moe_layers, experts, width, width)) * (2 / np.sqrt(width)),
        unembed=random.normal(size=(width, vocab)) / np.sqrt(width),
    )


def _shape(weights: Weights, top_k: int) -> ModelShape:
    width, levels = len(weights.unembed), len(weights.keys)
    moe_layers, experts = weights.router.shape[0], weights.router.shape[2]
    dense = weights.keys.size + weights.router.size
    return ModelShape(
        dense_flops=2.0 * dense,
        head_flops=2.0 * weights.unembed.size,
        expert_flops=2.0 * width * width * top_k * moe_layers,
        attention=((4.0 * width * levels, None),),
        dense_bytes=8.0 * (dense + weights.unembed.size),
        expert_bytes=8.0 * width * width,
        kv_bytes=8.0 * width * levels,
        moe_layers=moe_layers,
        experts=experts if moe_layers else 0,
        top_k=top_k if moe_layers else 0,
    )
