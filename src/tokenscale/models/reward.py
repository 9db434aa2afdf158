"""Reward models of transformers: sequence classifiers that score an answer, or every step of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from tokenscale.core.cost import Cached, Lane, Prefill, Usage
from tokenscale.core.errors import ModelError, PromptError
from tokenscale.core.prompt import Prompt
from tokenscale.core.reward import Graded, RewardModel
from tokenscale.core.shape import ModelShape
from tokenscale.core.step import no_experts, pack_experts
from tokenscale.models.checkpoint import read_checkpoint
from tokenscale.models.fingerprint import fingerprint
from tokenscale.models.graded_text import Encoded, encode_graded
from tokenscale.models.parallel import sharded
from tokenscale.models.routers import find_routers
from tokenscale.models.shape import model_shape
from tokenscale.models.source import REWARD_MODELS, loadable
from tokenscale.models.stored import runs_on
from tokenscale.models.supported import cache_form, context_length

FORWARD_TOKENS = 8192  # tokens, padding included, of one forward
ALIKE = 0.02  # relative: hidden states of one prefix in half precision differ by less, others by far more


def load_reward(
    path: str | Path,
    *,
    label: int | None = None,
    revision: str | None = None,
    dtype: torch.dtype | str | None = None,
    device_map: Any = None,
    attn_implementation: str | None = None,
    quantization_config: Any = None,
    **from_pretrained: Any,
) -> HFRewardModel:
    """A sequence classifier and its tokenizer, from "demo-verifier", a folder or a hub id (safetensors only).

    `label` says which of several labels means a good answer. Other keywords are those of transformers'
    `from_pretrained`. Only a hub id reaches the network. Raises ModelError for what cannot be loaded, and for
    a checkpoint without a classifier's weights.
    """
    given = {"revision": revision, "dtype": dtype, "device_map": device_map, "attn_implementation": attn_implementation}
    given |= {"quantization_config": quantization_config, **from_pretrained}
    read = partial(AutoModelForSequenceClassification.from_pretrained, use_safetensors=True, output_loading_info=True)
    (model, info), tokenizer = read_checkpoint(path, read, given, REWARD_MODELS)
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"{str(path)!r} is no reward model: it has no weights for {', '.join(missing[:3])}",
            f"{loadable(REWARD_MODELS)}, of a sequence classifier",
        )
    return HFRewardModel(model, tokenizer, str(path), label)


class HFRewardModel(RewardModel):
    """A transformers sequence classifier. `model` is the transformers object itself.

    The score of a text is its only label's output, or with several labels the log-odds of `label`: its output
    less the log of the sum of the others' exponentials. So its sigmoid is the label's probability.

    In a causal model (`causal`) one forward gives the scores of all steps, each at the token that holds the
    step's last character. In any other one, each beginning of the answer is a text and a forward of its own.
    Raises ModelError for a model in training mode, with experts, or with several labels and none named.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str, label: int | None = None) -> None:
        if model.training:
            raise ModelError(f"{type(model).__name__} is in training mode, so dropout is on", "call model.eval() first")
        if sharded(model):
            message = f"{name} is sharded over ranks, and a reward model runs in one process"
            raise ModelError(message, "leave distributed_config out: every rank then scores with a model of its own")
        if find_routers(model):
            message = f"{name} has experts, whose cost as a reward model is not known here"
            raise ModelError(message, "use a dense reward model")
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.label = _label(model, label, name)
        self.causal = _is_causal(model)
        self.context_length = context_length(model.config)
        self.shape = _forward_shape(model, self.causal)
        self.fingerprint = fingerprint(model, tokenizer)

    @torch.no_grad()
    def grade(self, texts: Sequence[tuple[Prompt, tuple[str, ...]]]) -> list[Graded]:
        encoded = [self._encode(prompt, steps) for prompt, steps in texts]
        distinct = list(dict.fromkeys(part for parts in encoded for part in parts))
        found = {
            text: scores for some in _batches(distinct) for text, scores in zip(some, self._run(some), strict=True)
        }
        return [
            Graded(tuple(score for part in parts for score in found[part]), Usage(tuple(map(self._lane, parts))))
            for parts in encoded
        ]

    def _encode(self, prompt: Prompt, steps: tuple[str, ...]) -> list[Encoded]:
        """The texts whose forwards give the scores of all steps. Raises PromptError for one that is too long."""
        beginnings = [steps] if self.causal or not steps else [("".join(steps[: i + 1]),) for i in range(len(steps))]
        encoded = [encode_graded(self.tokenizer, prompt, some, self.name) for some in beginnings]
        longest = max(len(text.ids) for text in encoded)
        if longest > self.context_length:
            raise PromptError(
                f"a prompt with its answer has {longest} tokens, and {self.name} takes {self.context_length}",
                "shorten the prompt or max_new_tokens, or use a reward model with a longer context",
            )
        return encoded

    def _run(self, texts: Sequence[Encoded]) -> list[list[float]]:
        """The scores of texts in one forward; padding is on the right."""
        length, device = max(len(text.ids) for text in texts), runs_on(self.model)
        pad = self.model.config.get_text_config().pad_token_id or 0
        ids = torch.tensor([[*text.ids, *[pad] * (length - len(text.ids))] for text in texts], device=device)
        mask = torch.tensor([[1] * len(t.ids) + [0] * (length - len(t.ids)) for t in texts], device=device)
        if not self.causal:
            outputs = self.model(input_ids=ids, attention_mask=mask).logits
            return [[score] for score in self._score(outputs).tolist()]
        hidden = self.model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        ends = [hidden[row, list(text.ends)] for row, text in enumerate(texts)]
        scores = iter(self._score(self.model.score(torch.cat(ends))).tolist())
        return [[next(scores) for _ in text.ends] for text in texts]

    def _score(self, outputs: Float[Tensor, "texts labels"]) -> Float[Tensor, " texts"]:
        outputs = outputs.double()
        if outputs.shape[-1] == 1:
            return outputs[:, 0]
        others = [i for i in range(outputs.shape[-1]) if i != self.label]
        return outputs[:, self.label] - outputs[:, others].logsumexp(-1)

    def _lane(self, text: Encoded) -> Lane:
        """A forward of all tokens, which makes no new one: all but the last are prefilled, then one row is run.

        `source` says that it shares no cache with other texts that begin alike.
        """
        nothing = pack_experts(no_experts(1, self.shape))
        cached = Cached(self.fingerprint, self.shape, text.ids, Prefill(nothing[0], 0), source="a forward of its own")
        return Lane(cached, rows=(1,), heads=(len(set(text.ends)),), runs=(0,), experts=nothing, beams=(0,))


