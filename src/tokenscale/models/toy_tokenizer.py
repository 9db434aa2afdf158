"""The toy model's tokenizer: longest match in a list of pieces."""

from __future__ import annotations

from collections.abc import Sequence

from tokenscale.core.errors import PromptError

END = 0


class ToyTokenizer:
    """Text to ids and back. Id 0 begins and ends a text and has no text itself; `pieces[i]` has id i + 1."""

    def __init__(self, pieces: Sequence[str]) -> None:
        self.pieces = tuple(pieces)
        self._ids = {piece: i + 1 for i, piece in enumerate(pieces)}
        self._longest_first = sorted(self._ids, key=len, reverse=True)

    def __len__(self) -> int:
        return len(self.pieces) + 1

    def encode(self, text: str) -> list[int]:
        """The longest piece at every place, from left to right. Raises PromptError for an unknown character."""
        ids, place = list[int](), 0
        while place < len(text):
            piece = next((p for p in self._longest_first if text.startswith(p, place)), None)
            if piece is None:
                message = f"the toy tokenizer has no piece for {text[place]!r}"
                raise PromptError(message, "name the character in ToyModel(spelling=...)")
            ids.append(self._ids[piece])
            place += len(piece)
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(self.pieces[i - 1] for i in token_ids if i != END)
