"""Prompts, asks, candidates and results."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from tokenscale.core.cost import Cost
from tokenscale.core.data import Ask, Candidate, Result, RoutingStats, Trace
from tokenscale.core.errors import ArgumentError, PromptError
from tokenscale.core.noise import Stream
from tokenscale.core.prompt import Prompt

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]


def candidate(text: str = "x", **changes: object) -> Candidate:
    base = Candidate(text, (5, 6), (-0.25, -0.5), "eos", Stream((0, "p")))
    return replace(base, **changes)  # type: ignore[arg-type]


def test_a_prompt_is_made_of_text_or_messages() -> None:
    assert Prompt.of("Hi") == Prompt(text="Hi")
    assert Prompt.of(CHAT).chat() == CHAT
    made = Prompt(token_ids=(1, 2))
    assert Prompt.of(made) is made
    assert made.chat() == []


@pytest.mark.parametrize(
    "wrong",
    [None, 3, [], ["Hi"], [*CHAT, "Hi"], b"Hi", [{"role": "user"}], [{"content": "Hi"}], [{**CHAT[1], "role": 3}]],
)
def test_other_prompts_are_refused(wrong: object) -> None:
    with pytest.raises(PromptError, match="a prompt is a string or a list of chat messages"):
        Prompt.of(wrong)  # type: ignore[arg-type]


def test_a_prompt_has_exactly_one_form() -> None:
    with pytest.raises(PromptError, match="exactly one of text, messages and token_ids, got 2"):
        Prompt(text="Hi", token_ids=(1,))
    with pytest.raises(PromptError, match="got 0"):
        Prompt()


@pytest.mark.parametrize("ids", [[1, 2], (1, -1), ("a",), (0.5,), 7])
def test_token_ids_are_a_tuple_of_whole_numbers(ids: object) -> None:
    with pytest.raises(PromptError, match="token_ids must be a tuple of whole numbers from 0, got") as refused:
        Prompt(token_ids=ids)  # type: ignore[arg-type]
    assert "tuple(ids)" in refused.value.hint


@pytest.mark.parametrize(
    "messages", [(), "Hi", [{"role": "user", "content": "Hi"}], ((("content", "Hi"),),), ("Hi",), ((1, 2),), 5]
)
def test_messages_are_frozen_messages(messages: object) -> None:
    with pytest.raises(PromptError, match="messages must be a tuple of messages") as refused:
        Prompt(messages=messages)  # type: ignore[arg-type]
    assert "Prompt.of([" in refused.value.hint


def test_text_is_text() -> None:
    with pytest.raises(PromptError, match="the suffix of a prompt must be a string, got 3"):
        Prompt(token_ids=(1,), suffix=3)  # type: ignore[arg-type]
    with pytest.raises(PromptError, match="must be a string, got 3"):
        Prompt(text=3)  # type: ignore[arg-type]
    half = b"caf\xe9".decode(errors="surrogateescape")
    for wrong in (half, [*CHAT, {"role": "user", "content": half}]):
        with pytest.raises(PromptError, match=r"holds '\\udce9', which is half a character\n.*UTF-8"):
            Prompt.of(wrong)  # type: ignore[arg-type]
    assert Prompt.of("café \U0001f600").text == "café \U0001f600"


def test_text_goes_behind_and_before_a_prompt() -> None:
    assert Prompt(text="a").append("b").prepend("c") == Prompt(text="cab")
    chat = Prompt.of(CHAT).append("!").prepend("> ")
    assert chat.chat() == [CHAT[0], {"role": "user", "content": "> Hi!"}]
    ids = Prompt(token_ids=(1,), key="k").append("a").append("b")
    assert ids == Prompt(token_ids=(1,), suffix="ab", key="k")
    with pytest.raises(PromptError, match="text cannot be put before a prompt given as token ids"):
        ids.prepend("a")


def test_copies_of_an_ask_draw_from_child_streams() -> None:
    ask = Ask(Prompt(text="a"), Stream((0,)), 5, k=2, prefix_ids=(3,), stop_strings=("b",))
    assert ask.copies() == [replace(ask, k=1, stream=Stream((0, j))) for j in range(2)]
    assert replace(ask, first=1).copies() == replace(ask, k=3).copies()[1:]


@pytest.mark.parametrize("changes", [{"k": 0}, {"max_new_tokens": 0}])
def test_an_ask_for_nothing_is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ArgumentError, match="must be at least 1"):
        replace(Ask(Prompt(text="a"), Stream((0,)), 5), **changes)


@pytest.mark.parametrize("wrong", ["\n", ("\n", "")])
def test_stop_strings_are_a_tuple_of_texts(wrong: object) -> None:
    with pytest.raises(ArgumentError, match="stop strings are a tuple of texts that are not empty"):
        Ask(Prompt(text="a"), Stream((0,)), 5, stop_strings=wrong)  # type: ignore[arg-type]


def test_routing_stats_add_up() -> None:
    total = RoutingStats(10, 2, 12, 4, 3, 1) + RoutingStats(10, 3, 8, 4, 5, 2)
    assert total == RoutingStats(20, 5, 20, 8, 8, 3)
    assert (total.changed_share, total.mean_distinct_experts) == (0.25, 2.5)
    assert RoutingStats().changed_share == 0.0
    assert math.isnan(RoutingStats().mean_distinct_experts)


def test_leaves_are_the_sampled_candidates_of_nested_choices() -> None:
    a, b, c = candidate("a"), candidate("b"), candidate("c")
    inner = replace(a, members=(a, b))
    assert replace(inner, members=(inner, c)).leaves() == [a, b, c]
    assert a.leaves() == [a]
    assert a.log_prob == -0.75


def test_a_result_becomes_plain_json() -> None:
    trace = Trace((1.0, 0.5), (0.0, 0.1), (2, 2), (float("nan"), 3.0))
    members = (candidate("a", near_ties=1), candidate("b", near_ties=2, trace=trace))
    winner = replace(members[0], answer="1", members=members, votes=(("1", 2.0), (None, 1.0)))
    result = Result(Prompt(text="q"), "a", "1", members, winner, Cost(flops=3.0), 7, RoutingStats(), ("note",))
    row = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert row["votes"] == [["1", 2.0], [None, 1.0]]
    assert (row["near_ties"], row["cost"]["flops"], row["seed"], row["notes"]) == (3, 3.0, 7, ["note"])
    nothing = {"choices": 0, "changed_share": 0.0, "mean_distinct_experts": None, "checked": 0, "differed": 0}
    assert row["routing"] == nothing
    assert row["candidates"][1]["trace"]["distinct_experts"] == [None, 3.0]
    assert "trace" not in row["candidates"][0]
    assert row["candidates"][0]["log_prob"] == -0.75
