"""The routers' rules again, in numpy float64, written from the models' papers and sources: what the tests compare with.

An `Oracle` has the router logits R of some tokens and says what they rank, whom they choose and with what weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.float64]
Marks = NDArray[np.bool_]


def softmax(x: Array) -> Array:
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def root_softplus(x: Array) -> Array:
    return np.sqrt(np.log1p(np.exp(x)))


def same(x: Array) -> Array:
    return x


@dataclass(frozen=True)
class Rule:
    """score(R) + bias is ranked, within the best groups; weights are made of score(R) or, `late`, of R's chosen.

    `groups`: (number, how many count, how a group is judged, what excluded experts rank as).
    """

    score: Callable[[Array], Array]
    bias: str = ""
    groups: tuple[str, float] | None = None  # judged by its two best or its best; what excluded experts rank as
    late: Callable[[Array], Array] | None = None
    renormalise: bool = False
    scale: str = ""


SIGMOID = Rule(sigmoid, "e_score_correction_bias", renormalise=True, scale="routed_scaling_factor")
GROUPED = Rule(sigmoid, "e_score_correction_bias", ("two", -np.inf), renormalise=True, scale="routed_scaling_factor")
LATE = Rule(same, late=softmax)
NORMED = Rule(softmax, renormalise=True)

RULES: dict[str, Rule] = {
    "afmoe": Rule(sigmoid, "expert_bias", renormalise=True, scale="route_scale"),
    "aria_text": LATE,
    "axk1": GROUPED,
    "axk2": Rule(sigmoid, "e_score_correction_bias", ("two", 0.0), renormalise=True, scale="routed_scaling_factor"),
    "bailing_hybrid": GROUPED,
    "beam": Rule(sigmoid, "e_score_correction_bias", ("two", -np.inf), renormalise=True),
    "cohere2_moe": LATE,
    "dbrx": NORMED,
    "deepseek_v2": Rule(softmax, "", ("one", 0.0), scale="routed_scaling_factor"),
    "deepseek_v3": GROUPED,
    "deepseek_v32": GROUPED,
    "deepseek_v4": Rule(root_softplus, "e_score_correction_bias", renormalise=True, scale="routed_scaling_factor"),
    "doge": LATE,
    "dots1": Rule(sigmoid, "e_score_correction_bias", ("two", -np.inf), scale="routed_scaling_factor"),
    "dots3_note_text": GROUPED,
    "ernie4_5_moe": Rule(softmax, "moe_statics.e_score_correction_bias", renormalise=True),
    "exaone_moe": GROUPED,
    "flex_olmo": Rule(softmax),
    "flint": Rule(sigmoid, renormalise=True),
    "gemma4": NORMED,
    "gemma4_text": NORMED,
    "glm4_moe": GROUPED,
    "glm4_moe_lite": GROUPED,
    "glm_moe_dsa": GROUPED,
    "gpt_oss": LATE,
    "granitemoe": LATE,
    "granitemoe_swa": LATE,
    "granitemoehybrid": LATE,
    "granitemoeshared": LATE,
    "hunyuan_v1_moe": NORMED,
    "hy_v3": Rule(sigmoid, "e_score_correction_bias", renormalise=True, scale="router_scaling_factor"),
    "hy_v4": GROUPED,
    "inkling2_loop_text": SIGMOID,
    "inkling2_text": SIGMOID,
    "jamba": Rule(softmax),
    "jetmoe": LATE,
    "kimi_linear": GROUPED,
    "kolibri1": Rule(same, "e_score_correction_bias", late=sigmoid),
    "laguna": Rule(sigmoid, "e_score_correction_bias", renormalise=True),
    "lara_mini": NORMED,
    "lfm2_moe": Rule(sigmoid, "expert_bias", renormalise=True, scale="routed_scaling_factor"),
    "llama4_text": Rule(same, late=sigmoid),
    "longcat_flash": Rule(softmax, "e_score_correction_bias", scale="routed_scaling_factor"),
    "mellum": NORMED,
    "mimo_v2_flash": GROUPED,
    "minimax": NORMED,
    "minimax_m2": Rule(sigmoid, "e_score_correction_bias", renormalise=True),
    "minimax_m3_vl_text": Rule(sigmoid, "e_score_correction_bias", renormalise=True),
    "mistral4": Rule(softmax, "", ("two", 0.0), renormalise=True, scale="routed_scaling_factor"),
    "mixtral": NORMED,
    "nemotron_h": GROUPED,
    "olmoe": Rule(softmax),
    "qwen2_moe": Rule(softmax),
    "qwen3_5_moe_text": NORMED,
    "qwen3_moe": Rule(softmax),
    "qwen3_next": NORMED,
    "qwen4_exp_text": NORMED,
    "sarvam_mla": GROUPED,
    "sarvam_moe": GROUPED,
    "solar_open": GROUPED,
    "zaya": Rule(softmax, "balancing_biases"),
}
"""Of all architectures but phimoe and inkling_text, whose rules are no such formula."""


@dataclass(frozen=True)
class Oracle:
    """One architecture's router: its rule, with the numbers of one layer."""

    name: str
    top_k: int
    bias: Array | float
    groups: tuple[int, int]
    scale: Array | float
    jitter: float = 0.0

    @classmethod
    def of(cls, name: str, config: Any, module: Any, parent: Any, top_k: int) -> Oracle:
        """Reads biases and scales off a layer's modules and the configuration."""
        rule = RULES.get(name)
        bias_name = "e_score_correction_bias" if name == "inkling_text" else rule.bias if rule else ""
        scale = getattr(config, rule.scale) if rule and rule.scale else 1.0
        if name.startswith("gemma4"):
            scale = numbers(module.per_expert_scale)
        if name == "inkling_text":
            scale = config.route_scale * float(module.global_scale.detach())
        number = getattr(config, "n_group", None) or getattr(config, "num_expert_group", None) or 1
        groups = (number, getattr(config, "topk_group", None) or 1)
        bias = _attribute(bias_name, module, parent) if bias_name else 0.0
        return cls(name, top_k, bias, groups, scale, getattr(config, "router_jitter_noise", 0.0))

    def ranked(self, logits: Array) -> Array:
        """What the router ranks. [tokens, experts]"""
        if self.name == "phimoe":
            return logits
        if self.name == "inkling_text":
            return sigmoid(logits) + self.bias
        rule = RULES[self.name]
        scores = rule.score(logits) + self.bias
        return scores if rule.groups is None else self._grouped(scores, *rule.groups)

    def order(self, logits: Array) -> list[list[int]]:
        """Experts from the best to the worst; those that groups exclude by what they would have been."""
        rule = RULES.get(self.name)
        ranked = self.ranked(logits)
        alone = rule.score(logits) + self.bias if rule else ranked
        return np.lexsort((-alone, -ranked), axis=-1).tolist()

    def _grouped(self, scores: Array, judged: str, excluded: float) -> Array:
        number, count = self.groups
        grouped = np.sort(scores.reshape(len(scores), number, -1), axis=-1)[..., ::-1]
        value = grouped[..., : 2 if judged == "two" else 1].sum(-1)
        best = np.argsort(-value, axis=-1)[:, :count]
        allowed = np.zeros((len(scores), number), np.bool_)
        np.put_along_axis(allowed, best, True, axis=-1)
        return np.where(np.repeat(allowed, scores.shape[-1] // number, axis=-1), scores, excluded)

    def gates(self, logits: Array, chosen: list[list[int]], shared: Array | None = None) -> Array:
        """Dense gate weights [tokens, experts]; zero for experts that were not chosen."""
        dense = np.zeros_like(logits)
        for token, experts in enumerate(chosen):
            dense[token, experts] = self._weights(logits[token], experts, None if shared is None else shared[token])
        return dense * self.scale

    def _weights(self, logits: Array, experts: list[int], shared: Array | None) -> Array:
        if self.name == "phimoe":
            return _sparse_mixer(logits, experts, self.jitter)
        if self.name == "inkling_text":
            assert shared is not None
            powers = sigmoid(np.concatenate([logits[experts], shared]))
            return (powers / powers.sum())[: len(experts)]
        rule = RULES[self.name]
        weights = rule.score(logits)[experts] if rule.late is None else rule.late(logits[experts])
        return weights / weights.sum() if rule.renormalise else weights


def _sparse_mixer(logits: Array, experts: list[int], jitter: float) -> Array:
    """For each expert in turn: its share among the logits that are not below it by more than 2 * jitter of it."""
    left, weights = logits.copy(), []
    for expert in experts:
        threshold = left[expert]
        factor = np.maximum(np.abs(logits), threshold)
        kept = np.where((threshold - logits) / factor > 2 * jitter, -np.inf, left)
        weights.append(softmax(kept)[expert])
        left[expert] = -np.inf
    return np.array(weights)


def _attribute(path: str, *owners: Any) -> Array:
    for owner in owners:
        value = owner
        for part in path.split("."):
            value = getattr(value, part, None)
        if value is not None:
            return numbers(value).reshape(-1)
    raise AssertionError(path)


def numbers(value: torch.Tensor) -> Array:
    return value.detach().double().numpy()
