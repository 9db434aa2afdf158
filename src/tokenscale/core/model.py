"""What a language model must offer: encode, prefill, step, and states that can be picked and joined."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokenscale.core.cost import ModelShape, Packed
from tokenscale.core.data import Prompt

ROUTING_NOISE = "routing_noise"


@dataclass(frozen=True)
class RowPlan:
    """How the rows of one step differ: `n` rows run the same token at the same position.

    `shift`, where given, is added to the router logits R of each MoE layer when experts are
    SELECTED, TopK(R + shift, k); row 0 of it must be zero, so that row 0 is the model itself. Gate
    weights come from R. Only row 0 is stored in the cache; row i sees the clean past and itself.
    `noisy_layers[l]` says that MoE layer l must use its part of `shift`; a layer that should and
    does not is a RoutingError.
    """

    n: int = 1
    shift: Float[Tensor, "moe_layers batch rows experts"] | None = None
    noisy_layers: tuple[bool, ...] = ()

    @property
    def choices(self) -> int:
        """Noisy router choices per sequence: noisy rows times noisy layers."""
        return (self.n - 1) * sum(self.noisy_layers) if self.shift is not None else 0


PLAIN = RowPlan()


@dataclass(frozen=True)
class Step:
    """One forward's outcome.

    `logits` are float32 and raw. `experts` marks the experts each row ran; None for a dense model.
    `changed[b, i, l]` says that row i's noise changed the set of experts in MoE layer l, compared
    with the same row's choice without noise; None where no noise was asked for. `choices` is the
    number of noisy router choices each sequence made, `plan.choices`.
    """

    logits: Float[Tensor, "batch rows vocab"]
    experts: Bool[Tensor, "batch rows moe_layers experts"] | None = None
    changed: Bool[Tensor, "batch rows moe_layers"] | None = None
    choices: int = 0


class State(ABC):
    """The cache of a batch of sequences. With the clean cache it is a function of the token ids alone."""

    @property
    @abstractmethod
    def lengths(self) -> list[int]:
        """Tokens stored per sequence, padding not counted."""

    @property
    @abstractmethod
    def prefill_experts(self) -> list[Packed]:
        """Per sequence: experts its prefill ran, packed bits [moe_layers, ceil(experts / 8)]."""

    @abstractmethod
    def select(self, index: Sequence[int]) -> State:
        """The sequences at `index`, in that order; an index given twice forks the sequence.

        The old state must not be used afterwards (its memory may be taken over).
        """

    @abstractmethod
    def join(self, other: State) -> State:
        """This batch followed by `other`'s. Neither operand must be used afterwards."""


class LanguageModel(ABC):
    """A causal language model with its tokenizer. Immutable in use: a step leaves no trace but its State.

    Attributes set by implementations: `fingerprint` (equal for equal weights and tokenizer),
    `context_length` (most tokens a sequence may have), `vocab_size`, `eos_ids`, `suppressed_ids`
    (never generated), `capabilities` (names such as "routing_noise"), `shape`, `tokenizer` (None
    where the model came without one), `sampling_defaults` (what the checkpoint recommends, among
    temperature, top_k, top_p and min_p).
    """

    fingerprint: str
    name: str
    context_length: int
    vocab_size: int
    eos_ids: frozenset[int]
    suppressed_ids: frozenset[int]
    capabilities: frozenset[str]
    shape: ModelShape
    tokenizer: Any
    sampling_defaults: Mapping[str, float]

    @abstractmethod
    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """Token ids of a prompt, special tokens and chat template applied once.

        An empty prompt is the begin-of-sequence token. Raises PromptError where there is none.
        """

    @abstractmethod
    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of generated ids, special tokens left out. Raises CapabilityError without a tokenizer."""

    @abstractmethod
    def prefill(self, prompts: Sequence[Sequence[int]]) -> State:
        """Runs the model over prompts of any lengths (0 included) and stores their keys and values.

        Cost: `shape.prefill_flops` each; one forward for all of them.
        """

    @abstractmethod
    def step(self, state: State, tokens: Int[Tensor, " batch"], plan: RowPlan = PLAIN) -> Step:
        """Feeds one token to every sequence in `plan.n` rows; row 0's keys and values are appended to `state`.

        Cost: `shape.decode_flops([n], length + 1)` per sequence. Raises RoutingError (see RowPlan).
        """

    def lacks(self, capability: str) -> str:
        """Why a capability is not among `capabilities`, as the end of a sentence."""
        return f"it does not offer {capability}"

    def inspect_layers(self) -> list[str]:
        """A name per MoE layer, in order; empty for a dense model."""
        return []


def pack_experts(marks: Bool[Tensor, "*batch experts"]) -> Packed:
    """Boolean expert marks as packed bits along the last axis, for `core.cost`."""
    return np.packbits(marks.cpu().numpy(), axis=-1)


def no_experts(batch: int, shape: ModelShape) -> Bool[Tensor, "batch moe_layers experts"]:
    """Marks of a forward that ran no experts (a dense model or an empty prefill)."""
    return torch.zeros(batch, shape.moe_layers, shape.experts, dtype=torch.bool)
