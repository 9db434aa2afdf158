"""Thinking apart from the answer: against texts built from known parts, and the tags of real chat templates."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenscale.core.thinking import ends_open, split, tags_of

THINK = (("<think>", "</think>"),)
BOTH = (*THINK, ("[THINK]", "[/THINK]"))
HARMONY = tags_of("<|start|>assistant<|channel|>analysis<|message|>", {})
KIMI_K3 = tags_of("{{- open_tag('think' if thinking else 'response') -}}", {})

CASES = [
    # text, tags, opened, thinking, answer
    ("42", THINK, False, "", "42"),
    (" 42\n", THINK, False, "", " 42\n"),
    ("", THINK, False, "", ""),
    ("<think>\nhm\n</think>\n\n42", THINK, False, "hm", "42"),
    ("<think></think>42", THINK, False, "", "42"),
    ("a <think>b</think> c", THINK, False, "b", "a  c"),
    ("<think>a</think>1<think>b</think>2", THINK, False, "a\n\nb", "12"),
    ("<think>a<think>b</think>c</think>d", THINK, False, "abc", "d"),
    ("<think>a<think>b</think>c<think>d</think>e</think>f", THINK, False, "abcde", "f"),
    # never closed: all of it is thinking
    ("<think>7 is wrong", THINK, False, "7 is wrong", ""),
    ("1 <think>a</think> 2 <think>b", THINK, False, "a\n\nb", "1  2 "),
    ("<think>a<think>b", THINK, False, "ab", ""),
    # the prompt had opened it
    ("hm</think>42", THINK, True, "hm", "42"),
    ("hm", THINK, True, "hm", ""),
    ("", THINK, True, "", ""),
    ("a<think>b</think>c</think>d", THINK, True, "abc", "d"),
    ("<think>\nhm</think>42", THINK, True, "hm", "42"),
    ("hm</think>42<think>more", THINK, True, "hm\n\nmore", "42"),
    # it had, and nobody said so
    ("hm</think>42", THINK, False, "hm", "42"),
    # a tag that is only named in the thoughts
    ("<think>I write <think> first</think>42", THINK, False, "I write  first", "42"),
    ("<think>a <think>b</think>1<think>c</think>2", THINK, False, "a b\n\nc", "12"),
    # several kinds of tags
    ("<think>a</think>[THINK]b[/THINK]1", BOTH, False, "a\n\nb", "1"),
    ("<think>a[/THINK]b</think>1", BOTH, False, "ab", "1"),
    ("[THINK]a<think>b[/THINK]c</think>1", BOTH, False, "abc", "1"),
    ("hm[/THINK]1", BOTH, True, "hm", "1"),
    ("<t2>a</t2>b", (("<t", "t>"), ("<t2>", "</t2>")), False, "a", "b"),
    # no tags are known
    ("<think>a</think>1", (), False, "", "<think>a</think>1"),
    ("a", (), True, "a", ""),
    # gpt-oss
    (
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>42",
        HARMONY,
        False,
        "hm",
        "42",
    ),
    (
        "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>analysis<|message|>b"
        "<|end|><|start|>assistant<|channel|>final<|message|>42",
        HARMONY,
        False,
        "a<|end|><|start|>assistantb",
        "42",
    ),
    (
        "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final <|constrain|>json<|message|>{}",
        HARMONY,
        False,
        "a",
        "{}",
    ),
    ("<|channel|>final<|message|>42", HARMONY, False, "", "42"),
    ("<|channel|>analysis<|message|>7", HARMONY, False, "7", ""),
    # Kimi K3
    (
        "hm<|close|>think<|sep|><|open|>response<|sep|>42<|close|>response<|sep|>",
        KIMI_K3,
        True,
        "hm",
        "42",
    ),
    ("<|channel>thought\nhm<channel|>42", tags_of("<|channel>thought", {}), False, "hm", "42"),
    ("a\n[BEGIN FINAL RESPONSE]\n42", tags_of("[BEGIN FINAL RESPONSE]", {}), True, "a", "42"),
]


@pytest.mark.parametrize(("text", "tags", "opened", "thinking", "answer"), CASES)
def test_a_text_is_cut_at_its_tags(
    text: str, tags: tuple[tuple[str, str], ...], opened: bool, thinking: str, answer: str
) -> None:
    assert split(text, tags, opened) == (thinking, answer)


words = st.text("ab1 ", min_size=1, max_size=3).map(str.strip).filter(bool)
thoughts = st.recursive(
    words,
    lambda inner: st.lists(inner.map(lambda t: f"<think>{t}</think>") | words, min_size=1, max_size=3).map("".join),
    max_leaves=6,
)


@given(st.lists(st.tuples(words, thoughts), max_size=4), words, st.none() | words)
def test_no_thought_reaches_the_answer(parts: list[tuple[str, str]], end: str, cut: str | None) -> None:
    """The answer of a text that is built of answers and (nested) thoughts is its answers."""
    text = "".join(f"{said}<think>{thought}</think>" for said, thought in parts) + end
    thinking, answer = split(text + (f"<think>{cut}" if cut else ""), THINK)
    assert answer == "".join(said for said, _ in parts) + end
    plain = [thought.replace("<think>", "").replace("</think>", "") for _, thought in parts]
    assert thinking == "\n\n".join([*plain, *([cut] if cut else [])])


@given(thoughts, words)
def test_a_prompt_that_opened_the_thoughts_changes_nothing_else(thought: str, answer: str) -> None:
    assert split(f"{thought}</think>{answer}", THINK, True) == split(f"<think>{thought}</think>{answer}", THINK)


def letters(text: str) -> list[str]:
    return sorted(text.replace(" ", "").replace("\n", ""))


@given(st.lists(st.sampled_from(["<think>", "</think>", "[THINK]", "[/THINK]", "a", "1", " "])), st.booleans())
def test_nothing_is_lost_but_the_tags(pieces: list[str], opened: bool) -> None:
    text = "".join(pieces)
    thinking, answer = split(text, BOTH, opened)
    assert letters(thinking + answer) == letters("".join(p for p in pieces if len(p) == 1))
    assert not (opened and answer) or "</think>" in text or "[/THINK]" in text


@pytest.mark.parametrize("piece", ["<think>", "</think>", "<think></think>", "<think><think></think>", "<thin", "a"])
def test_long_texts_take_no_quadratic_time(piece: str) -> None:
    started = time.process_time()
    split(piece * (100_000 // len(piece)), THINK)
    assert time.process_time() - started < 0.5


TEMPLATES = [
    # model, a line of its chat template, tags
    ("Qwen3", "{%- set content = content.split('</think>')[-1].lstrip('\\n') %}", THINK),
    ("DeepSeek-R1", "{% if '</think>' in content %}{{'<|Assistant|><think>\\n'}}", THINK),
    ("fine-tune", "Answer within <thinking> tags.", (("<thinking>", "</thinking>"),)),
    ("EXAONE Deep", "{{- '[|assistant|]<thought>\\n' }}", (("<thought>", "</thought>"),)),
    ("fine-tune", "<reasoning>\n...\n</reasoning>", (("<reasoning>", "</reasoning>"),)),
    ("Magistral", "{{- '[THINK]' + block['thinking'] + '[/THINK]' }}", (("[THINK]", "[/THINK]"),)),
    ("Seed-OSS", "{%- set think_begin_token = '<seed:think>' -%}", (("<seed:think>", "</seed:think>"),)),
    ("MiniMax-M3", "{{- '<mm:think>' }}", (("<mm:think>", "</mm:think>"),)),
    ("Hunyuan 3", "{{ '</think:opensource>' }}", (("<think:opensource>", "</think:opensource>"),)),
    ("LongCat", "{{ '<longcat_think>\\n' }}", (("<longcat_think>", "</longcat_think>"),)),
    ("K2 Horizon", "{{ '<ifm|think_fast>\\n' }}", (("<ifm|think_fast>", "</ifm|think_fast>"),)),
    ("Kimi-VL", "{{ '◁think▷' }}", (("◁think▷", "◁/think▷"),)),
    ("Command A", "{{ '<|START_THINKING|>' }}", (("<|START_THINKING|>", "<|END_THINKING|>"),)),
    ("Apertus", "{%- set inner_token = '<|inner_prefix|>' -%}", (("<|inner_prefix|>", "<|inner_suffix|>"),)),
    (
        "OpenThinker",
        "<|begin_of_thought|> {thought} <|end_of_thought|>",
        (("<|begin_of_thought|>", "<|end_of_thought|>"),),
    ),
    ("Solar Open 2", "{{ '<|think:start|>' }}", (("<|think:start|>", "<|think:end|>"),)),
    (
        "Solar Open",
        "{{- '<|begin|>assistant<|think|><|end|>' }}",
        (("<|think|>", "<|end|><|begin|>assistant<|content|>"),),
    ),
    ("Gemma 4", "{{- '<|think|>' -}}{{- '<|channel>thought\\n<channel|>' -}}", (("<|channel>thought", "<channel|>"),)),
    ("gpt-oss", "{{- '<|start|>assistant<|channel|>analysis<|message|>' }}", HARMONY),
    ("Kimi K3", "{{- open_tag('think') -}}", KIMI_K3),
    ("Apriel", "'Here are my reasoning steps:\\n'", (("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),)),
    (
        "Granite 3.2",
        "Write your thoughts after 'Here is my thought process:' and then",
        (("Here is my thought process:", "Here is my response:"),),
    ),
    ("Llama 3", "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}", ()),
    ("two kinds", "<think> or <thinking>", (*THINK, ("<thinking>", "</thinking>"))),
]


@pytest.mark.parametrize(("template", "tags"), [row[1:] for row in TEMPLATES], ids=[row[0] for row in TEMPLATES])
def test_the_tags_of_real_chat_templates(template: str, tags: tuple[tuple[str, str], ...]) -> None:
    assert tags_of(template, {}) == tags


VOCABULARIES = [
    ({"<think>", "</think>", "a"}, THINK),
    ({"<think>"}, ()),
    ({"<|channel|>", "<|message|>", "<|start|>", "<|end|>"}, HARMONY),
    ({"<|channel>", "<channel|>", "<|think|>"}, (("<|channel>thought", "<channel|>"),)),
    ({"<|open|>", "<|close|>", "<|sep|>"}, KIMI_K3),
    (set(), ()),
]


@pytest.mark.parametrize(("vocabulary", "tags"), VOCABULARIES)
def test_the_tags_of_a_vocabulary(vocabulary: set[str], tags: tuple[tuple[str, str], ...]) -> None:
    assert tags_of(None, vocabulary) == tags


@pytest.mark.parametrize(
    ("prompt", "opens"),
    [
        ("<|im_start|>assistant\n<think>\n", True),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
        ("<think>\nhm", False),
        ("Write <think> first.", False),
        ("", False),
    ],
)
def test_what_a_prompt_leaves_open(prompt: str, opens: bool) -> None:
    assert ends_open(prompt, THINK) is opens
    assert ends_open(prompt, ()) is False
