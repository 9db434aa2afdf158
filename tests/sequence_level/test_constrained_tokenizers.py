"""What tokens spell, for every kind of tokenizer, and walks through vocabularies against byte by byte."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.sequence_level.constraining import Speller, tokens, walk
from tokenscale.models.toy import ToyModel
from tokenscale.sequence_level.constrained import Constrained
from tokenscale.sequence_level.guides_automaton import compile_regex
from tokenscale.sequence_level.guides_tokens import drops_first_space, token_texts
from tokenscale.sequence_level.guides_vocabulary import Vocabulary


def fast(backend: Tokenizer) -> Any:
    backend.add_special_tokens(["<s>", "</s>", "<pad>"])
    backend.add_tokens([AddedToken("<call>", special=False), AddedToken("  \n", special=False)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def byte_level() -> Any:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, "Ġa", "Ġb", "ab", "Ã©", "æĹ", "æĹ¥", "åº", "ĊĠ"]
    backend = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return fast(backend)


def sentencepiece(strip: int = 1) -> Any:
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁a", "▁b", "ab", "a", "b", "é", "▁", "▁▁", "日"]
    backend = Tokenizer(
        models.BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    )
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", strip, 0)]
    backend.decoder = decoders.Sequence(parts)
    backend.add_special_tokens(["<unk>"])
    return fast(backend)


def metaspace() -> Any:
    pieces = ["▁a", "▁b", "ab", "a", "b", "é", "▁", "日本"]
    backend = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces]))
    backend.decoder = decoders.Metaspace()
    return fast(backend)


def word_level() -> Any:
    backend = Tokenizer(models.WordPiece({p: i for i, p in enumerate(["a", "b", "##a", "##b", "é", "[UNK]"])}))
    backend.decoder = decoders.WordPiece(cleanup=False)
    return fast(backend)


TOKENIZERS = {
    "byte level": byte_level,
    "sentencepiece": sentencepiece,
    "sentencepiece without strip": lambda: sentencepiece(0),
    "metaspace": metaspace,
    "word pieces": word_level,
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_texts_of_tokens_are_what_they_decode_to(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    end = tokenizer.eos_token_id
    lm: Any = Speller(tokenizer, [end], size=len(tokenizer) + 5)
    texts = token_texts(lm)
    assert len(texts) == len(tokenizer) + 5
    assert texts[-5:] == [None] * 5
    for word in ("<s>", "</s>", "<pad>"):
        assert texts[tokenizer.convert_tokens_to_ids(word)] is None
    anchor = tokenizer.convert_tokens_to_ids("a")
    for token, text in enumerate(texts[:-5]):
        shown = lm.decode([anchor, token]).removeprefix("a")
        if text is None:
            assert token in tokenizer.all_special_ids or shown in ("", "\ufffd")
        else:
            assert text.decode(errors="replace") == shown or "\ufffd" in shown
    assert drops_first_space(lm, texts) == (name in ("sentencepiece", "metaspace", "word pieces"))


def test_bytes_that_are_no_text_of_their_own_spell_characters() -> None:
    for make in (byte_level, sentencepiece):
        tokenizer = make()
        lm: Any = Speller(tokenizer, [tokenizer.eos_token_id])
        assert Vocabulary(lm).single.all()
        for seed in range(20):
            ids, met = walk(lm, Constrained(regex="[é日本\U0001f600]{2}").start(lm), seed, 20)
            assert met
            assert re.fullmatch("[é日本\U0001f600]{2}", lm.decode(ids))


@pytest.mark.parametrize("make", [sentencepiece, metaspace])
def test_a_first_space_that_decoding_drops_is_no_part_of_the_text(make: Any) -> None:
    tokenizer = make()
    lm: Any = Speller(tokenizer, [tokenizer.eos_token_id])
    id_of = tokenizer.convert_tokens_to_ids
    guide = Constrained(regex="ab?").start(lm)
    assert {id_of("▁a"), id_of("a"), id_of("ab"), id_of("▁")} <= tokens(guide, lm.vocab_size)
    spaced = Constrained(regex=" a").start(lm)
    assert id_of("▁") in tokens(spaced, lm.vocab_size)
    for seed in range(10):
        for pattern in ("ab?", " a", "( a)*b"):
            ids, met = walk(lm, Constrained(regex=pattern).start(lm), seed, 30)
            assert met == (re.fullmatch(pattern, lm.decode(ids)) is not None)
        ids, met = walk(lm, Constrained(regex=" ?ab?", after="b").start(lm), seed, 60)
        # Broken characters, which nobody forbids before the marker, take whole characters beside them along.
        if "\ufffd" not in lm.decode(ids):
            assert met == (re.fullmatch(" ?ab?", lm.decode(ids).partition("b")[2]) is not None)


def test_several_end_tokens_all_end_a_text() -> None:
    tokenizer = byte_level()
    ends = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<pad>")}
    lm: Any = Speller(tokenizer, sorted(ends))
    guide = Constrained(regex="a{1,2}").start(lm)
    assert not tokens(guide, lm.vocab_size) & ends
    guide.advance(tokenizer.convert_tokens_to_ids("a"))
    assert tokens(guide, lm.vocab_size) & ends == ends
    assert not guide.over
    guide.advance(tokenizer.convert_tokens_to_ids("a"))
    assert tokens(guide, lm.vocab_size) == ends
    assert guide.over


def test_a_model_without_end_tokens_is_over_where_nothing_may_follow() -> None:
    lm: Any = Speller(byte_level())
    guide = Constrained(choice=("a",)).start(lm)
    guide.advance(lm.tokenizer.convert_tokens_to_ids("a"))
    assert guide.over
    assert guide.met
    assert not tokens(guide, lm.vocab_size)


@given(st.lists(st.text("ab é", min_size=1, max_size=4), min_size=1, max_size=25, unique=True))
def test_a_walk_over_the_tree_is_a_walk_over_every_token(words: list[str]) -> None:
    lm = ToyModel(words, spelling="", moe_layers=1, experts=2, top_k=1, width=2)
    vocabulary = Vocabulary(lm)
    for pattern in ("(ab| )*é?", "[^b]{1,3}", "a"):
        automaton = compile_regex(pattern, "regex")
        for state in range(len(automaton.table)):
            one_by_one = [automaton.after(state, text) if text else 0 for text in vocabulary.texts]
            assert np.array_equal(vocabulary.walk(automaton.table, state), one_by_one)


def test_the_vocabulary_is_read_once_per_model() -> None:
    one = ToyModel(("a", "b"), spelling="")
    assert Vocabulary.of(one) is Vocabulary.of(ToyModel(("a", "b"), spelling=""))
    assert Vocabulary.of(one) is not Vocabulary.of(ToyModel(("a", "b"), spelling="", suppressed_ids=(1,)))
    assert Vocabulary.of(one) is not Vocabulary.of(ToyModel(("b", "a"), spelling=""))
