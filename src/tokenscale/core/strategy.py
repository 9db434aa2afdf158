"""The abstract classes of the two levels, and the grammar's kinds.

Strategies are frozen dataclasses: they describe. State lives in the run: in `Proposals` at the
token level, in the generator that `solve` returns at the sequence level.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from tokenscale.core.cost import Cached
from tokenscale.core.data import Ask, Candidate, RoutingStats
from tokenscale.core.model import Holding, LanguageModel
from tokenscale.core.noise import Stream
from tokenscale.core.plan import RowPlan
from tokenscale.core.reward import Grade
from tokenscale.core.stage import Kind, Stage
from tokenscale.core.step import Work
from tokenscale.core.unread import Reads, cut


@dataclass(frozen=True)
class Rows(Reads):
    """The proposals for one token: `logits` raw in float32; rows that are not `valid` are padding.

    Row 0 is the clean row where there is one. Every sequence has at least one valid row. Large logits are
    computed when they are read, all at once as `logits`, or those of a `part`.
    """

    logits: Float[Tensor, "batch rows vocab"]
    valid: Bool[Tensor, "batch rows"]

    def part(self, sequences: slice, rows: slice) -> Rows:
        """Some rows of some sequences, unread where these are."""
        return Rows.of(cut(self.held, sequences, rows), self.valid[sequences, rows])


class Aggregator(Stage):
    """Makes one distribution of the rows. Pure: nothing is changed in place, no gradient recorded.

    `aggregate` is the function; `init / update / finish` the same as a fold over row chunks, for
    aggregators whose `folds` is True, so that rows x vocabulary is never held.
    """

    kind: ClassVar[Kind] = Kind.AGGREGATOR
    folds: ClassVar[bool] = False

    @abstractmethod
    def aggregate(self, rows: Rows) -> Float[Tensor, "batch vocab"]:
        """Normalised natural log-probabilities, float32. Padding rows are ignored."""

    def fell_back(self, rows: Rows) -> Bool[Tensor, " batch"]:
        """Which sequences had no token that all rows allow, so that the first valid row was used instead."""
        return torch.zeros(rows.held.shape[0], dtype=torch.bool)

    def init(self, batch: int, vocab: int) -> Any:
        """The fold's empty accumulator."""
        raise NotImplementedError(f"{type(self).__name__} has no fold form")

    def update(self, accumulator: Any, rows: Rows) -> Any:
        """The accumulator with one more chunk of rows."""
        raise NotImplementedError(f"{type(self).__name__} has no fold form")

    def finish(self, accumulator: Any) -> Float[Tensor, "batch vocab"]:
        """Equals `aggregate` of all rows given to `update`, up to rounding."""
        raise NotImplementedError(f"{type(self).__name__} has no fold form")

    def fold_fell_back(self, accumulator: Any) -> Bool[Tensor, " batch"] | None:
        """`fell_back` of all rows given to `update`; None: nobody ever does.

        An aggregator that folds and has a `fell_back` without this is given all rows of a sequence at once.
        """
        return None


class Proposals(ABC):
    """The token level's state for a batch of sequences. One entry per sequence, in order."""

    @abstractmethod
    def propose(self, tokens: Int[Tensor, " batch"]) -> tuple[Rows, tuple[Work, ...]]:
        """Feeds one token to every sequence; the proposals for the next, and what ran, one Work per cache."""

    @property
    @abstractmethod
    def cached(self) -> list[tuple[Cached, ...]]:
        """Per sequence, its caches as prefilled, in the order of the works; a proposer always has as many."""

    @property
    @abstractmethod
    def lengths(self) -> list[int]:
        """Tokens stored per sequence, the prompt's included; of several caches, those of the first."""

    @abstractmethod
    def select(self, index: Sequence[int]) -> Proposals:
        """The sequences at `index`; an index given twice forks. The old object must not be used afterwards."""

    @abstractmethod
    def join(self, other: Proposals) -> Proposals:
        """This batch followed by `other`'s. Neither operand must be used afterwards."""


