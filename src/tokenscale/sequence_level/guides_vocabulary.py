"""A vocabulary as a tree of bytes, through which an automaton walks all tokens at once."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool
from numpy.typing import NDArray
from torch import Tensor

from tokenscale.core.errors import CapabilityError
from tokenscale.core.model import LanguageModel
from tokenscale.sequence_level.guides_tokens import drops_first_space, token_texts

MODELS, CONSTRAINTS = 4, 32  # kept in the process; the oldest goes first
T = TypeVar("T")


class Vocabulary:
    """The tokens that may spell a text, of one model; made once per model and process by `Vocabulary.of`.

    `texts[token]` is what a token adds to a text, None where it spells nothing; `ends` is the mask of end
    tokens and `spelling` of those with a text; `used` are the bytes that tokens have and `single` those that
    are tokens by themselves, both [256]. Tokens that begin alike share the nodes of a tree; the nodes of one
    depth stand together, parents ahead of children, in the order of their texts. `kept` is for what
    constraints make of it.
    """

    def __init__(self, lm: LanguageModel) -> None:
        self.texts = token_texts(lm)
        self.drops_first_space = drops_first_space(lm, self.texts)
        self.ends: Bool[Tensor, " vocab"] = torch.zeros(lm.vocab_size, dtype=torch.bool)
        self.ends[sorted(lm.eos_ids)] = True
        self.spelling: Bool[Tensor, " vocab"] = torch.tensor([text is not None for text in self.texts])
        self.used, self.single = np.zeros(256, np.bool_), np.zeros(256, np.bool_)
        self.used[list(frozenset(b"".join(text for text in self.texts if text)))] = True
        self.single[[text[0] for text in self.texts if text and len(text) == 1]] = True
        self.kept: dict[Hashable, Any] = {}
        self._grow()

    @staticmethod
    def of(lm: LanguageModel) -> Vocabulary:
        """The model's vocabulary. Raises CapabilityError for a model without a tokenizer."""
        if lm.tokenizer is None:
            message = f"{lm.name} came without a tokenizer, so no constraint can read its text"
            raise CapabilityError(message, "pass tokenizer=..., or leave Constrained out")
        key = (lm.fingerprint, lm.vocab_size, lm.eos_ids, lm.suppressed_ids)
        return keep(_models, key, lambda: Vocabulary(lm), MODELS)

    def _grow(self) -> None:
        spelled = sorted((text, token) for token, text in enumerate(self.texts) if text)
        data = np.frombuffer(b"".join(text for text, _ in spelled), np.uint8)
        lengths = np.array([len(text) for text, _ in spelled], np.int64)
        offsets = np.cumsum(lengths) - lengths
        nodes, count = np.zeros(len(spelled), np.int64), 1
        parents, labels = [np.zeros(1, np.int64)], [np.zeros(1, np.uint8)]
        for depth in range(int(lengths.max(initial=0))):
            longer = np.flatnonzero(lengths > depth)
            parent, label = nodes[longer], data[offsets[longer] + depth]
            new = np.ones(len(longer), np.bool_)
            new[1:] = (parent[1:] != parent[:-1]) | (label[1:] != label[:-1])
            nodes[longer] = count + np.cumsum(new) - 1
            count += int(new.sum())
            parents.append(parent[new])
            labels.append(label[new])
        self._labels = np.concatenate(labels).astype(np.intp)
        self._parents = np.concatenate(parents)
        self._levels = np.cumsum([0, *map(len, parents)])  # where each depth begins
        self._children = np.bincount(self._parents[1:], minlength=count)
        self._first = 1 + np.cumsum(self._children) - self._children
        self._nodes = np.full(len(self.texts), count, np.intp)  # one more than there are: spells nothing
        self._nodes[[token for _, token in spelled]] = nodes

    def walk(self, table: NDArray[np.int32], state: int) -> NDArray[np.int32]:
        """The state behind every token, from `state` of an automaton; 0 where it refuses the token.

        Cost: a few numpy operations per byte of the longest accepted token, over the nodes that are reached.
        """
        flat, reached = table.ravel(), np.zeros(len(self._labels) + 1, np.int32)
        reached[0] = state
        nodes: NDArray[np.intp] = np.zeros(1, np.intp)
        for start, end in pairwise(self._levels[1:]):
            # Taking a whole level is quicker than picking most of it.
            new = self._below(nodes) if 4 * len(nodes) < end - start else np.arange(start, end)
            new_states = flat.take((reached.take(self._parents[new]).astype(np.intp) << 8) + self._labels[new])
            reached[new] = new_states
            nodes = new[new_states != 0]
            if not len(nodes):
                break
        return reached[self._nodes]

    def _below(self, nodes: NDArray[np.intp]) -> NDArray[np.intp]:
        """The children of some nodes."""
        counts = self._children[nodes]
        skipped = np.cumsum(counts) - counts
        below: NDArray[np.intp] = np.repeat(self._first[nodes] - skipped, counts) + np.arange(int(counts.sum()))
        return below


_models: dict[Hashable, Vocabulary] = {}


def keep(store: dict[Hashable, T], key: Hashable, make: Callable[[], T], most: int) -> T:
    """What `store` has under `key`, made where it has nothing; the oldest entries go first."""
    if key not in store:
        while len(store) >= most:
            store.pop(next(iter(store)))
        store[key] = make()
    return store[key]
