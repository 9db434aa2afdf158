"""Pipelines through transformers' own `generate`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    EosTokenCriteria,
    LogitsProcessor,
    MaxLengthCriteria,
    MaxTimeCriteria,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteriaList,
    StopStringCriteria,
)

import tokenscale as ts
from tests.models.tiny import tiny

PROMPTS = [[5, 6, 7, 8, 9], [12, 13], [20, 21, 22]]


def padded() -> dict[str, torch.Tensor]:
    longest = max(map(len, PROMPTS))
    ids = [[0] * (longest - len(p)) + p for p in PROMPTS]
    mask = [[0] * (longest - len(p)) + [1] * len(p) for p in PROMPTS]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


@pytest.mark.parametrize(
    "extra", [{}, {"no_repeat_ngram_size": 1}, {"min_new_tokens": 6}, {"eos_token_id": [3, 40]}], ids=str
)
def test_greedy_equals_generate(extra: dict[str, Any]) -> None:
    model = tiny("olmoe")
    options = {"max_new_tokens": 10, "do_sample": False, **extra}
    expected = model.generate(**padded(), **options)
    ours = model.generate(**padded(), **options, custom_generate=ts.custom_generate(ts.Pipeline(ts.Greedy())))
    assert ours.tolist() == expected.tolist()


@pytest.mark.parametrize(
    "criteria",
    [
        [MaxLengthCriteria(9)],
        [MaxLengthCriteria(12), MaxLengthCriteria(8)],
        [EosTokenCriteria([3, 40]), EosTokenCriteria(list(range(50, 80)))],
    ],
    ids=["length", "two lengths", "ends"],
)
def test_criteria_objects_end_texts_as_in_generate(criteria: list[Any]) -> None:
    model, options = tiny("olmoe"), {"max_new_tokens": 10, "do_sample": False}
    method = ts.custom_generate(ts.Pipeline(ts.Greedy()))
    plain = model.generate(**padded(), **options)
    options["stopping_criteria"] = StoppingCriteriaList(criteria)
    expected = model.generate(**padded(), **options)
    assert model.generate(**padded(), **options, custom_generate=method).tolist() == expected.tolist()
    assert expected.tolist() != plain.tolist()


QUESTIONS = [
    "Q: Tom has 17 apples and buys 5 more. How many apples does Tom have?\nA:",
    "Q: Ann has 3 pens. How many pens does Ann have?\nA:",
]


@pytest.mark.parametrize("bound", [True, False])
def test_stop_strings_end_texts_as_in_generate(bound: bool) -> None:
    """Bound, or in a criterion of the caller's; `generate` can make none of its own for a callable."""
    lm, stops = ts.load("demo"), ["are", "1"]
    inputs = lm.tokenizer(QUESTIONS, return_tensors="pt", padding=True, padding_side="left")
    inputs |= {"max_new_tokens": 12, "do_sample": False}
    plain = lm.model.generate(**inputs)
    expected = lm.model.generate(**inputs, stop_strings=stops, tokenizer=lm.tokenizer)
    method = ts.custom_generate(
        ts.Pipeline(ts.Greedy()), tokenizer=lm.tokenizer, stop_strings=stops if bound else stops[:1]
    )
    criteria = [] if bound else [StopStringCriteria(lm.tokenizer, stops[1:])]
    ours = lm.model.generate(**inputs, stopping_criteria=StoppingCriteriaList(criteria), custom_generate=method)
    assert ours.tolist() == expected.tolist() != plain.tolist()
    with pytest.raises(ValueError, match="could not locate a tokenizer"):
        lm.model.generate(**inputs, stop_strings=stops, tokenizer=lm.tokenizer, custom_generate=method)


def test_a_length_that_leaves_nothing_to_generate() -> None:
    method = ts.custom_generate(ts.Pipeline(ts.Greedy()))
    with pytest.raises(ts.ArgumentError, match=r"prompt has 5 tokens, and max_length=5 leaves none"):
        tiny("olmoe").generate(
            **padded(), max_new_tokens=4, custom_generate=method, stopping_criteria=[MaxLengthCriteria(5)]
        )


class Never(EosTokenCriteria):
    """A criterion of a class that says nothing of what it does."""

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.zeros(len(input_ids), dtype=torch.bool)


@torch.no_grad()
def test_a_repetition_penalty_acts_on_log_probabilities() -> None:
    """As in transformers' beam search; its greedy search penalises raw logits, which no mean of rows has."""
    model = tiny("olmoe")
    method = ts.custom_generate(ts.Pipeline(ts.Greedy()))
    ours = model.generate(**padded(), max_new_tokens=8, repetition_penalty=1.3, custom_generate=method)
    penalty = RepetitionPenaltyLogitsProcessor(1.3)
    for prompt, row in zip(PROMPTS, ours.tolist(), strict=True):
        ids = torch.tensor([prompt])
        for _ in range(8):
            scores = penalty(ids, model(ids).logits[:, -1].log_softmax(-1))
            ids = torch.cat([ids, scores.argmax(-1, keepdim=True)], dim=-1)
        assert row[-8:] == ids[0, -8:].tolist()


