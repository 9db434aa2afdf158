"""Beam search against transformers' `generate(num_beams=...)`: sequences, scores, early ends, left-padded batches."""

from __future__ import annotations

import itertools
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import tokenscale as ts
from tests.models.tiny import tiny
from tests.models.zoo import tiny_model

Found = list[tuple[tuple[int, ...], float]]
"""One prompt's finished texts, best first: token ids, and the score that ranked them."""

PROMPTS = [(5, 6, 7, 8), (20, 30, 40, 50, 60, 70, 80), (11,)]
ENDS = [1, 7, 12, 33, 50]
PAD = 0
NEW_TOKENS = 8

WIDTHS = (1, 2, 4, 8)
PENALTIES = (0.0, 1.0, -0.5, 2.0)
EARLY: tuple[Any, ...] = (False, True, "never")
Setting = tuple[int, float, Any]
GRID: list[Setting] = list(itertools.product(WIDTHS, PENALTIES, EARLY))
# Every width with every early_stopping, every penalty with most of both.
FEW: list[Setting] = [(w, PENALTIES[(i + j) % 4], e) for i, w in enumerate(WIDTHS) for j, e in enumerate(EARLY)]
FORMS = {"olmoe": "shared", "qwen3-moe": "shared", "llama": "shared", "qwen3_next": "expanded"}


@cache
def model(name: str) -> Any:
    """A random model with five end tokens, whose logits are spread half as wide again as the others'."""
    made = tiny(name) if name != "qwen3_next" else tiny_model(name)
    made.generation_config.eos_token_id, made.generation_config.pad_token_id = ENDS, PAD
    made.generation_config.suppress_tokens = [PAD]
    with torch.no_grad():
        made.get_output_embeddings().weight[ENDS] *= 1.5
    return made


@torch.no_grad()
def generated(made: Any, prompts: list[tuple[int, ...]], setting: Setting, new: int, **options: Any) -> list[Found]:
    """What transformers finds for a left-padded batch, `width` texts a prompt."""
    width, penalty, early = setting
    longest, ends = max(map(len, prompts)), made.generation_config.eos_token_id
    ends = [ends] if isinstance(ends, int) else ends
    out = made.generate(
        torch.tensor([[PAD] * (longest - len(p)) + list(p) for p in prompts]),
        attention_mask=torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts]),
        **{"num_beams": width, "num_return_sequences": width, "do_sample": False, "max_new_tokens": new},
        **({"length_penalty": penalty, "early_stopping": early} if width > 1 else {}),
        **{"return_dict_in_generate": True, "output_scores": True, "output_logits": True, **options},
    )
    rows = out.sequences[:, longest:].tolist()
    if width > 1:  # behind a text stands an end token, whatever ended it
        texts = [tuple(row[: int(n)]) for row, n in zip(rows, (out.beam_indices >= 0).sum(-1), strict=True)]
    else:
        texts = [_until_end(row, ends) for row in rows]
    scores = out.sequences_scores.tolist() if width > 1 else _greedy_scores(out.logits, texts, penalty)
    pairs = list(zip(texts, scores, strict=True))
    return [pairs[i : i + width] for i in range(0, len(pairs), width)]


def _until_end(row: list[int], ends: list[int]) -> tuple[int, ...]:
    return tuple(row[: next((place + 1 for place, token in enumerate(row) if token in ends), len(row))])


def _greedy_scores(steps: Any, texts: list[tuple[int, ...]], penalty: float) -> list[float]:
    """`generate` scores no greedy text; by hand, from its logits."""
    logs = [step.log_softmax(-1) for step in steps]
    totals = [sum(float(logs[t][row, token]) for t, token in enumerate(ids)) for row, ids in enumerate(texts)]
    return [total / len(ids) ** penalty for total, ids in zip(totals, texts, strict=True)]


def searched(lm: Any, prompts: list[tuple[int, ...]], setting: Setting, new: int, **options: Any) -> list[Found]:
    """What our search finds for the same prompts, which need no padding."""
    width, penalty, early = setting
    pipe = ts.Pipeline(ts.BeamSearch(width, penalty, num_return=width, early_stopping=early))
    results = pipe.run(lm, [ts.Prompt(token_ids=ids) for ids in prompts], max_new_tokens=new, **options)
    return [[(c.token_ids, c.score) for c in result.candidates] for result in results]  # type: ignore[misc]


