"""The frozen data that passes between the parts: Prompt, Ask, Candidate, Result."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tokenscale.core.as_json import candidate_dict, finite_or_none
from tokenscale.core.cost import Cost, Usage
from tokenscale.core.errors import ArgumentError, at_least
from tokenscale.core.noise import Stream
from tokenscale.core.prompt import Prompt

if TYPE_CHECKING:
    from tokenscale.core.constraint import Constraint
    from tokenscale.core.signals import StopRule
    from tokenscale.core.strategy import Decoder


@dataclass(frozen=True)
class Ask:
    """Continue this, k times: the one request that strategies make and backends serve.

    `prefix_ids` are token ids that follow the prompt (continuing a text), and `suffix` text behind them; the
    candidates' text begins with theirs. `pauses` end a candidate as `stop_strings` do, for whoever goes on with
    it: they act on new text alone, while a stop string may begin in the prefix. Copy j of the k draws from
    `stream.child(first + j)`, so several asks can together be one wider one. `decoder` and `constraint` None
    mean the pipeline's own; `free` takes the pipeline's constraint off. `max_new_tokens` bounds each copy. `stop_rule`
    ends a candidate by its signals. `direct` asks the model itself, past all strategies inside (a judge's
    question, say).
    """

    prompt: Prompt
    stream: Stream
    max_new_tokens: int
    k: int = 1
    prefix_ids: tuple[int, ...] = ()
    suffix: str = ""
    decoder: Decoder | None = None
    stop_strings: tuple[str, ...] = ()
    pauses: tuple[str, ...] = ()
    constraint: Constraint | None = None
    free: bool = False
    stop_rule: StopRule | None = None
    direct: bool = False
    first: int = 0

    def __post_init__(self) -> None:
        at_least("Ask", "k", self.k, 1)
        at_least("Ask", "first", self.first, 0)
        at_least("Ask", "max_new_tokens", self.max_new_tokens, 1)
        for name, texts in (("stop_strings", self.stop_strings), ("pauses", self.pauses)):
            if isinstance(texts, str) or "" in texts:
                message = f"{name}={texts!r}: {name.replace('_', ' ')} are a tuple of texts that are not empty"
                raise ArgumentError(message, f'write {name}=("\\\\n",)')

    def copies(self) -> list[Ask]:
        """The k asks of one copy each whose candidates are this ask's candidates."""
        streams = [self.stream.child(self.first + j) for j in range(self.k)]
        return [replace(self, k=1, first=0, stream=stream) for stream in streams]


@dataclass(frozen=True)
class Trace:
    """Per-token records of one candidate, kept with `trace=True`; every tuple has one entry a token.

    `entropy` (nats) is of the aggregate; `disagreement` (nats) is the generalised Jensen-Shannon
    divergence of the rows, entropy of their mean minus mean of their entropies; `rows` counts the
    rows used; `distinct_experts` is the mean over MoE layers of the distinct experts those rows ran
    (NaN for a dense model).
    """

    entropy: tuple[float, ...]
    disagreement: tuple[float, ...]
    rows: tuple[int, ...]
    distinct_experts: tuple[float, ...]


@dataclass(frozen=True)
class RoutingStats:
    """What noise did to the routing: counts over the noisy rows' router choices.

    `choices` are the (token, noisy row, noisy layer) top-k selections made, `changed` those whose
    set of experts differs from the same row's noise-free choice; `distinct_experts` sums the
    distinct experts per (token, MoE layer) over all rows and `expert_sets` counts those pairs.
    `checked` are the tokens whose noisy rows would have been saved and were run all the same, to
    compare; `differed` those of them whose most likely token the noisy rows changed.
    """

    choices: int = 0
    changed: int = 0
    distinct_experts: int = 0
    expert_sets: int = 0
    checked: int = 0
    differed: int = 0

    def __add__(self, other: RoutingStats) -> RoutingStats:
        return RoutingStats(
            self.choices + other.choices,
            self.changed + other.changed,
            self.distinct_experts + other.distinct_experts,
            self.expert_sets + other.expert_sets,
            self.checked + other.checked,
            self.differed + other.differed,
        )

    @property
    def changed_share(self) -> float:
        """Share of router choices that noise changed; 0.0 where no choice was noisy."""
        return self.changed / self.choices if self.choices else 0.0

    @property
    def mean_distinct_experts(self) -> float:
        """Mean number of distinct experts per token and MoE layer; NaN for a dense model."""
        return self.distinct_experts / self.expert_sets if self.expert_sets else float("nan")


