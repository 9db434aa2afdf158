"""Second models beside the one that a pipeline runs on: how they are named, opened, and found to fit."""

from __future__ import annotations

from collections.abc import Sequence

from tokenscale.core.errors import ArgumentError, PromptError
from tokenscale.core.model import LanguageModel, open_model
from tokenscale.core.noise import Stream
from tokenscale.core.strategy import Proposals
from tokenscale.token_level.plain import Plain
from tokenscale.token_level.side_by_side import SideBySide

Reference = str | LanguageModel


def check_reference(owner: str, name: str, value: object) -> None:
    """Refuses what names no model."""
    if not isinstance(value, LanguageModel) and (not isinstance(value, str) or not value):
        message = f"{owner}({name}={value!r:.80}): {name} must name a model"
        raise ArgumentError(message, "give a folder, a hub id, or what ts.load or ts.wrap returned")


def open_member(owner: str, lm: LanguageModel, reference: Reference) -> LanguageModel:
    """The model of a reference. Raises ArgumentError where its vocabulary is not `lm`'s."""
    other = open_model(reference)
    difference = _difference(lm, other)
    if difference:
        message = f"{owner}: {lm.name} and {other.name} have not one vocabulary: {difference}"
        raise ArgumentError(message, f"name a model with the tokenizer of {lm.name}")
    return other


def _difference(lm: LanguageModel, other: LanguageModel) -> str:
    """What tells two vocabularies apart; empty for equal ones. Without tokenizers only sizes can be compared."""
    if lm.vocab_size != other.vocab_size:
        return f"{lm.vocab_size} and {other.vocab_size} token ids"
    if lm.tokenizer is other.tokenizer or lm.tokenizer is None or other.tokenizer is None:
        return ""
    mine, theirs = _pieces(lm), _pieces(other)
    differing = sorted(i for i in mine.keys() | theirs.keys() if mine.get(i) != theirs.get(i))
    if not differing:
        return ""
    return f"id {differing[0]} is {mine.get(differing[0])!r} and {theirs.get(differing[0])!r}"


def _pieces(lm: LanguageModel) -> dict[int, str]:
    """The piece of every id; the text it decodes to, where the tokenizer does not list its pieces."""
    if hasattr(lm.tokenizer, "get_vocab"):
        return {i: piece for piece, i in lm.tokenizer.get_vocab().items()}
    return {i: lm.decode([i]) for i in range(lm.vocab_size)}


def start_members(
    models: Sequence[LanguageModel], prompts: Sequence[tuple[int, ...]], streams: Sequence[Stream]
) -> Proposals:
    """One row of every model, each with its own cache. Raises PromptError for a prompt that one cannot hold."""
    longest = max(map(len, prompts))
    for lm in models:
        if longest >= lm.context_length:
            message = f"the prompt has {longest} tokens, and the context of {lm.name} holds {lm.context_length}"
            raise PromptError(message, "shorten the prompt, or name a model with a longer context")
    return SideBySide([Plain().start(lm, prompts, streams) for lm in models])
