"""Particle filtering: partial answers are resampled by their scores, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from tokenscale.core.data import Ask, Candidate
from tokenscale.core.errors import ArgumentError, at_least, finite, unknown
from tokenscale.core.noise import TOKEN_DOMAIN
from tokenscale.core.scorer import Scorer
from tokenscale.core.stage import Kind
from tokenscale.core.strategy import Asks, SequenceStrategy
from tokenscale.sequence_level.scorers.log_prob import LogProb
from tokenscale.sequence_level.steps import (
    MOST_STEPS,
    Branch,
    check_scorer,
    grow,
    is_open,
    one_step_note,
    score_of,
    separators,
    step_stream,
)

SCHEMES = ("multinomial", "systematic")

Weights = NDArray[np.float64]


@dataclass(frozen=True)
class ParticleFilter(SequenceStrategy):
    r"""Many answers at once: after every step, those with high scores are copied, and others dropped.

    Each of `particles` answers grows by one step, and is scored with all that stands before it: s_i. Then as many
    are drawn anew, with replacement and P(i) = exp(s_i / temperature) / sum_j exp(s_j / temperature), and grow
    by the next step. Answers that have ended keep their score and take part in the drawing. It is over when
    all have ended. A step ends behind `step` (a text, or several of which any will do); step number `max_steps`
    runs to the end of the text. The result is the particle with the highest score (of equal ones the first);
    `members` are all of them, with their last scores, not drawn anew. Weighted by exp(score / temperature),
    they are a sample of p(text) * prod_t exp(s_t / temperature) for texts of equally many steps (means over it
    are off in the order of 1 / particles).

    `resampling` "multinomial" draws every particle by itself, as the paper does; "systematic" reads one random
    number at `particles` equal distances, which keeps counts within 1 of their expectation. There is a drawing
    after every step: the paper has no rule by effective sample size.

    Use it where the scorer is good on average and wrong at times: unlike StepBeam it gives beginnings with low
    scores their share. Scores should be log-odds, as RewardModelScorer's are; chances between 0 and 1
    (ProcessRewardScorer) differ little, so give them a temperature of about 0.1. For the demo model's steps:
    `ParticleFilter(particles=8, step=(", ", ". "))`; see StepBeam.

    Costs `particles` continuations of one step each, times the steps, and what the scorer costs for each; every
    step goes on from the tokens before it. Particle i of step s draws from `stream/step/s/i`, so equal beginnings
    go on differently. Raises ArgumentError for parameters out of range, and UnknownNameError.

    Source: Puri et al., arXiv 2502.01618, section 4.2 and algorithm 1; systematic: Carpenter, Clifford and
    Fearnhead 1999, "Improved particle filter for nonlinear problems".
    """

    kind = Kind.SEARCH
    reads_text = True

    particles: int
    scorer: Scorer = field(default_factory=LogProb)
    step: str | tuple[str, ...] = "\n\n"
    temperature: float = 1.0
    resampling: str = "multinomial"
    max_steps: int = MOST_STEPS

    def __post_init__(self) -> None:
        at_least("ParticleFilter", "particles", self.particles, 1)
        at_least("ParticleFilter", "max_steps", self.max_steps, 1)
        check_scorer("ParticleFilter", self.scorer)
        separators("ParticleFilter", self.step)
        temperature = finite("ParticleFilter", "temperature", self.temperature, 1.0)
        if temperature <= 0:
            message = f"ParticleFilter(temperature={self.temperature!r}): temperature must be above 0"
            raise ArgumentError(message, "write temperature=1.0; StepBeam keeps the best alone")
        object.__setattr__(self, "temperature", temperature)
        if self.resampling not in SCHEMES:
            raise unknown("resampling", str(self.resampling), SCHEMES, "ParticleFilter")

    @property
    def signals(self) -> frozenset[str]:
        return self.scorer.signals

    def solve(self, ask: Ask) -> Asks:
        ends = separators("ParticleFilter", self.step)
        particles: list[Candidate] = []
        notes: tuple[str, ...] = ()
        for number in range(1, self.max_steps + 1):
            last, places = number == self.max_steps, list(range(self.particles))
            if particles:
                particles = self._drawn(ask, particles, number - 1)
                places = [i for i in places if is_open(particles[i], ask)]
            if not places:
                break
            branches = [Branch(particles[i] if particles else None, step_stream(ask, number - 1, i)) for i in places]
            found = yield from grow(ask, branches, 1, () if last else ends, self.scorer, number)
            grown = dict(zip(places, (c for [c] in found), strict=True))
            if number == 1 and not last:
                notes = one_step_note(list(grown.values()), ask, ends)
            particles = [grown[i] if i in grown else particles[i] for i in range(self.particles)]
            if not any(is_open(c, ask) for c in particles):
                break
        winner = max(particles, key=score_of)
        return [replace(winner, members=tuple(particles), notes=(*winner.notes, *notes))]

    def _drawn(self, ask: Ask, particles: Sequence[Candidate], number: int) -> list[Candidate]:
        """As many particles, drawn after step `number`."""
        weights = normalised([score_of(c) for c in particles], self.temperature)
        uniforms = ask.stream.child("resampling").child(number).generator(TOKEN_DOMAIN, 0).random(self.particles)
        return [particles[i] for i in resample(weights, uniforms, self.resampling)]


def normalised(scores: Sequence[float], temperature: float) -> Weights:
    """softmax(scores / temperature); where all are minus infinity, or some plus infinity, those share equally."""
    values = np.asarray(scores, np.float64)
    top = values.max()
    if np.isinf(top):
        values = np.where(values == top, 0.0, -np.inf)
        top = 0.0
    with np.errstate(over="ignore"):  # of a very small temperature
        weights = np.exp((values - top) / temperature)
    return np.asarray(weights / weights.sum())


def resample(weights: Weights, uniforms: NDArray[np.float64], resampling: str) -> list[int]:
    """As many indices as weights: "multinomial" reads a number for each, "systematic" the first alone."""
    count = len(weights)
    points = uniforms if resampling == "multinomial" else (uniforms[0] + np.arange(count)) / count
    ends = weights.cumsum()
    # The sum may end below 1 by rounding, and the last index with a weight takes the rest.
    ends[np.flatnonzero(weights)[-1] :] = 1.0
    return [int(i) for i in np.searchsorted(ends, points, side="right")]
