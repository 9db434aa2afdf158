"""The text of every token, as bytes: what a constraint over text needs to know of a tokenizer."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from typing import Any

from tokenscale.core.model import LanguageModel

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "\u2581"
CHECKED = 64  # tokens whose text is compared with what the tokenizer decodes


def token_texts(lm: LanguageModel) -> list[bytes | None]:
    """What each of `vocab_size` tokens adds to a text; None for special, end and suppressed ones and for no text.

    Byte-level and SentencePiece vocabularies of transformers' fast tokenizers are read from their decoder,
    tokens that are part of a character included. Of any other tokenizer it is what a token decodes to
    behind another one, and tokens that are no text of their own are left out. Cost: up to 20 us a token.
    """
    texts = _read(lm) or _decoded(lm)
    barred = lm.eos_ids | lm.suppressed_ids | _special(lm.tokenizer)
    padded = [*texts, *[None] * lm.vocab_size][: lm.vocab_size]
    return [text if text and i not in barred else None for i, text in enumerate(padded)]


def drops_first_space(lm: LanguageModel, texts: list[bytes | None]) -> bool:
    """Whether a text that begins with a space is decoded without it, as SentencePiece's is."""
    spaced = next((i for i, text in enumerate(texts) if text and re.fullmatch(rb" [!-~]+", text)), None)
    return spaced is not None and not lm.decode([spaced]).startswith(" ")


def _special(tokenizer: Any) -> frozenset[int]:
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return frozenset(getattr(tokenizer, "all_special_ids", ())) | {i for i, token in added.items() if token.special}


def _read(lm: LanguageModel) -> list[bytes | None] | None:
    """Texts by the rules of the tokenizer's own decoder; None where they are not known or not confirmed."""
    backend = getattr(lm.tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    decode = _rule(_parts(json.loads(backend.to_str()).get("decoder")))
    if decode is None:
        return None
    pieces = (backend.id_to_token(i) for i in range(lm.vocab_size))
    texts = [None if piece is None else decode(piece) for piece in pieces]
    return texts if _confirmed(lm, texts) else None


def _parts(decoder: Any) -> list[dict[str, Any]]:
    if not decoder:
        return []
    return [part for inner in decoder["decoders"] for part in _parts(inner)] if "decoders" in decoder else [decoder]


def _rule(parts: Iterable[dict[str, Any]]) -> Callable[[str], bytes] | None:
    names = {part["type"]: part for part in parts}
    if "ByteLevel" in names:
        alphabet = _byte_alphabet()
        return lambda piece: _bytes_of(piece, alphabet)
    if not names.keys() & {"ByteFallback", "Metaspace"}:
        return None
    space = names.get("Metaspace", {}).get("replacement", _SPACE)
    fallback = "ByteFallback" in names

    def decode(piece: str) -> bytes:
        byte = _BYTE.fullmatch(piece) if fallback else None
        return bytes([int(byte[1], 16)]) if byte else piece.replace(space, " ").encode()

    return decode


def _byte_alphabet() -> dict[str, int]:
    """The characters that byte-level vocabularies write bytes with: printable ones stand for themselves."""
    themselves = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(themselves)]
    return {chr(b): b for b in themselves} | {chr(256 + i): b for i, b in enumerate(others)}


def _bytes_of(piece: str, alphabet: dict[str, int]) -> bytes:
    """A piece that is not written in the alphabet, such as an added token with a space, is text as it is."""
    written = [alphabet.get(character) for character in piece]
    return bytes(b for b in written if b is not None) if None not in written else piece.encode()


def _confirmed(lm: LanguageModel, texts: list[bytes | None]) -> bool:
    anchor = _anchor(lm)
    barred = _special(lm.tokenizer)
    plain = [i for i, text in enumerate(texts) if text and text.isascii() and i not in barred]
    for i in plain[:: len(plain) // CHECKED + 1]:
        if lm.decode([anchor, i]) != lm.decode([anchor]) + (texts[i] or b"").decode():
            return False
    return True


def _anchor(lm: LanguageModel) -> int:
    """A token with a text, behind which others are decoded as they are within a text; 0 where there is none."""
    return next((i for i in range(_known(lm)) if re.fullmatch(r"[!-~]+", lm.decode([i]))), 0)


def _known(lm: LanguageModel) -> int:
    """Ids that the tokenizer knows: a vocabulary may be padded beyond them."""
    return min(lm.vocab_size, len(lm.tokenizer))


def _decoded(lm: LanguageModel) -> list[bytes | None]:
    anchor = _anchor(lm)
    ahead = lm.decode([anchor])
    texts: list[bytes | None] = []
    for i in range(_known(lm)):
        text = lm.decode([anchor, i])
        own = text.removeprefix(ahead) if text.startswith(ahead) else ""
        texts.append(None if "\ufffd" in own else own.encode())
    return texts
