"""What one growing candidate has so far, and the Candidate it becomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tokenscale.core.data import Candidate, RoutingStats, Trace
from tokenscale.core.model import LanguageModel
from tokenscale.core.noise import Stream
from tokenscale.core.signals import StopRule

if TYPE_CHECKING:
    from tokenscale.core.constraint import Guide


@dataclass(frozen=True)
class TokenRecord:
    """One decoded token: what is kept of the step that chose it."""

    token: int
    log_prob: float
    near_tie: bool
    fell_back: bool
    rows: int
    routing: RoutingStats
    trace: tuple[float, float, float] | None
    signals: tuple[float, ...]


@dataclass
class Record:
    """A candidate while it is decoded. `limit` is the most tokens it may get.

    The last `prefix` tokens of `prompt` are the beginning of the answer, the last `suffix` of those the ask's
    suffix. `part` is its place in a search of several parts (-1: its root), `score` what the search ranks it by,
    `signals` the names of what is recorded per token, `ruled` the values that its stop rule reads.
    """

    prompt: tuple[int, ...]
    stream: Stream
    limit: int
    stop_strings: tuple[str, ...]
    pauses: tuple[str, ...] = ()
    prefix: int = 0
    suffix: int = 0
    guide: Guide | None = None
    stop_rule: StopRule | None = None
    signals: tuple[str, ...] = ()
    tokens: list[TokenRecord] = field(default_factory=list)
    log_prob: float = 0.0
    score: float = 0.0
    part: int = -1
    ruled: list[float] = field(default_factory=list)

    def add(self, lm: LanguageModel, token: TokenRecord, score: float | None = None, part: int = 0) -> None:
        """Appends a token; `log_prob` is their running total, and so is `score` where none is given."""
        self.tokens.append(token)
        self.log_prob += token.log_prob
        self.score = self.log_prob if score is None else score
        self.part = part
        if self.stop_rule is not None:
            self.ruled.append(token.signals[self.signals.index(self.stop_rule.signal)])
        if self.guide is not None and token.token not in lm.eos_ids:
            self.guide.advance(token.token)

    @property
    def token_ids(self) -> tuple[int, ...]:
        return tuple(t.token for t in self.tokens)

    @property
    def last(self) -> int:
        """The token to feed next."""
        return self.tokens[-1].token if self.tokens else self.prompt[-1]

    @property
    def position(self) -> int:
        """Absolute position of the token that is chosen next."""
        return len(self.prompt) + len(self.tokens)

    def fork(self) -> Record:
        """An independent copy, its guide's state included."""
        other = object.__new__(Record)
        # Every beam of every step is a fork, and `dataclasses.replace` takes six times as long.
        other.__dict__.update(self.__dict__)
        other.tokens, other.ruled = list(self.tokens), list(self.ruled)
        if self.guide is not None:
            other.guide = self.guide.fork()
        return other

    def ending(self, lm: LanguageModel) -> str | None:
        """The finish reason, once there is one."""
        reason = self._ending(lm)
        if self.guide is None or reason == "pause":
            return reason
        if reason in (None, "length") and self.guide.over:
            reason = "constraint"
        return "constraint_unmet" if reason is not None and not self.guide.met else reason

    def _ending(self, lm: LanguageModel) -> str | None:
        if self.last in lm.eos_ids:
            return "eos"
        if self._ends and (stop := self._stopped(lm)):
            return "stop_string" if stop in self.stop_strings else "pause"
        if self.stop_rule is not None and self.stop_rule.stops(self.ruled):
            return "stop_rule"
        return "length" if len(self.tokens) >= self.limit else None

    def _signal(self, name: str) -> tuple[float, ...]:
        place = self.signals.index(name)
        return tuple(token.signals[place] for token in self.tokens)

    @property
    def _ends(self) -> tuple[str, ...]:
        """What may end it here: where nothing may follow, there is nothing to pause for."""
        return self.stop_strings + (self.pauses if len(self.tokens) < self.limit else ())

    @property
    def _before(self) -> tuple[int, ...]:
        """The tokens that the answer begins with."""
        return self.prompt[len(self.prompt) - self.prefix :]

    def _stopped(self, lm: LanguageModel) -> str:
        # A character takes at most four byte-level tokens, so this window holds any stop string that
        # the last token completes.
        window = 4 * max(map(len, self._ends)) + 8
        tail = lm.decode([*self._before[-window:], *(t.token for t in self.tokens[-window:])][-window:])
        return self._cut(lm, self.token_ids)[1] if any(s in tail for s in self._ends) else ""

    def _cut(self, lm: LanguageModel, ids: Sequence[int]) -> tuple[str, str]:
        """All text of the prefix and of these ids up to the first of its ends, and that end (empty: there is none)."""
        text, start = lm.decode([*self._before, *ids]), 0
        if self.prefix:
            # The prefix may end within a character, which the next token completes.
            given = lm.decode(self._before)
            start = next((i for i, (a, b) in enumerate(zip(text, given, strict=False)) if a != b), len(given))
        found = [(text.find(s, max(0, start - len(s) + 1)), s) for s in self.stop_strings]
        found += [(text.find(s, start), s) for s in self._ends[len(self.stop_strings) :]]
        place, end = min(((p, s) for p, s in found if p >= 0), key=lambda one: one[0], default=(len(text), ""))
        return text[:place], end

    def _read(self, lm: LanguageModel, ids: Sequence[int], whole: str, end: str) -> tuple[str, str]:
        """(thinking, text) of the prefix and of these ids, both before what ended them."""
        if not lm.think_tags:
            return "", whole
        asked = self.prompt[: len(self.prompt) - self.prefix]
        thinking, text = lm.read(asked, [*self._before, *ids])
        if not end:
            return thinking, text
        # It ended the candidate, so it is the last of its kind, in one of the two parts; a tag is in neither.
        in_text, in_thinking = text.rfind(end), thinking.rfind(end)
        if in_text >= 0:
            return thinking, text[:in_text]
        return (thinking[:in_thinking] if in_thinking >= 0 else thinking), text

    def _beyond(self, lm: LanguageModel, whole: str, end: str) -> tuple[int, str]:
        """How many of the last tokens go beyond the text, and the text that they begin with."""
        if not end:
            return int(self.last in lm.eos_ids), ""
        for count in range(1, len(self.tokens) + 1):
            head = lm.decode([*self._before, *self.token_ids[:-count]])
            if whole.startswith(head):
                return count, whole[len(head) :]
        return len(self.tokens), ""

    def finish(self, lm: LanguageModel, reason: str) -> Candidate:
        """The candidate; its cost is its group's to fill in."""
        spoken = self.token_ids[:-1] if reason == "eos" else self.token_ids
        whole, end = self._cut(lm, spoken) if lm.tokenizer is not None else ("", "")
        thinking, text = self._read(lm, spoken, whole, end) if lm.tokenizer is not None else ("", "")
        ending, rest = self._beyond(lm, whole, end)
        return Candidate(
            text=text,
            thinking=thinking,
            stopped_by=end,
            ending=ending,
            rest=rest,
            suffix_ids=self.prompt[len(self.prompt) - self.suffix :],
            token_ids=self.token_ids,
            log_probs=tuple(t.log_prob for t in self.tokens),
            finish_reason=reason,
            stream=self.stream,
            signals=tuple((name, self._signal(name)) for name in self.signals),
            near_ties=sum(t.near_tie for t in self.tokens),
            fallbacks=sum(t.fell_back for t in self.tokens),
            routing=sum((t.routing for t in self.tokens), RoutingStats()),
            trace=self._trace(),
        )

    def _trace(self) -> Trace | None:
        traces = [t.trace for t in self.tokens if t.trace is not None]
        if len(traces) < len(self.tokens):
            return None
        entropy, disagreement, experts = zip(*traces, strict=True)
        return Trace(entropy, disagreement, tuple(t.rows for t in self.tokens), experts)