def _label(model: Any, label: int | None, name: str) -> int:
    """The label whose output is the score."""
    known = model.num_labels
    if label is None and known == 1:
        return 0
    names = ", ".join(f"{i} ({text})" for i, text in sorted(model.config.id2label.items()))
    if label is None:
        message = f"{name} has {known} labels: {names}"
        raise ModelError(message, "say which means a good answer: load_reward(path, label=...)")
    if not 0 <= label < known:
        raise ModelError(f"{name} has no label {label}; it has {names}", f"give a label from 0 to {known - 1}")
    return label


@torch.no_grad()
def _is_causal(model: Any) -> bool:
    """Whether the score at a token is that of the text up to it: told from a trial on two tokens and a third.

    Encoders, and classifiers whose head is more than one matrix `score` on every position, are not.
    """
    if not isinstance(getattr(model, "score", None), nn.Linear) or model.base_model is model:
        return False
    ids = torch.tensor([[5, 6, 7]], device=runs_on(model))
    states = [model.base_model(input_ids=ids[:, :length], use_cache=False).last_hidden_state for length in (2, 3)]
    short, long = (state[:, :2].float() for state in states)
    return bool((short - long).norm() <= ALIKE * short.norm())


def _forward_shape(model: Any, causal: bool) -> ModelShape:
    """The size of a forward that reads every weight once and no stored keys.

    The bill takes a forward as a prefill of all tokens but one, and a step. All weights are read by the
    step, which texts that are graded together share, and its keys are those that the forward has just made.
    Without a causal mask T tokens see T keys each: twice those under the mask, 1 + 2 + ... + T, less T.
    """
    shape = model_shape(model, [], cache_form(model.config, type(model)).windows)
    shape = replace(shape, dense_bytes=0.0, head_bytes=shape.dense_bytes + shape.head_bytes, kv_bytes=0.0)
    if causal:
        return shape
    per_key = sum(flops for flops, _ in shape.attention)
    twice = tuple((2 * flops, window) for flops, window in shape.attention)
    return replace(shape, attention=twice, dense_flops=shape.dense_flops - per_key)


def _batches(texts: Sequence[Encoded]) -> Iterator[list[Encoded]]:
    """Texts of similar length, of at most FORWARD_TOKENS with their padding (or one text)."""
    batch: list[Encoded] = []
    for text in sorted(texts, key=lambda text: len(text.ids)):
        if batch and len(text.ids) * (len(batch) + 1) > FORWARD_TOKENS:
            yield batch
            batch = []
        batch.append(text)
    if batch:
        yield batch


@cache
def opened(reference: str) -> RewardModel:
    """The reward model of a reference, loaded once in a process."""
    return load_reward(reference)
