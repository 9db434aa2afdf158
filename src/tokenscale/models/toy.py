"""A small mixture-of-experts model with exact probabilities: the oracle of tests and of the docs' examples."""

from __future__ import annotations

import hashlib
import string
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Int
from scipy.special import log_softmax
from torch import Tensor

from tokenscale.core.cost import Prefill
from tokenscale.core.errors import CapabilityError, ModelError, PromptError, at_least
from tokenscale.core.model import (
    CLEAN_CURRENT_KV,
    DROPOUT,
    EARLY_LAYERS,
    EXPERT_RANKS,
    ROUTING_NOISE,
    LanguageModel,
    State,
)
from tokenscale.core.plan import PLAIN, Dropout, Routing, RowPlan
from tokenscale.core.prompt import Prompt
from tokenscale.core.step import Step
from tokenscale.models.toy_parts import (
    Array,
    Choosing,
    Pass,
    ToySequence,
    ToyState,
    random_weights,
    softmax,
    toy_shape,
)
from tokenscale.models.toy_tokenizer import END, ToyTokenizer

WORDS = (*string.digits, " ", "\n", ".", "+", "=", " and", " so", " then", " gives", " The answer is ")
SPELLING = string.ascii_letters + string.punctuation
AGE_SLOPE = 0.05


