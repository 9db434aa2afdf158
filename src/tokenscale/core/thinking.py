"""Thinking apart from the answer: a text cut at a model's think tags, and the tags that a tokenizer uses.

Pure functions over text. The text must still have its special tokens, for many tags are special tokens;
what they leave in either part is dropped afterwards.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain

Tags = tuple[str, str]


@dataclass(frozen=True)
class _Known:
    """Tags that some models use, and what shows that a model is one of them.

    `in_template`: any of these in the chat template shows it, the tags themselves where nothing is
    named. `tokens`: all of these in the vocabulary show it; tags that are plain words show nothing.
    """

    tags: tuple[Tags, ...]
    in_template: tuple[str, ...] = ()
    tokens: tuple[str, ...] | None = None

    def shows(self, template: str, vocabulary: Container[str]) -> bool:
        marks = self.in_template or self.tags[0]
        tokens = self.tags[0] if self.tokens is None else self.tokens
        return any(mark in template for mark in marks) or (bool(tokens) and all(t in vocabulary for t in tokens))


def _named(name: str) -> _Known:
    return _Known(((f"<{name}>", f"</{name}>"),))


_FINAL = "<|end|><|start|>assistant<|channel|>final<|message|>"
_FINAL_JSON = "<|end|><|start|>assistant<|channel|>final <|constrain|>json<|message|>"
_RESPONSE = "<|close|>think<|sep|><|open|>response<|sep|>"
# Read in the templates of the models that are named, and in the parsers of vLLM and llama.cpp.
KNOWN = (
    _named("think"),  # DeepSeek-R1, Qwen3, GLM-4.5, MiniMax-M2, Phi-4-reasoning, Nemotron, Kimi-K2-Thinking
    _named("thinking"),  # fine-tunes
    _named("thought"),  # EXAONE Deep
    _named("reasoning"),  # fine-tunes
    _named("seed:think"),  # Seed-OSS
    _named("mm:think"),  # MiniMax-M3
    _named("think:opensource"),  # Hunyuan 3
    _named("longcat_think"),
    _named("ifm|think"),  # K2 Horizon, by its effort
    _named("ifm|think_fast"),
    _named("ifm|think_faster"),
    _Known((("[THINK]", "[/THINK]"),)),  # Magistral
    _Known((("\u25c1think\u25b7", "\u25c1/think\u25b7"),)),  # Kimi-VL
    _Known((("<|START_THINKING|>", "<|END_THINKING|>"),)),  # Command A, Command R7B
    _Known((("<|inner_prefix|>", "<|inner_suffix|>"),)),  # Apertus
    _Known((("<|begin_of_thought|>", "<|end_of_thought|>"),)),  # OpenThinker
    _Known((("<|think:start|>", "<|think:end|>"),)),  # Solar Open 2
    _Known(
        (("<|think|>", "<|end|><|begin|>assistant<|content|>"),),  # Solar Open; Gemma 4 has the first for another end
        in_template=("<|begin|>assistant<|think|>",),
        tokens=("<|think|>", "<|begin|>", "<|content|>"),
    ),
    _Known((("<|channel>thought", "<channel|>"),), tokens=("<|channel>", "<channel|>")),  # Gemma 4
    _Known(  # gpt-oss: several messages of thoughts, then the one that is the answer
        (
            ("<|channel|>analysis<|message|>", _FINAL),
            ("<|channel|>commentary<|message|>", _FINAL),
            ("<|channel|>analysis<|message|>", _FINAL_JSON),
            # An answer without thoughts: only its header is taken away.
            ("<|channel|>final", "<|message|>"),
        ),
        in_template=("<|channel|>analysis", "<|channel|>final"),
        tokens=("<|channel|>", "<|message|>", "<|start|>"),
    ),
    _Known(  # Kimi K3: what stands behind the response is kept from the answer as well
        (("<|open|>think<|sep|>", _RESPONSE), ("<|close|>response<|sep|>", _RESPONSE)),
        in_template=("open_tag('think'", "<|open|>think<|sep|>"),
        tokens=("<|open|>", "<|close|>", "<|sep|>"),
    ),
    _Known((("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),), tokens=()),  # Apriel
    _Known((("Here is my thought process:", "Here is my response:"),), tokens=()),  # Granite 3.2
)


def tags_of(chat_template: str | None, vocabulary: Container[str]) -> tuple[Tags, ...]:
    """The think tags of a model, as (open, close) pairs in the order of KNOWN; () where none is known.

    A pair counts where either tag stands in the chat template (DeepSeek's has only the closing one),
    or where both are tokens of the vocabulary. `vocabulary` answers `token in vocabulary`, as the
    dict of `tokenizer.get_vocab()` does. Tags that nothing shows can be named by hand instead.
    """
    found = (known.tags for known in KNOWN if known.shows(chat_template or "", vocabulary))
    return tuple(pair for tags in found for pair in tags)


def ends_open(prompt: str, tags: Sequence[Tags]) -> bool:
    """Whether a prompt ends with an open tag, so that what follows it begins inside (`opened` of `split`)."""
    return prompt.rstrip().endswith(tuple(start for start, _ in tags))


def split(text: str, tags: Sequence[Tags], opened: bool = False) -> tuple[str, str]:
    """(thinking, answer_text): what stands inside think tags, and the rest.

    - A close tag ends what the last open tag without a close has begun: pairs may nest and repeat.
    - A close tag without an open one ends thoughts that began before the text: all before it is thinking.
    - An open tag that has no close of its own thinks up to the next close tag (a model that names
      the tag in its thoughts, or says it twice); where none follows, to the end of the text.
    - `opened`: the prompt ended inside an open tag, so a text without any close tag is all thinking.

    Pairs that share a tag are one family, whose tags stand for one another. Thoughts lose their tags
    and the white space around them, and stand a blank line apart; the answer loses the white space
    before it. A text without tags is returned as it is. Cost: one pass over the text.
    """
    inside = _merged(_spans(text, tags, opened))
    if not inside:
        return "", text
    outside = zip([0, *(end for _, end in inside)], [*(start for start, _ in inside), len(text)], strict=True)
    thoughts = [_without_tags(text[start:end], tags) for start, end in inside]
    answer = "".join(text[start:end] for start, end in outside)
    return "\n\n".join(filter(None, thoughts)), answer.lstrip()


@dataclass
class _Open:
    """An open tag without its own close so far; `reaches` is the end of the first close tag behind it."""

    start: int
    reaches: int | None = None


def _spans(text: str, tags: Sequence[Tags], opened: bool) -> Iterator[tuple[int, int]]:
    """Spans of thinking, tags included, in no order and overlapping."""
    opens, family = {start for start, _ in tags}, _families(tags)
    unclosed: dict[int, list[_Open]] = {name: [] for name in family.values()}
    first_close = None
    for match in _pattern(tags).finditer(text) if tags else ():
        stack = unclosed[family[match[0]]]
        if match[0] in opens:
            stack.append(_Open(match.start()))
            continue
        first_close = first_close or match.end()
        yield (stack.pop().start if stack else 0), match.end()
        _reach(stack, match.end())
    for tag in chain.from_iterable(unclosed.values()):
        yield tag.start, tag.reaches or len(text)
    if opened:
        yield 0, first_close or len(text)


def _reach(stack: Sequence[_Open], place: int) -> None:
    """Notes a close tag at the open tags that had none behind them: the upper ones of the stack."""
    for tag in reversed(stack):
        if tag.reaches is not None:
            return
        tag.reaches = place


def _families(tags: Sequence[Tags]) -> dict[str, int]:
    """A number for each tag, the same for tags that pairs connect."""
    family: dict[str, int] = {}
    for number, pair in enumerate(tags):
        joined = {family[tag] for tag in pair if tag in family}
        family = {tag: number if old in joined else old for tag, old in family.items()}
        family |= dict.fromkeys(pair, number)
    return family


def _merged(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The union of spans, as spans in order that do not overlap."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start < merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged


def _without_tags(text: str, tags: Sequence[Tags]) -> str:
    return _pattern(tags).sub("", text).strip()


@cache
def _compiled(tags: tuple[str, ...]) -> re.Pattern[str]:
    # Of two tags that begin alike the longer one stands there.
    return re.compile("|".join(re.escape(tag) for tag in sorted(tags, key=len, reverse=True)))


def _pattern(tags: Sequence[Tags]) -> re.Pattern[str]:
    return _compiled(tuple(sorted({tag for pair in tags for tag in pair})))