@dataclass(frozen=True)
class Candidate:
    """One continuation.

    `text` ends before the stop string or end token that ended it; `token_ids` are all ids that were
    generated, that ending included. `log_probs[i]` is the natural log-probability of token i under the
    aggregated distribution, before temperature and truncation. `finish_reason` is one of "eos",
    "stop_string", "pause", "length", "constraint" (it is met, and nothing may follow), "constraint_unmet" (no
    token may follow, or the length is reached, and it is not met), "stop_rule". `stopped_by` is the stop
    string or pause that ended it. Its last `ending` tokens go beyond the text: the end token, or those that
    the stop string stands in, whose characters before it are `rest`. `suffix_ids` are the ids of the ask's
    suffix. `thinking` is the text inside think tags, which `text` leaves out. `score` is what a search or a
    scorer ranked it by, `step_scores` a reward model's scores of its steps, in the answer to a `Grade`,
    `signals` the per-token records that were asked for, by name, one entry a token. `near_ties` counts tokens
    whose choice another order of floating-point sums could have flipped (margin below 1e-5), `fallbacks`
    those whose rows allowed no common token, so that the aggregator used the first row. `cost` is what this
    candidate alone cost to decode; a chosen candidate's `members` are all it was chosen from, `votes` the
    weight of each answer among them, `notes` what the strategy wants the user to know.
    """

    text: str
    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    finish_reason: str
    stream: Stream
    stopped_by: str = ""
    ending: int = 0
    rest: str = ""
    suffix_ids: tuple[int, ...] = ()
    cost: Cost = field(default_factory=Cost)
    answer: str | None = None
    thinking: str = ""
    score: float | None = None
    step_scores: tuple[float, ...] = ()
    signals: tuple[tuple[str, tuple[float, ...]], ...] = ()
    near_ties: int = 0
    fallbacks: int = 0
    routing: RoutingStats = field(default_factory=RoutingStats)
    trace: Trace | None = None
    members: tuple[Candidate, ...] = ()
    votes: tuple[tuple[str | None, float], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def log_prob(self) -> float:
        """Total natural log-probability of the generated tokens."""
        return float(sum(self.log_probs))

    def signal(self, name: str) -> tuple[float, ...]:
        """One of `signals`, by name. Raises KeyError where it was not recorded."""
        return dict(self.signals)[name]

    def leaves(self) -> list[Candidate]:
        """The sampled candidates at the bottom of the choices: itself where it was chosen from none."""
        return [leaf for member in self.members for leaf in member.leaves()] if self.members else [self]


@dataclass
class Served:
    """An answer of a backend or a reward model: `candidates` (None until it is there) and what was run."""

    candidates: list[Candidate] | None = None
    usages: list[Usage] = field(default_factory=list)


@dataclass(frozen=True)
class Result:
    """What a pipeline says to one prompt.

    `text` is the winner's, and so is `answer` where a stage chose or found one; else it is the text's number.
    `candidates` are all that were sampled; `votes` pairs each answer with its weight, heaviest first;
    `cost` is the problem's whole bill in the scenario "alone" (see `core.cost`); `routing` sums over
    candidates; `notes` are warnings in plain words.
    """

    prompt: Prompt
    text: str
    answer: str | None
    candidates: tuple[Candidate, ...]
    winner: Candidate
    cost: Cost
    seed: int
    routing: RoutingStats
    notes: tuple[str, ...] = ()

    @property
    def votes(self) -> tuple[tuple[str | None, float], ...]:
        return self.winner.votes

    @property
    def near_ties(self) -> int:
        """Tokens of all candidates whose choice hung on less than 1e-5."""
        return sum(c.near_ties for c in self.candidates)

    @property
    def fallbacks(self) -> int:
        """Tokens of all candidates at which the aggregator fell back to the first row."""
        return sum(c.fallbacks for c in self.candidates)

    def to_dict(self) -> dict[str, Any]:
        """The result as plain JSON values, for files and `--json`."""
        return {
            "text": self.text,
            "answer": self.answer,
            "votes": [list(v) for v in self.votes],
            "candidates": [candidate_dict(c) for c in self.candidates],
            "cost": self.cost.to_dict(),
            "seed": self.seed,
            "near_ties": self.near_ties,
            "fallbacks": self.fallbacks,
            "routing": {
                "choices": self.routing.choices,
                "changed_share": self.routing.changed_share,
                "mean_distinct_experts": finite_or_none(self.routing.mean_distinct_experts),
                "checked": self.routing.checked,
                "differed": self.routing.differed,
            },
            "notes": list(self.notes),
        }