class ToyModel(LanguageModel):
    """A transformer-like model in float64 whose every number is a function of the token ids alone.

    With x = embed[token], at each level l: k = tanh(x keys[l]); x += sum over the past and the own
    token of softmax(k_t . x / sqrt(width) - age_t / 20) k_t; then, in an MoE layer, with u = tanh(x)
    and R = u router[l]: I = TopK(R + shift, k), gates = softmax(R)[I] renormalised, and
    x += sum over I of gate_e tanh(u expert[l, e]). The logits are sharpness * tanh(x) unembed. So all
    tokens before it bear on a distribution, and a wrong cache shows.

    It writes `words` and reads the characters of `spelling` too, whose logits are -inf. Id 0 begins
    and ends every text. `moe_layers` 0 is a dense model. Each sequence and row is computed by
    itself: nothing depends on the batch, to the last bit. A level is a layer; dropout acts on what it
    adds last (the experts' sum, or attention's in the last level), and an early layer's logits are made
    of x behind that level.
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
        self.capabilities = frozenset(
            {DROPOUT, EARLY_LAYERS, CLEAN_CURRENT_KV} | ({ROUTING_NOISE, EXPERT_RANKS} if moe_layers else set())
        )
        self.layers, self.hidden_size = moe_layers + 1, width
        self.sampling_defaults = {}
        self.name = "toy" if moe_layers else "dense toy"
        self.weights = random_weights(self.vocab_size, moe_layers, experts, width, seed)
        self.shape = toy_shape(self.weights, top_k)
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

    def prefill(self, prompts: Sequence[Sequence[int]], routing: Sequence[Routing] | None = None) -> ToyState:
        return ToyState([self._prefill(p, routing[b] if routing else None) for b, p in enumerate(prompts)])

    def _prefill(self, prompt: Sequence[int], routing: Routing | None = None) -> ToySequence:
        past = np.zeros((0, *self.weights.keys.shape[:2]))
        experts, runs = np.zeros((self.shape.moe_layers, self.shape.experts), np.bool_), 0
        for position, token in enumerate(prompt):
            row = self._forward(past, token, self._choosing(routing, 0, position))
            past, experts = np.concatenate([past, row.keys[None]]), experts | row.experts
            runs += int(row.experts.sum())
        return ToySequence(past, Prefill(np.packbits(experts, axis=-1), runs))

    def _choosing(self, routing: Routing | None, batch: int, row: int) -> Choosing | None:
        if routing is None:
            return None
        return Choosing.of(routing, batch, row, self.shape.moe_layers, self.shape.experts)

    def step(self, state: State, tokens: Int[Tensor, " batch"], plan: RowPlan = PLAIN) -> Step:
        assert isinstance(state, ToyState)
        if plan.commit and max(state.lengths, default=0) >= self.context_length:
            raise ModelError(f"{self.name} holds {self.context_length} tokens", "ask for fewer new tokens")
        rows = [self._rows(s, token, plan, b) for b, (s, token) in enumerate(self._fed(state, tokens))]
        if plan.commit:
            for sequence, (clean, *_) in zip(state.sequences, rows, strict=True):
                sequence.past = np.concatenate([sequence.past, clean.keys[None]])
        levels = [-1, *plan.early_layers]
        logits = [[self._logits(r.hidden[level]) for r in s for level in levels] for s in rows]
        noisy = None if plan.routing is None else plan.routing.noisy
        return Step(
            logits=torch.tensor(np.array(logits), dtype=torch.float32),
            experts=torch.tensor(np.array([[r.experts for r in s] for s in rows])) if self.shape.moe_layers else None,
            changed=None if noisy is None else torch.tensor(np.array([[r.changed for r in s] for s in rows])),
            noisy=None if noisy is None else noisy.permute(1, 2, 0),
        )

    def _fed(self, state: ToyState, tokens: Int[Tensor, " batch"]) -> list[tuple[ToySequence, int]]:
        return list(zip(state.sequences, tokens.tolist(), strict=True))

    def _rows(self, sequence: ToySequence, token: int, plan: RowPlan, batch: int) -> list[Pass]:
        past, clean = sequence.past, None
        if not plan.commit:
            past, clean = past[:-1], past[-1] if plan.current_kv == "clean" else None
        rows: list[Pass] = []
        for i in range(plan.n):
            kept = None if plan.dropout is None else _kept(plan.dropout, batch, i)
            rows.append(self._forward(past, token, self._choosing(plan.routing, batch, i), kept, clean))
            if plan.commit and plan.current_kv == "clean":
                clean = rows[0].keys
        return rows

    def _forward(
        self,
        past: Array,
        token: int,
        choosing: Choosing | None = None,
        kept: Array | None = None,
        current: Array | None = None,
    ) -> Pass:
        """One token after `past`. `choosing` moves the choice of experts; `kept`, [levels, width], multiplies
        what every level adds last; `current`, [levels, width], are seen for the token's own keys."""
        layers, x = self.shape.moe_layers, self.weights.embed[token]
        keys, hidden = np.empty(past.shape[1:]), np.empty(past.shape[1:])
        experts = np.zeros((layers, self.shape.experts), np.bool_)
        changed = np.zeros(layers, np.bool_)
        age = AGE_SLOPE * np.arange(len(past), -1, -1)
        for level in range(layers + 1):
            keys[level] = np.tanh(x @ self.weights.keys[level])
            own = keys[level] if current is None else current[level]
            seen = np.concatenate([past[:, level], own[None]])
            added = softmax(seen @ x / np.sqrt(len(x)) - age) @ seen
            if level < layers:
                x = x + added
                u = np.tanh(x)
                scores = u @ self.weights.router[level]
                clean, gate_logits = np.argsort(-scores, kind="stable")[: self.top_k], scores
                chosen = clean
                if choosing is not None:
                    chosen, gate_logits = choosing.choose(scores, level, self.top_k)
                experts[level, chosen], changed[level] = True, set(chosen) != set(clean)
                added = softmax(gate_logits[chosen]) @ np.tanh(u @ self.weights.expert[level, chosen])
            x = x + (added if kept is None else added * kept[level])
            hidden[level] = x
        return Pass(keys, experts, changed, hidden)

    def _logits(self, hidden: Array) -> Array:
        logits: Array = self.sharpness * np.tanh(hidden) @ self.weights.unembed
        logits[self._writable :] = -np.inf
        return logits

    def exact_log_probs(self, prefix: Sequence[int]) -> Array:
        """Natural log-probabilities of the token after `prefix` (not empty), float64, shape [vocab]."""
        row = self._forward(self._prefill(prefix[:-1]).past, prefix[-1])
        return np.asarray(log_softmax(self._logits(row.hidden[-1])))

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


def _kept(dropout: Dropout, batch: int, row: int) -> Array:
    """What the units of every level are multiplied with."""
    uniforms = dropout.uniforms[:, batch, row].double().numpy()
    kept: Array = np.where(uniforms < dropout.rate, 0.0, 1 / (1 - dropout.rate))
    return np.ones_like(kept) if (uniforms == 1).all() else kept
