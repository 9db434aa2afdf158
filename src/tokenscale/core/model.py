"""What a language model must offer: encode, prefill, step, and states that can be picked and joined."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from tokenscale.core.cost import Prefill
from tokenscale.core.plan import PLAIN, Routing, RowPlan
from tokenscale.core.prompt import Prompt
from tokenscale.core.shape import ModelShape
from tokenscale.core.step import Step
from tokenscale.core.thinking import ends_open, split

if TYPE_CHECKING:
    from tokenscale.core.score import Score, Text
    from tokenscale.core.stepped import Given, Outcome
    from tokenscale.core.strategy import Aggregator, TokenProposer

ROUTING_NOISE = "routing_noise"
EXPERT_RANKS = "expert_ranks"
DROPOUT = "dropout"
EARLY_LAYERS = "early_layers"
CLEAN_CURRENT_KV = "clean_current_kv"


class State(ABC):
    """The cache of a batch of sequences. With the clean cache it is a function of the token ids alone."""

    @property
    @abstractmethod
    def lengths(self) -> list[int]:
        """Tokens stored per sequence, padding not counted."""

    @property
    @abstractmethod
    def prefills(self) -> list[Prefill]:
        """What each sequence's prefill ran."""

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
    (never generated), `capabilities` (names such as "routing_noise"), `shape`, `layers` and
    `hidden_size` (decoder layers and the width of the residual stream), `tokenizer` (None where the
    model came without one), `bill_note` (why its bills are estimates, as the end of a sentence; empty
    where they are exact), `sampling_defaults` (what the checkpoint recommends, among temperature,
    top_k, top_p and min_p).

    How its states lie in memory, which is what a batch is scheduled by: `shares_prompts` (a prompt is stored once
    for all sequences of a batch that begin with it, and is not run again for those that join), `pads_caches` (a
    sequence takes the room of the longest in its batch), `joins_apart` (sequences that join a batch run in forwards
    of their own until they end).
    """

    fingerprint: str
    name: str
    context_length: int
    vocab_size: int
    eos_ids: frozenset[int]
    suppressed_ids: frozenset[int]
    capabilities: frozenset[str]
    shape: ModelShape
    layers: int
    hidden_size: int
    bill_note: str = ""
    tokenizer: Any
    sampling_defaults: Mapping[str, float]
    think_tags: tuple[tuple[str, str], ...] = ()
    shares_prompts: bool = False
    pads_caches: bool = False
    joins_apart: bool = False

    @property
    def cache_devices(self) -> Mapping[torch.device, float]:
        """Where keys and values are stored: each device's share of them. Empty where that is not known."""
        return {torch.device("cpu"): 1.0}

    @abstractmethod
    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """Token ids of a prompt, special tokens and chat template applied once.

        An empty prompt is the begin-of-sequence token. Raises PromptError where there is none.
        """

    @abstractmethod
    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of generated ids, special tokens left out. Raises CapabilityError without a tokenizer."""

    def read(self, prompt: Sequence[int], token_ids: Sequence[int]) -> tuple[str, str]:
        """(thinking, text) of ids generated behind a prompt: what stands inside `think_tags`, and the rest."""
        opened = ends_open(self.decode(prompt), self.think_tags)
        return split(self.decode(token_ids), self.think_tags, opened)

    @abstractmethod
    def prefill(self, prompts: Sequence[Sequence[int]], routing: Sequence[Routing] | None = None) -> State:
        """Runs the model over prompts of any lengths (0 included) and stores their keys and values.

        `routing`, one entry a prompt with a batch of 1 and a row per position, is how their tokens choose
        experts; None is the model's own way. Cost: `shape.prefill_flops` each; one forward for all of them.
        """

    @abstractmethod
    def step(self, state: State, tokens: Int[Tensor, " batch"], plan: RowPlan = PLAIN) -> Step:
        """Feeds one token to every sequence in `plan.n` rows; row 0's keys and values are appended to `state`.

        Cost: `shape.decode_flops([n], length + 1)` per sequence. Raises RoutingError where a router that
        should draw noise was not called.
        """

    def score(
        self,
        texts: Sequence[Text],
        proposer: TokenProposer | None = None,
        aggregator: Aggregator | None = None,
        *,
        prompts: Sequence[Any] | None = None,
        seed: int = 0,
        max_memory_mb: int = 1024,
        batch_size: int = 16,
    ) -> list[Score]:
        """The log-likelihood of texts (strings or token ids): what decoding would have said of their tokens.

        `proposer` None is the model itself, `aggregator` None the proposer's own. Each text follows its
        entry of `prompts` (strings, chats, token ids, Prompts), and without prompts all its tokens but the
        first are scored. Noise at a position is what decoding the prompt with `seed` draws there; texts
        behind one prompt share it. RoE over the clean cache runs T positions x n rows in one forward
        where the model can, in chunks whose logits and attention scores take at most `max_memory_mb`; all
        else is stepped, `batch_size` texts at once. Cost: see `Score`. Raises ArgumentError,
        PromptError for texts without a token to score or longer than the context, CapabilityError.
        """
        from tokenscale.core.score import score  # it stands above this module

        return score(
            self,
            texts,
            proposer,
            aggregator,
            prompts=prompts,
            seed=seed,
            max_memory_mb=max_memory_mb,
            batch_size=batch_size,
        )

    def forced(
        self, texts: Sequence[Given], proposer: TokenProposer, aggregator: Aggregator, most_bytes: int
    ) -> list[Outcome] | None:
        """Scores texts in few forwards, each of many positions; None where they have to be stepped."""
        return None

    def release(self) -> None:
        """Frees what is kept for later prompts; called where memory has run out."""
        return None

    def lacks(self, capability: str) -> str:
        """Why a capability is not among `capabilities`, as the end of a sentence."""
        return f"it does not offer {capability}"

    def inspect_layers(self) -> list[str]:
        """A name per MoE layer, in order; empty for a dense model."""
        return []


class Holding(NamedTuple):
    """One cache of a sequence before it is made: its model, the prompt that it will store, its source.

    Holdings that are equal store the same (see `core.cost.Cached`).
    """

    lm: LanguageModel
    prompt: tuple[int, ...]
    source: Hashable = ""


_open: Callable[[str], LanguageModel] | None = None


def set_opener(load: Callable[[str], LanguageModel]) -> None:
    """The loader of checkpoints says here how a model reference is opened, so that core need not know it."""
    global _open
    _open = load


def open_model(reference: str | LanguageModel) -> LanguageModel:
    """The model that a second member of a pipeline names: itself, or what `load` makes of a path or id.

    A reference is opened once in a process. Raises ModelError where it cannot be.
    """
    if isinstance(reference, LanguageModel):
        return reference
    assert _open is not None, "no loader has been set"
    return _open(reference)
