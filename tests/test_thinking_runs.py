"""Thinking in runs: kept apart from the answer, billed, never read by the extractor; options of chat templates."""

from __future__ import annotations

from typing import Any

import pytest

import tokenscale as ts
from tests.core.test_record import token
from tests.models.test_load import tokenizer
from tests.models.tiny import tiny
from tokenscale.core.errors import ArgumentError, PromptError
from tokenscale.core.noise import Stream
from tokenscale.core.prompt import Prompt
from tokenscale.core.record import Record
from tokenscale.core.streaming import TextStream
from tokenscale.models.hf import wrap
from tokenscale.models.toy import ToyModel

TAGS = (("<think>", "</think>"),)
WORDS = ("<think>", "</think>", "7", "9", "Q:", "\n")  # ids 1 to 6
END = 0


def thinker() -> ToyModel:
    lm = ToyModel(WORDS, spelling="", sharpness=0.5)
    lm.think_tags = TAGS
    return lm


def finished(ids: list[int], prompt: tuple[int, ...] = (5,), stops: tuple[str, ...] = (), prefix: int = 0) -> Any:
    lm = thinker()
    record = Record(prompt, Stream((0,)), 100, stops, prefix=prefix, tokens=[token(i) for i in ids])
    return record.finish(lm, record.ending(lm) or "length")


def test_thoughts_are_kept_apart() -> None:
    found = finished([1, 4, 2, 3, END])
    assert (found.thinking, found.text, found.finish_reason) == ("9", "7", "eos")
    assert found.token_ids == (1, 4, 2, 3, END)


def test_a_prompt_may_end_inside_thoughts() -> None:
    found = finished([4, 2, 3, END], prompt=(5, 1))
    assert (found.thinking, found.text) == ("9", "7")
    found = finished([4, 4], prompt=(5, 1))
    assert (found.thinking, found.text) == ("99", "")


def test_stop_strings_end_either_part() -> None:
    found = finished([1, 4, 2, 3, 6, 5], stops=("\nQ:",))
    assert (found.thinking, found.text, found.finish_reason) == ("9", "7", "stop_string")
    found = finished([1, 4, 6, 5], stops=("\nQ:",))
    assert (found.thinking, found.text, found.finish_reason) == ("9", "", "stop_string")


def test_a_continued_text_keeps_its_thoughts() -> None:
    found = finished([2, 3, END], prompt=(5, 1, 4), prefix=2)
    assert (found.thinking, found.text) == ("9", "7")
    assert found.token_ids == (2, 3, END)


def test_the_extractor_never_reads_thoughts() -> None:
    """Wherever the model writes numbers, only those outside think tags can be answers; all tokens are billed."""
    lm = thinker()
    results = ts.Pipeline.parse("Sample(temperature=1.0) | SelfConsistency(k=40)").run(lm, ["Q:"], max_new_tokens=12)
    leaves = results[0].candidates
    assert sum(bool(c.thinking) for c in leaves) > 5
    for leaf in leaves:
        assert leaf.answer is None or leaf.answer in leaf.text
        assert leaf.cost.new_tokens == len(leaf.token_ids)
        assert "think" not in leaf.text


def test_a_stream_shows_no_thoughts() -> None:
    lm = thinker()
    stream, shown = TextStream(lm, ("Q:",), (5, 1)), []
    for ident in (4, 4, 2, 3, 6, 3):
        stream.add(ident)
        shown.append(stream.piece())
    assert shown == ["", "", "", "7", "\n", "7"]
    pipe = ts.Pipeline.parse("Sample(temperature=1.0)")
    whole = 0
    for seed in range(100):
        *pieces, result = pipe.stream(lm, "Q:<think>", seed=seed, max_new_tokens=12)
        if result.candidates[0].token_ids.count(2) < 2:  # the end of thoughts that were not begun takes text back
            assert "".join(piece.text for piece in pieces) == result.text
            whole += bool(result.text)
    assert whole > 3


def with_special_tags() -> Any:
    """A tokenizer whose think tags are special tokens, as many models have them."""
    tok = tokenizer(bos_token="<end>")
    tok.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    tok.chat_template = "{{ messages[0]['content'] }}{% if enable_thinking is not false %} <think>{% endif %}"
    return tok


def test_tags_that_are_special_tokens_are_found_and_left_out() -> None:
    tok = with_special_tags()
    lm = wrap(tiny("olmoe"), tok)
    assert lm.think_tags == TAGS
    start, end = tok.convert_tokens_to_ids(["<think>", "</think>"])
    prompt = lm.encode(Prompt.of([{"role": "user", "content": "w1"}]))
    assert prompt[-1] == start
    thinking, text = lm.read(prompt, [4, end, 5, tok.bos_token_id])
    assert (thinking.strip(), text.strip()) == ("w2", "w3")
    assert lm.read(lm.encode(Prompt(text="w1")), [4, 5]) == ("", lm.decode([4, 5]))


def test_options_of_the_chat_template() -> None:
    lm = wrap(tiny("olmoe"), with_special_tags())
    chat = [{"role": "user", "content": "w1"}]
    quiet = Prompt.of(chat).with_template_options({"enable_thinking": False})
    assert lm.encode(quiet) == lm.encode(Prompt.of(chat))[:-1]
    pipe = ts.Pipeline(ts.Greedy())
    [result] = pipe.run(lm, [chat], max_new_tokens=2, chat_template_kwargs={"enable_thinking": False})
    assert result == pipe.run(lm, [quiet], max_new_tokens=2)[0]
    with pytest.raises(PromptError, match="reads no enable_thinkng"):
        pipe.run(lm, [chat], chat_template_kwargs={"enable_thinkng": False})
    with pytest.raises(PromptError, match="the prompt is no chat"):
        pipe.run(lm, ["w1"], chat_template_kwargs={"enable_thinking": False})
    with pytest.raises(PromptError, match=r"the option 'tools' of the chat template is \[1\]"):
        pipe.run(lm, [chat], chat_template_kwargs={"tools": [1]})


def test_tags_by_name_and_what_are_no_tags() -> None:
    model, tok = tiny("olmoe"), tokenizer()
    assert wrap(model, tok).think_tags == ()
    assert wrap(model, tok, think_tags=[("w1", "w2")]).think_tags == (("w1", "w2"),)
    for wrong in (["<think>"], [("a",)], [("a", "")], "ab"):
        with pytest.raises(ArgumentError, match="think_tags are pairs of texts"):
            wrap(model, tok, think_tags=wrong)  # type: ignore[arg-type]


def test_a_first_token_is_never_doubled() -> None:
    """A text that a template made begins with the token that the tokenizer puts first by itself."""
    from tokenizers.processors import TemplateProcessing

    tok = tokenizer(bos_token="<end>")
    begin = tok.bos_token_id
    tok.backend_tokenizer.post_processor = TemplateProcessing(single="<end> $A", special_tokens=[("<end>", begin)])
    lm = wrap(tiny("olmoe"), tok)
    assert lm.encode(Prompt(text="w1")) == (begin, 3)
    assert lm.encode(Prompt(text="<end>w1")) == (begin, 3)
