"""Beam search: several beginnings of one text grow together, and the most likely of them go on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from jaxtyping import Float, Float64, Int
from torch import Tensor
from torch.nn.functional import pad

from tokenscale.core.errors import ArgumentError, at_least, finite
from tokenscale.core.strategy import Choice, Decoder

EarlyStopping = bool | Literal["never"]

IMPOSSIBLE = float("-inf")
NEVER = float("inf")
LARGEST_PENALTY = 10.0  # a length to its power stays a float, for all lengths that models have

Scores = Float[Tensor, "group candidates"]
Places = Int[Tensor, "group candidates"]


@dataclass(frozen=True)
class BeamSearch(Decoder):
    """The most likely texts that a search over `width` beginnings finds.

    Each step scores all continuations of all beams by their total log-probability S, under the aggregated
    distribution as suppressed tokens, constraints and logits processors leave it. The `width` best that do not
    end are the next beams. Those that end (end token, stop string, length) and stand among the `width` best
    are finished, and ranked by S / length**length_penalty, `length` counting all generated tokens, the end
    token too: above 0 it favours long texts (S is negative), below 0 short ones. The `width` best finished
    texts are kept, and the `num_return` best given, with that rank as their `score`.

    `early_stopping` says when the search ends before the length does, once `width` texts are finished:
    True, at once; False, where the best beam, ended as it is, would not rank above the worst of
    them; "never", where no continuation of it could. So only "never" finds all that a search without an early
    end would; the others are cheaper.
    `width` 1 is greedy decoding: one beam, which ends with its text.

    The rules are those of transformers 5.24 (`generate(num_beams=width)`). All beams of a search share their
    ask's random stream. Margin: the least lead by which a candidate stands before the next, from the place
    `width` on, where the order decides who goes on.

    Cost: `width` forwards of one token a step, in one batch, and `width` caches behind one prefill.
    Source: Lowerre 1976, "The Harpy speech recognition system"; the length penalty's form is that of
    transformers. Raises ArgumentError for parameters out of range.
    """

    ranks: ClassVar[bool] = True

    width: int = field()
    length_penalty: float = 1.0
    num_return: int = 1
    early_stopping: EarlyStopping = False

    def __post_init__(self) -> None:
        check_search(self, self.width, self.length_penalty, self.num_return, self.early_stopping)
        object.__setattr__(self, "length_penalty", float(self.length_penalty))

    def choose(
        self,
        log_probs: Float[Tensor, "group width vocab"],
        scores: Float[Tensor, "group width"],
        uniforms: Float64[Tensor, " group"] | None,
        parts: Sequence[int] = (0,),
        endings: int = 1,
    ) -> Choice:
        return Choice(*best_continuations(scores[..., None] + log_probs, self.width, endings))

    def rank(self, score: float, length: int) -> float:
        return score / float(length**self.length_penalty)

    def settled(self, finished: Sequence[float], running: float, length: int, limit: int) -> bool:
        if len(finished) < self.width:
            return False
        if self.early_stopping is True or self.width == 1:
            return True
        # A score only falls, so its rank is highest at the largest length where lengths are favoured.
        grows = self.early_stopping == "never" and self.length_penalty > 0
        return self.rank(running, limit if grows else length) <= min(finished)


def best_continuations(
    totals: Float[Tensor, "group beams vocab"], beams: int, endings: int
) -> tuple[Places, Places, Float[Tensor, " group"], Scores]:
    """The best continuations of one part's beams, as `Choice` has them: parents, tokens, margin and scores.

    So many that `beams` of them do not end; missing ones have the score -inf.
    """
    vocab, flat = totals.shape[-1], totals.flatten(1)
    wanted = beams * (1 + endings) if beams > 1 else 1
    best = flat.topk(min(wanted + 1, flat.shape[-1]))
    places, scores, missing = best.indices[:, :wanted], best.values[:, :wanted], wanted - best.indices.shape[-1]
    if beams == 1 and not missing > 0:
        places = flat.argmax(-1, keepdim=True)  # of equal ones the lowest id, as `Greedy` takes
    if missing > 0:
        places, scores = pad(places, (0, missing)), pad(scores, (0, missing), value=IMPOSSIBLE)
    return places // vocab, places % vocab, _margin(best.values, beams), scores


def _margin(best: Scores, beams: int) -> Float[Tensor, " group"]:
    """The least lead of a candidate over the next, from the last of the first `beams` on."""
    leads = best[:, beams - 1 : -1] - best[:, beams:]
    if not leads.shape[-1]:
        return best.new_full((len(best),), NEVER)
    # Of two impossible candidates (the difference is NaN) the order decides nothing.
    return leads.nan_to_num(nan=NEVER, posinf=NEVER).amin(-1)


def check_search(
    search: Decoder, width: int, length_penalty: float, num_return: int, early_stopping: EarlyStopping
) -> None:
    """Refuses what no beam search can have. Raises ArgumentError."""
    name = type(search).__name__
    at_least(name, "width", width, 1)
    at_least(name, "num_return", num_return, 1)
    if num_return > width:
        message = f"{name}(width={width}, num_return={num_return}): a search has no more texts than beams"
        raise ArgumentError(message, f"write width={num_return}, or num_return={width}")
    if abs(finite(name, "length_penalty", length_penalty, 1.0)) > LARGEST_PENALTY:
        message = f"{name}(length_penalty={length_penalty!r}): length_penalty must lie between -10 and 10"
        raise ArgumentError(message, "write length_penalty=1.0 for the mean log-probability, 0.0 for the total")
    if not (isinstance(early_stopping, bool) or early_stopping == "never"):
        message = f'{name}(early_stopping={early_stopping!r}): early_stopping must be True, False or "never"'
        raise ArgumentError(message, 'write early_stopping="never" for an exact search')
