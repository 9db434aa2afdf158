"""Random pipelines of every built-in part, and of a strategy with every sort of parameter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from tokenscale.core.stage import Kind, Stage
from tokenscale.core.strategy import SequenceStrategy
from tokenscale.pipeline import Pipeline
from tokenscale.sequence_level.answers import KINDS
from tokenscale.sequence_level.chain_of_thought import ChainOfThought
from tokenscale.sequence_level.self_consistency import SelfConsistency
from tokenscale.token_level.aggregators import MeanLogit, MeanProbability
from tokenscale.token_level.decoders import Greedy, Sample
from tokenscale.token_level.plain import Plain
from tokenscale.token_level.roe import RoE


@dataclass(frozen=True)
class Everything(SequenceStrategy):
    """A strategy with every sort of parameter."""

    kind = Kind.CHOOSING

    inner: Stage
    values: Any = ()
    flag: bool = False
    rest: Any = None

    def solve(self, ask):  # type: ignore[no-untyped-def]
        raise NotImplementedError


def score(text: str) -> float:
    return float(len(text))


floats = st.floats(0, 10) | st.sampled_from([1e-300, 0.1 + 0.2, 1e300])
texts = st.text(max_size=8) | st.sampled_from(["it's", '"', "\\", "a\nb", "|", "RoE(n=4)", "\u2028\x00\x85\ufeff", "é"])
roes = st.builds(RoE, st.integers(1, 64), floats | st.lists(floats, min_size=1).map(tuple), st.integers(0, 3))
proposers = st.just(Plain()) | roes
aggregators = st.sampled_from([MeanProbability(), MeanLogit()])
samplers = st.builds(
    Sample,
    st.floats(0.01, 5),
    st.none() | st.integers(1, 50),
    st.none() | st.floats(0.01, 1),
    st.none() | st.floats(0, 0.99),
)
decoders = st.just(Greedy()) | samplers
prompting = st.builds(ChainOfThought, texts.filter(bool), texts)
leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts | proposers | decoders
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=6)
everything = st.builds(Everything, proposers | decoders, values, st.booleans(), values | st.just(score))
choosing = st.builds(SelfConsistency, st.integers(1, 10**6), st.sampled_from(sorted(KINDS))) | everything


@st.composite
def pipelines(draw: st.DrawFn) -> Pipeline:
    once = [draw(st.lists(kind, max_size=1)) for kind in (proposers, aggregators, decoders)]
    nested = [*draw(st.lists(prompting, max_size=2)), *draw(st.lists(choosing, max_size=2))]
    stages = [stage for kind in once for stage in kind] + nested or [Plain()]
    # A choice among greedy candidates needs noise.
    if Greedy() in stages and any(s.kind is Kind.CHOOSING for s in stages):
        stages.remove(Greedy())
    return Pipeline(*stages)
