"""Budget forcing: thinking that is ended, or made to go on."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tokenscale.core.data import Ask, Candidate
from tokenscale.core.errors import ArgumentError, at_least
from tokenscale.core.stage import Kind
from tokenscale.core.strategy import Asks, SequenceStrategy
from tokenscale.sequence_level.steps import join, without_ending


@dataclass(frozen=True)
class _Turn:
    """Where one copy stands: its next ask, the text that this goes on with, and whether it still thinks."""

    ask: Ask
    begun: Candidate | None = None
    thinking: bool = True
    left: int = 0


@dataclass(frozen=True)
class BudgetForcing(SequenceStrategy):
    r"""Holds the thinking before an answer between `min` and `max` tokens.

    Thinking ends with `end`, or with the text where that comes first. If it would end before `min` tokens, its
    end is taken away and `marker` put in its place, as often as it takes. After `max` tokens (None: no limit)
    `closing` (None: `end`) is put behind it, and the answer follows, however long. Without `end` in the text,
    that is for models without think tags, all of the text is thinking: `min` lengthens it, and at `max` the text
    `closing` asks for the answer. `BudgetForcing(max=60, end="####", closing=". ####")` suits the demo model,
    whose steps end with "####"; `BudgetForcing(min=500)` a model that thinks in <think> tags.

    Tokens are those of this answer since its beginning, markers included; a marker may go beyond `max`. What was
    put in stands in the candidate's text and `token_ids`, with log-probability 0. It does not count as one of
    `max_new_tokens`, which end the answer as ever. An ask that goes on with a text (a later step of a search, an
    extraction by ChainOfThought around it) is passed on as it is. Draws depend on the position, so a budget that
    never takes hold changes no token. `end` must be text that the tokenizer writes; special tokens that decoding
    leaves out (gpt-oss) are not seen.

    Costs what the model writes, and a prefill of what is put in. Raises ArgumentError for parameters out of range.

    Source: Muennighoff et al., arXiv 2501.19393, section 3.1 (s1).
    """

    kind = Kind.PROMPTING
    reads_text = True

    min: int = 0
    max: int | None = None
    marker: str = "Wait"
    end: str = "</think>"
    closing: str | None = None

    def __post_init__(self) -> None:
        at_least("BudgetForcing", "min", self.min, 0)
        if self.max is not None:
            at_least("BudgetForcing", "max", self.max, 1)
        texts = {"marker": self.marker, "end": self.end}
        if self.closing is not None:
            texts["closing"] = self.closing
        for name, text in texts.items():
            if not isinstance(text, str) or not text:
                message = f"BudgetForcing({name}={text!r:.80}): {name} must be a text that is not empty"
                raise ArgumentError(message, f'write {name}="..."')
        if self.max is not None and self.min > self.max:
            message = f"BudgetForcing(min={self.min}, max={self.max}): min is above max"
            raise ArgumentError(message, f"write min={self.max}, or less")
        if self.min == 0 and self.max is None:
            raise ArgumentError("BudgetForcing with neither min nor max does nothing", "give one, or leave it out")

    def solve(self, ask: Ask) -> Asks:
        if ask.prefix_ids or ask.suffix:
            [candidates] = yield [ask]
            return candidates
        # One ask for all copies, since a beam search gives several texts at once.
        first = self._first(ask)
        [begun] = yield [first.ask]
        turns = [replace(first, ask=replace(first.ask, k=1, first=ask.first + j)) for j in range(len(begun))]
        states: list[_Turn | Candidate] = [
            self._after(ask, turn, found) for turn, found in zip(turns, begun, strict=True)
        ]
        while going := [j for j, state in enumerate(states) if isinstance(state, _Turn)]:
            turns = [state for state in states if isinstance(state, _Turn)]
            answers = yield [turn.ask for turn in turns]
            for j, turn, [found] in zip(going, turns, answers, strict=True):
                states[j] = self._after(ask, turn, found)
        return [state for state in states if isinstance(state, Candidate)]

    def _first(self, ask: Ask) -> _Turn:
        limit = ask.max_new_tokens if self.max is None else min(ask.max_new_tokens, self.max)
        return _Turn(replace(ask, max_new_tokens=limit, pauses=(*ask.pauses, self.end)), left=ask.max_new_tokens)

    def _after(self, ask: Ask, turn: _Turn, found: Candidate) -> _Turn | Candidate:
        """What comes behind a turn's candidate: the next turn, or the whole candidate where nothing does."""
        whole, left = join(turn.begun, found), turn.left - len(found.token_ids)
        closed = found.finish_reason == "pause" and found.stopped_by not in ask.pauses
        if not turn.thinking or left < 1:
            return whole
        kept = without_ending(whole)
        used = len(kept.token_ids)
        if used < self.min and (closed or found.finish_reason == "eos"):
            limit = left if self.max is None else min(left, self.max - used)
            asked = replace(turn.ask, suffix=whole.rest + self.marker, max_new_tokens=limit)
            return _Turn(_behind(asked, kept), kept, True, left)
        answer = replace(turn.ask, pauses=ask.pauses, max_new_tokens=left, suffix="")
        if closed:
            return _Turn(_behind(answer, whole), whole, False, left)
        # Under a constraint that the answer has still to meet, a text that is cut off says so.
        cut_off = found.finish_reason in ("length", "constraint_unmet") and not (found.stopped_by or found.ending)
        if cut_off and self.max is not None and used >= self.max:
            closing = self.end if self.closing is None else self.closing
            # The last token that may be thought can complete the end, too.
            suffix = "" if self.end in whole.text else closing
            return _Turn(replace(_behind(answer, whole), suffix=suffix), whole, False, left)
        return whole


def _behind(ask: Ask, begun: Candidate) -> Ask:
    return replace(ask, prefix_ids=begun.token_ids)