def check_equal(ours: list[Found], theirs: list[Found]) -> None:
    for own, other in zip(ours, theirs, strict=True):
        assert [ids for ids, _ in own] == [ids for ids, _ in other]
        assert [score for _, score in own] == pytest.approx([score for _, score in other], abs=1e-4)


@pytest.mark.parametrize("name", FORMS)
def test_searches_equal_transformers(name: str) -> None:
    made = model(name)
    lm = ts.wrap(made)
    assert lm.cache_form == FORMS[name]
    for setting in FEW if name == "olmoe" else FEW[4::3]:
        check_equal(searched(lm, PROMPTS, setting, NEW_TOKENS), generated(made, PROMPTS, setting, NEW_TOKENS))


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
def test_all_settings_equal_transformers(name: str) -> None:
    """The comparison has teeth: many searches end early, and ending at once finds other texts."""
    made = model(name)
    lm = ts.wrap(made)
    found: dict[Setting, list[Found]] = {}
    for setting in GRID:
        found[setting] = searched(lm, PROMPTS, setting, NEW_TOKENS)
        check_equal(found[setting], generated(made, PROMPTS, setting, NEW_TOKENS))
    searches = [texts for (width, *_), prompts in found.items() if width > 1 for texts in prompts]
    early = sum(all(len(ids) < NEW_TOKENS for ids, _ in texts) for texts in searches)
    assert len(searches) / 10 < early < len(searches)
    for other in (False, "never"):
        assert any(found[w, p, True] != found[w, p, other] for w in WIDTHS for p in PENALTIES)


def test_the_three_ways_to_end_differ() -> None:
    lm = ts.wrap(model("llama"))
    found = {early: searched(lm, PROMPTS, (4, 1.0, early), NEW_TOKENS) for early in EARLY}
    assert found[True] != found[False] != found["never"] != found[True]
    ended = {early: sum(all(len(ids) < NEW_TOKENS for ids, _ in texts) for texts in found[early]) for early in EARLY}
    assert ended == {True: 2, False: 2, "never": 0}


def test_one_beam_is_greedy_decoding() -> None:
    lm = ts.wrap(model("olmoe"))
    prompts = [ts.Prompt(token_ids=ids) for ids in PROMPTS]
    greedy = ts.Pipeline(ts.Greedy()).run(lm, prompts, max_new_tokens=NEW_TOKENS)
    beam = ts.Pipeline(ts.BeamSearch(1)).run(lm, prompts, max_new_tokens=NEW_TOKENS)
    for one, other in zip(greedy, beam, strict=True):
        assert one.winner.token_ids == other.winner.token_ids
        assert other.winner.score == pytest.approx(one.winner.log_prob / len(one.winner.token_ids))
        assert (one.cost, one.near_ties) == (other.cost, other.near_ties)


@pytest.mark.parametrize(
    ("setting", "stops"),
    [((4, 1.0, False), ["."]), ((4, 0.0, "never"), ["1", "2 "]), ((2, 2.0, True), ["##"])],
)
def test_stop_strings_end_beams_as_in_transformers(setting: Setting, stops: list[str]) -> None:
    lm = demo()
    file = Path(ts.__file__).parent / "experiments/data/arithmetic/validation.jsonl"
    asked = [json.loads(line)["question"] for line in file.read_text().splitlines()[:3]]
    prompts = [lm.encode(ts.Prompt(text=f"Q: {question}\nA:")) for question in asked]
    theirs = generated(lm.model, prompts, setting, 16, stop_strings=stops, tokenizer=lm.tokenizer)
    ours = searched(lm, prompts, setting, 16, stop_strings=stops)
    check_equal(ours, theirs)
    spoken = [lm.tokenizer.decode(ids) for texts in ours for ids, _ in texts]
    assert any(stop in text for text in spoken for stop in stops)


@cache
def demo() -> Any:
    return ts.load("demo")
