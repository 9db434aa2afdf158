"""Diverse beam search: groups of beams that keep away from the words of the groups before them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from tokenscale.core.errors import ArgumentError, at_least, finite
from tokenscale.core.strategy import Choice, Decoder
from tokenscale.sequence_level.beam_search import (
    IMPOSSIBLE,
    BeamSearch,
    EarlyStopping,
    best_continuations,
    check_search,
)


@dataclass(frozen=True)
class DiverseBeamSearch(Decoder):
    """Beam searches of `width` / `groups` beams each, where every group avoids the tokens of those before it.

    At each step the groups choose one after another. Group g ranks its continuations as `BeamSearch` does, by

        score(y_1 .. y_t) = score(y_1 .. y_t-1) + log p(y_t) - diversity * N(y_t)

    where N counts how many of the width / groups best continuations of each earlier group, those that end
    included, have just taken that token (the Hamming diversity). Group 1 is a plain beam search, and so is
    every group at `diversity` 0. Each group keeps width / groups finished texts, and ends by itself, by the rules
    of `early_stopping` (a group of one beam with its first text); a group that has ended costs nothing and
    repels nobody.

    The penalty stays in the score, as the paper's algorithm 1 puts it into the log-probability, and as its
    authors' code and transformers' former `group_beam_search` have it: a beam that once paid for a word does
    not win it back. Over all groups the finished texts are ranked by that score / length**length_penalty,
    which is each one's `score`; `log_prob` is what the model itself gives, without penalties.

    Cost: as `BeamSearch(width)`. Source: Vijayakumar et al. 2016, arXiv 1610.02424, algorithm 1 and section
    "Hamming diversity". Raises ArgumentError for parameters out of range.
    """

    ranks: ClassVar[bool] = True

    width: int = field()
    groups: int = field()
    diversity: float = 0.5
    length_penalty: float = 1.0
    num_return: int = 1
    early_stopping: EarlyStopping = False

    def __post_init__(self) -> None:
        check_search(self, self.width, self.length_penalty, self.num_return, self.early_stopping)
        at_least("DiverseBeamSearch", "groups", self.groups, 1)
        if self.width % self.groups:
            message = f"DiverseBeamSearch(width={self.width}, groups={self.groups}): groups must divide width"
            raise ArgumentError(message, f"write width={self.groups * (self.width // self.groups + 1)}")
        if finite("DiverseBeamSearch", "diversity", self.diversity, 0.5) < 0:
            message = f"DiverseBeamSearch(diversity={self.diversity!r}): diversity must be at least 0"
            raise ArgumentError(message, "write diversity=0.5")
        for name in ("diversity", "length_penalty"):
            object.__setattr__(self, name, float(getattr(self, name)))
        object.__setattr__(self, "parts", self.groups)

    @property
    def _group(self) -> BeamSearch:
        return BeamSearch(self.width // self.groups, self.length_penalty, early_stopping=self.early_stopping)

    def choose(
        self,
        log_probs: Float[Tensor, "group width vocab"],
        scores: Float[Tensor, "group width"],
        uniforms: Float64[Tensor, " group"] | None,
        parts: Sequence[int] = (0,),
        endings: int = 1,
    ) -> Choice:
        totals, beams = scores[..., None] + log_probs, self.width // self.groups
        taken = torch.zeros_like(totals[:, 0])
        shares = []
        for part in range(self.groups):
            places = torch.tensor([place for place, owner in enumerate(parts) if owner in (part, -1)], dtype=torch.long)
            own = totals[:, places] - self.diversity * taken[:, None]
            parents, tokens, margin, ranked = best_continuations(own, beams, endings)
            possible = ranked > IMPOSSIBLE
            taken = taken.scatter_add(-1, tokens[:, :beams], possible[:, :beams].to(taken.dtype))
            if len(places):
                parents = places[parents]
            shares.append((parents, tokens, margin, ranked))
        all_parents, all_tokens, margins, all_scores = zip(*shares, strict=True)
        return Choice(
            torch.cat(all_parents, -1),
            torch.cat(all_tokens, -1),
            torch.stack(margins).amin(0),
            torch.cat(all_scores, -1),
        )

    def rank(self, score: float, length: int) -> float:
        return self._group.rank(score, length)

    def settled(self, finished: Sequence[float], running: float, length: int, limit: int) -> bool:
        return self._group.settled(finished, running, length, limit)