class TokenProposer(Stage):
    """Several proposals for one token.

    `needs`: capabilities the model must have. `random`: its rows depend on the stream.
    """

    kind: ClassVar[Kind] = Kind.PROPOSER
    needs: ClassVar[frozenset[str]] = frozenset()

    @property
    def random(self) -> bool:
        """Whether two streams can give different rows for the same text."""
        return False

    @property
    def clean_row(self) -> bool:
        """Whether row 0 is the model's own distribution."""
        return False

    @property
    @abstractmethod
    def default_aggregator(self) -> Aggregator:
        """What joins the rows where the pipeline names no aggregator."""

    @property
    def takes_processors(self) -> bool:
        """Whether logits processors may come between the aggregate and the decoder."""
        return True

    def notes(self, routing: RoutingStats) -> tuple[str, ...]:
        """What the user should know, given what noise did to one problem's routing."""
        return ()

    def check(self, lm: LanguageModel) -> None:
        """Raises CapabilityError, or ArgumentError for parameters that do not fit this model."""

    def fits(self, aggregator: Aggregator, decoder: Decoder) -> None:
        """Raises PipelineError where it cannot work with these; called when a pipeline is built."""

    @abstractmethod
    def start(self, lm: LanguageModel, prompts: Sequence[tuple[int, ...]], streams: Sequence[Stream]) -> Proposals:
        """Prefills all but the last token of every prompt; equal prompts are prefilled once.

        The last prompt token is the first argument of `propose`, so every distribution, the first
        included, comes from there. `streams[b]` is the source of sequence b's noise.
        """

    def caches(self, lm: LanguageModel, prompt: tuple[int, ...], stream: Stream) -> list[Holding]:
        """The caches that `start` will make of one sequence, in the order of `Proposals.cached`.

        What a batch may come to hold is counted from them, before anything is prefilled.
        """
        return [Holding(lm, prompt)]

    def row_plan(
        self, lm: LanguageModel, stream: Stream, prompt_tokens: int, positions: range
    ) -> tuple[RowPlan, Bool[Tensor, "positions rows"] | None] | None:
        """How the tokens at `positions` of one text are run over its clean cache, and which rows count (None: all).

        The batch of the plan are the positions, the one at `prompt_tokens` - 1 being the first that is proposed
        for; row 0 is the clean row. What `propose` would run, in other words. None, where rows need anything
        else (caches of their own, say): such text is scored step by step.
        """
        return None


@dataclass(frozen=True)
class Choice:
    """What a decoder decides for its groups: candidates for the next token, best first.

    `parents[g, i]` is the beam that candidate i continues, `tokens[g, i]` the token it takes, `scores[g, i]`
    what it is ranked by (None: the total log-probability). Of a decoder with several parts, each has its
    own share of the candidates, one share behind the other. `margin[g]` is how far, in log-probability or
    in the random number, the choice was from another.
    """

    parents: Int[Tensor, "group candidates"]
    tokens: Int[Tensor, "group candidates"]
    margin: Float[Tensor, " group"]
    scores: Float[Tensor, "group candidates"] | None = None


class Decoder(Stage):
    """Chooses tokens from aggregated log-probabilities.

    A group holds `width` beams (1 for greedy decoding and sampling) in `parts` of equal width that end
    each by itself. Of a part's candidates, best first, those that end the text (end token, stop string,
    length) are finished if they stand among the first width / parts; of the others as many go on. `random`:
    uses `uniforms`. `ranks`: uses `scores`, and its candidates carry what they were ranked by; of several beams
    always. `num_return`: the finished candidates that one search gives.
    """

    kind: ClassVar[Kind] = Kind.DECODER
    random: ClassVar[bool] = False
    ranks: ClassVar[bool] = False

    width: int = 1
    parts: int = 1
    num_return: int = 1

    @abstractmethod
    def choose(
        self,
        log_probs: Float[Tensor, "group width vocab"],
        scores: Float[Tensor, "group width"],
        uniforms: Float64[Tensor, " group"] | None,
        parts: Sequence[int] = (0,),
        endings: int = 1,
    ) -> Choice:
        """The next tokens. `scores` are what the beams are ranked by so far; `uniforms` in [0, 1).

        `parts[w]` is the part of beam w, in ascending order; a part that has ended has no beam. The one beam
        of a search's first step belongs to all of its parts, which is written (-1,) where there are several.
        `endings` of the vocabulary's tokens end a text, so width / parts * (1 + endings) candidates of each
        part are enough for all its beams to go on.
        """

    def rank(self, score: float, length: int) -> float:
        """What finished candidates of `length` tokens are ranked by."""
        return score

    def settled(self, finished: Sequence[float], running: float, length: int, limit: int) -> bool:
        """Whether a part may end: `finished` are its best ranks so far, at most width / parts of them.

        `running` is the best score of its beams, of `length` tokens each, which may grow to `limit`.
        """
        return False


Asks = Generator[list[Ask | Grade], list[list[Candidate]], list[Candidate]]


class SequenceStrategy(Stage):
    """Makes candidates of candidates, for ONE problem, without ever calling a model.

    `solve` yields the asks (and requests for a reward model's scores) it wants next and receives their
    candidates, one list per request, in order;
    it returns its own candidates, best first, as many as `ask.k`. Prompting strategies receive any
    k and pass it on; to search and choosing strategies the runner gives k = 1, and splits wider
    asks into copies with child streams. Closing the generator cancels what is outstanding.
    `streams`: it makes one ask and hands its candidates on, so that their text can be shown as it comes.
    """

    streams: ClassVar[bool] = False

    @property
    def in_rounds(self) -> bool:
        """Whether it asks for further copies of an ask in later rounds (`Ask.first`)."""
        return False

    @abstractmethod
    def solve(self, ask: Ask) -> Asks:
        """The generator of one problem."""
