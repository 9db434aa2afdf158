"""Batched greedy decoding and sampling with plain transformers and torch, independent of the library.

A prompt is prefilled once and its cache repeated for its copies; finished rows leave the batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.cache_utils import Cache, DynamicLayer

LONGEST_ANSWER = 300  # tokens; the longest solution of the held-out problems has 277
ROOM = 64  # positions that a cache grows by
CROWDED = 0.8  # finished rows are dropped when fewer than this share of the batch goes on


@dataclass(frozen=True)
class Sample:
    """A continuation and its total log-probability before temperature, the end token included."""

    text: str
    log_prob: float


class RoomyLayer(DynamicLayer):
    """A cache layer with room to grow; transformers' own copies all it holds at every step."""

    rooms: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Appends the states; returns views of all that is held."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        past = self.get_seq_length()
        total = past + key_states.shape[-2]
        if self.rooms is None or total > self.rooms[0].shape[-2]:
            self.rooms = (self.grown(self.keys, key_states, total), self.grown(self.values, value_states, total))
        for room, new in zip(self.rooms, (key_states, value_states), strict=True):
            room[..., past:total, :] = new
        self.keys, self.values = (room[..., :total, :] for room in self.rooms)
        return self.keys, self.values

    def grown(self, held: Tensor, new: Tensor, total: int) -> Tensor:
        """A larger buffer that begins with what is held."""
        room = new.new_empty(*new.shape[:-2], total + ROOM, new.shape[-1])
        if held.numel():
            room[..., : held.shape[-2], :] = held
        return room

    def batch_repeat_interleave(self, repeats: int) -> None:
        """See Cache."""
        super().batch_repeat_interleave(repeats)
        self.rooms = None

    def batch_select_indices(self, indices: Tensor) -> None:
        """See Cache."""
        super().batch_select_indices(indices)
        self.rooms = None


class Rows:
    """The rows of one batch that are still decoded, and what all rows have said so far."""

    def __init__(self, model: PreTrainedModel, inputs: dict[str, Tensor], copies: int, end: int):
        self.model, self.end = model, end
        self.cache = Cache(layer_class_to_replicate=RoomyLayer)
        self.mask = inputs["attention_mask"]
        positions = (self.mask.cumsum(-1) - 1).clamp(min=0)
        self.logits = self.forward(inputs["input_ids"], positions).repeat_interleave(copies, 0)
        self.cache.batch_repeat_interleave(copies)
        self.mask = self.mask.repeat_interleave(copies, 0)
        self.positions = positions[:, -1:].repeat_interleave(copies, 0)
        self.rows = torch.arange(len(self.mask))
        self.going = torch.ones(len(self.mask), dtype=torch.bool)
        self.tokens = torch.full((len(self.mask), LONGEST_ANSWER), end)
        self.log_probs = torch.zeros(len(self.mask), dtype=torch.float64)

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Logits ``[rows, vocabulary]`` of the last position."""
        outputs = self.model(
            input_ids=tokens,
            attention_mask=self.mask,
            position_ids=positions,
            cache=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return outputs.logits[:, -1].float()

    def advance(self, step: int, temperature: float, generator: torch.Generator) -> bool:
        """Chooses and records one token a row, then feeds it; False when every row has ended."""
        if temperature:
            chosen = torch.multinomial((self.logits / temperature).softmax(-1), 1, generator=generator)
        else:
            chosen = self.logits.argmax(-1, keepdim=True)
        gained = self.logits.log_softmax(-1).gather(-1, chosen)[:, 0]
        self.tokens[self.rows[self.going], step] = chosen[self.going, 0]
        self.log_probs[self.rows[self.going]] += gained[self.going].double()
        self.going &= chosen[:, 0] != self.end
        if not self.going.any():
            return False
        if self.going.float().mean() < CROWDED:
            chosen = self.leave(chosen)
        self.mask = torch.cat((self.mask, self.mask.new_ones(len(self.mask), 1)), -1)
        self.positions = self.positions + 1
        self.logits = self.forward(chosen, self.positions)
        return True

    def leave(self, chosen: Tensor) -> Tensor:
        """Drops finished rows; the chosen tokens of the others."""
        kept = self.going.nonzero()[:, 0]
        self.cache.batch_select_indices(kept)
        self.mask, self.positions, self.rows = self.mask[kept], self.positions[kept], self.rows[kept]
        self.going = self.going[kept]
        return chosen[kept]

    def ended_tokens(self) -> list[list[int]]:
        """The tokens of every row before its end token."""
        rows = self.tokens.tolist()
        return [row[: row.index(self.end)] if self.end in row else row for row in rows]


@torch.no_grad()
def continuations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: list[str],
    copies: int = 1,
    temperature: float = 0.0,
    seed: int = 0,
    rows: int = 256,
) -> list[list[Sample]]:
    """``copies`` continuations of each prompt, in the prompts' order; greedy at temperature 0.

    The draws depend on ``seed`` and on ``rows``, the size of a batch: a repeat must use the same.
    """
    generator = torch.Generator().manual_seed(seed)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    results: list[list[Sample]] = [[] for _ in prompts]
    size = max(1, rows // copies)
    for start in range(0, len(order), size):
        places = order[start : start + size]
        inputs = tokenizer([prompts[i] for i in places], padding=True, return_tensors="pt")
        batch = Rows(model, inputs, copies, tokenizer.eos_token_id)
        for step in range(LONGEST_ANSWER):
            if not batch.advance(step, temperature, generator):
                break
        texts = tokenizer.batch_decode(batch.ended_tokens(), skip_special_tokens=True)
        samples = [Sample(*pair) for pair in zip(texts, batch.log_probs.tolist(), strict=True)]
        for i, place in enumerate(places):
            results[place] = samples[i * copies : (i + 1) * copies]
    return results