def test_roe_and_repeats() -> None:
    model = tiny("olmoe")
    method = ts.custom_generate(ts.Pipeline(ts.RoE(n=3, tau=0.5), ts.Sample(temperature=1.0)), seed=5)
    ids = torch.tensor([PROMPTS[0]])
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 8, "custom_generate": method}
    out = model.generate(ids, num_return_sequences=3, do_sample=True, **options)
    assert out.shape[0] == 3
    assert len({tuple(row) for row in out.tolist()}) > 1  # repeats draw anew
    again = model.generate(ids, num_return_sequences=3, do_sample=True, **options)
    assert again.tolist() == out.tolist()
    assert model.generate(ids, return_dict_in_generate=True, **options).sequences.tolist() == out[:1].tolist()


class Count(LogitsProcessor):
    """Counts its calls and bans everything but one token."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        allowed = torch.full_like(scores, float("-inf"))
        allowed[:, 17] = scores[:, 17]
        return allowed


def test_processors_run_once_a_token_on_the_aggregate() -> None:
    model, count = tiny("olmoe"), Count()
    ids = torch.tensor([PROMPTS[0]])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=4,
        logits_processor=[count],
        custom_generate=ts.custom_generate(ts.Pipeline(ts.RoE(n=5, tau=0.5))),
    )
    assert out[0, 5:].tolist() == [17] * 4
    assert count.calls == 4


class Streamer:
    def __init__(self) -> None:
        self.put_: list[list[int]] = []
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        self.put_.append(value.flatten().tolist())

    def end(self) -> None:
        self.ended = True


def test_a_streamer_hears_prompt_and_tokens() -> None:
    model, streamer = tiny("olmoe"), Streamer()
    ids = torch.tensor([PROMPTS[0]])
    method = ts.custom_generate(ts.Pipeline(ts.Greedy()), streamer=streamer)
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, custom_generate=method)
    assert streamer.put_ == [PROMPTS[0], *([t] for t in out[0, 5:].tolist())]
    assert streamer.ended


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ({}, {"stopping_criteria": StoppingCriteriaList([MaxTimeCriteria(5.0)])}, "stopping criteria MaxTimeCriteria"),
        ({}, {"max_time": 5.0}, r"(?s)stopping criteria MaxTimeCriteria.*fix: use max_new_tokens, .* stop_strings="),
        ({}, {"stopping_criteria": StoppingCriteriaList([Never(3)])}, "stopping criteria Never"),
        ({"streamer": Streamer()}, {}, "a streamer takes one prompt, and 3 were given"),
        ({}, {"num_beams": 3}, "num_beams=3: how tokens are chosen is the pipeline's alone"),
        ({}, {"output_scores": True, "return_dict_in_generate": True}, "sequences alone, not what output_scores asks"),
        ({}, {"prefix_allowed_tokens_fn": lambda row, ids: [20 + row]}, "tells 3 prompts apart by their row"),
    ],
)
def test_what_cannot_be_done_is_refused(method: dict[str, Any], options: dict[str, Any], message: str) -> None:
    model = tiny("olmoe")
    custom = ts.custom_generate(ts.Pipeline(ts.Greedy()), **method)
    with pytest.raises(ts.CapabilityError, match=message):
        model.generate(**padded(), max_new_tokens=4, custom_generate=custom, **options)


@pytest.mark.parametrize(
    ("method", "reader"),
    [
        (lambda: ts.custom_generate(ts.Pipeline(ts.SelfConsistency(k=3))), r"SelfConsistency\(k=3\)"),
        (lambda: ts.custom_generate(ts.Pipeline(ts.Greedy()), stop_strings=["w4"]), "the stop string 'w4'"),
    ],
)
def test_a_tokenizer_is_asked_for_by_name(method: Any, reader: str) -> None:
    message = rf"{reader} reads text, .*\n  fix: write custom_generate\(pipe, tokenizer=tokenizer\)$"
    with pytest.raises(ts.CapabilityError, match=message):
        tiny("olmoe").generate(**padded(), max_new_tokens=4, custom_generate=method())


@pytest.mark.parametrize(
    ("pipe", "options", "message"),
    [
        ("RoE(n=4)", {}, r"takes a pipeline, got 'RoE\(n=4\)'\n.*custom_generate\(ts.Pipeline.parse\('RoE\(n=4\)'\)\)"),
        (ts.RoE(n=2), {}, r"takes a pipeline, got RoE\(n=2, (?s:.*)\n.*custom_generate\(ts.Pipeline\(RoE\(n=2, "),
        (None, {}, r"takes a pipeline, got None\n.*custom_generate\(ts.Pipeline\("),
        (ts.Pipeline(ts.Greedy()), {"seed": -1}, r"custom_generate\(seed=-1\): seed must be at least 0"),
        (ts.Pipeline(ts.Greedy()), {"batch_size": 0}, "batch_size must be at least 1"),
        (ts.Pipeline(ts.Greedy()), {"max_batch_tokens": "all"}, 'max_batch_tokens must be an integer or "auto"'),
        (ts.Pipeline(ts.Greedy()), {"stop_strings": "x"}, r"custom_generate\(stop_strings='x'\): .* a list of strings"),
    ],
)
def test_wrong_arguments_are_refused_when_it_is_made(pipe: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ts.ArgumentError, match=message):
        ts.custom_generate(pipe, **options)
