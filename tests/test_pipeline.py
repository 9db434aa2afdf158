"""Pipelines as values: the grammar with its refusals, defaults, equality, and what `run` refuses."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenscale.core.constraint import Constraint
from tokenscale.core.errors import ArgumentError, CapabilityError, PipelineError, PromptError
from tokenscale.core.prompt import Prompt
from tokenscale.core.scorer import Scorer
from tokenscale.core.stage import Kind, Stage
from tokenscale.core.strategy import SequenceStrategy
from tokenscale.models.toy import ToyModel
from tokenscale.pipeline import Pipeline
from tokenscale.sequence_level.chain_of_thought import ChainOfThought
from tokenscale.sequence_level.self_consistency import SelfConsistency
from tokenscale.token_level.adaptive_roe import AdaptiveRoE
from tokenscale.token_level.aggregators import MeanLogit, MeanProbability
from tokenscale.token_level.decoders import Greedy, Sample
from tokenscale.token_level.plain import Plain
from tokenscale.token_level.roe import RoE


@dataclass(frozen=True)
class Search(SequenceStrategy):
    kind = Kind.SEARCH

    def solve(self, ask):  # type: ignore[no-untyped-def]
        [candidates] = yield [ask]
        return candidates


@dataclass(frozen=True)
class Nothing(Constraint):
    def start(self, lm):  # type: ignore[no-untyped-def]
        raise NotImplementedError


@dataclass(frozen=True)
class Taste(Scorer):
    def grade(self, ask, candidates):  # type: ignore[no-untyped-def]
        raise NotImplementedError


@dataclass(frozen=True)
class Misfit(SequenceStrategy):
    kind = Kind.DECODER

    def solve(self, ask):  # type: ignore[no-untyped-def]
        raise NotImplementedError


@dataclass(frozen=True)
class Kindless(SequenceStrategy):
    def solve(self, ask):  # type: ignore[no-untyped-def]
        raise NotImplementedError


@dataclass(frozen=True)
class Demanding(Plain):
    needs = frozenset({"telepathy", "routing_noise"})


FULL = [RoE(4), MeanLogit(), Sample(1.0), ChainOfThought("Hm."), ChainOfThought(), Search(), SelfConsistency(3)]


def test_code_operator_text_and_spec_make_the_same_pipeline() -> None:
    pipe = Pipeline(RoE(n=4, tau=0.3), SelfConsistency(k=5))
    assert pipe == RoE(n=4, tau=0.3) | SelfConsistency(k=5)
    assert pipe == Pipeline.parse("RoE(n=4, tau=0.3) | SelfConsistency(k=5)") == Pipeline.from_spec(pipe.to_spec())
    assert hash(pipe) == hash(RoE(n=4) | SelfConsistency(k=5))
    assert pipe != RoE(n=4) | SelfConsistency(k=6)
    assert pipe == copy.deepcopy(pipe) == pickle.loads(pickle.dumps(pipe))


def test_numbers_are_always_printed_and_other_parameters_where_they_differ() -> None:
    pipe = ChainOfThought() | RoE(n=4) | Sample(top_k=5) | SelfConsistency(k=5, answers="letter")
    assert repr(pipe) == (
        "RoE(n=4, tau=0.3, clean_layers=1) | Sample(temperature=0.7, top_k=5) | ChainOfThought() | "
        "SelfConsistency(k=5, answers='letter')"
    )


def test_a_spec_has_all_parameters() -> None:
    words = {"weights": "original", "current_kv": "own", "first_token": "rows", "noise": "gumbel"}
    words |= {"noise_on": "logits", "cache": "clean", "prefill": "clean"}
    assert (RoE(n=4, tau=(0.1, 0.2)) | ChainOfThought()).to_spec() == [
        {"RoE": {"n": 4, "tau": [0.1, 0.2], "clean_layers": 1, "keep_head": None, "candidate_pool": None, **words}},
        {
            "ChainOfThought": {
                "trigger": "Let's think step by step.",
                "examples": "",
                "extract": "",
                "answers": "number",
            }
        },
    ]


def test_it_is_a_sequence_of_its_stages() -> None:
    pipe = Pipeline(*FULL)
    assert (len(pipe), pipe[0], pipe[-1]) == (7, RoE(4), SelfConsistency(3))
    assert pipe[:2] == Pipeline(*pipe.stages[:2])
    assert pipe[:] == pipe
    assert list(pipe.stages) == FULL


@given(st.permutations([0, 1, 2]), st.lists(st.integers(0, 4), min_size=3, max_size=3))
def test_kinds_that_stand_once_may_be_written_anywhere(order: list[int], places: list[int]) -> None:
    stages: list[Stage] = list(FULL[3:])
    for which, place in zip(order, places, strict=True):
        stages.insert(place, FULL[which])
    assert Pipeline(*stages) == Pipeline(*FULL)


@given(st.lists(st.integers(1, 6), max_size=3))
def test_pipelines_within_pipelines_flatten(cuts: list[int]) -> None:
    ends = [0, *sorted(set(cuts)), len(FULL)]
    parts = [FULL[a:b] for a, b in pairwise(ends)]
    assert Pipeline(*(Pipeline(*part) for part in parts)) == Pipeline(*FULL)
    joined: Any = Pipeline(*parts[0])
    for part in parts[1:]:
        joined = joined | Pipeline(*part)
    assert joined == Pipeline(*FULL)


def test_the_operator_takes_stages_and_pipelines_on_both_sides() -> None:
    assert RoE(4) | (Sample() | SelfConsistency(3)) == RoE(4) | Sample() | SelfConsistency(3)
    with pytest.raises(TypeError):
        RoE(4) | 3
    with pytest.raises(TypeError):
        RoE(4) | "Greedy()"


@pytest.mark.parametrize(
    ("pipe", "resolved"),
    [
        (Pipeline(Plain()), [Plain(), MeanProbability(), Greedy()]),
        (Pipeline(RoE(4)), [RoE(4), MeanProbability(), Greedy()]),
        (Pipeline(ChainOfThought()), [Plain(), MeanProbability(), Greedy(), ChainOfThought()]),
        (Pipeline(SelfConsistency(1)), [Plain(), MeanProbability(), Sample(temperature=0.7), SelfConsistency(1)]),
        (Pipeline(Search()), [Plain(), MeanProbability(), Sample(temperature=0.7), Search()]),
        (RoE(2) | Greedy() | SelfConsistency(2), [RoE(2), MeanProbability(), Greedy(), SelfConsistency(2)]),
        (MeanLogit() | RoE(4), [RoE(4), MeanLogit(), Greedy()]),
    ],
)
def test_defaults(pipe: Pipeline, resolved: list[Stage]) -> None:
    assert list(pipe.resolved().stages) == resolved
    assert pipe.resolved().resolved() == pipe.resolved()
    assert [pipe.proposer, pipe.aggregator, pipe.decoder, *pipe.strategies] == resolved


@pytest.mark.parametrize(
    ("stages", "message", "fix"),
    [
        ([], "a pipeline without stages", "Pipeline(Greedy())"),
        ([RoE(4), RoE(8)], "two proposers: RoE(n=4, tau=0.3, clean_layers=1) and RoE(n=8,", "keep one of them"),
        ([RoE(4), Plain()], "two proposers: RoE(n=4, tau=0.3, clean_layers=1) and Plain()", "keep one of them"),
        ([MeanLogit(), MeanProbability()], "two aggregators: MeanLogit() and MeanProbability()", "keep one of them"),
        ([Greedy(), Sample()], "two decoders: Greedy() and Sample(temperature=0.7)", "keep one of them"),
        (
            [RoE(1), Greedy(), SelfConsistency(5)],
            "SelfConsistency(k=5) would choose among equal candidates: Greedy() over RoE(n=1, ",
            "leave Greedy() out (then Sample(temperature=0.7) is used), or use a random proposer such as RoE(n=4)",
        ),
        (
            [Greedy(), SelfConsistency(1)],
            "would choose among equal candidates: Greedy() over Plain()",
            "leave Greedy() out",
        ),
        ([RoE(4, tau=0.0), Greedy(), SelfConsistency(5)], "would choose among equal candidates", "leave Greedy() out"),
        (
            [SelfConsistency(5), ChainOfThought(), RoE(4)],
            "ChainOfThought() cannot stand around SelfConsistency(k=5): prompting goes inside choosing",
            "write RoE(n=4, tau=0.3, clean_layers=1) | ChainOfThought() | SelfConsistency(k=5)",
        ),
        ([SelfConsistency(5), Search()], "search goes inside choosing", "Search() | SelfConsistency(k=5)"),
        ([Search(), ChainOfThought()], "prompting goes inside search", "write ChainOfThought() | "),
        ([Nothing(), Nothing()], "two constraints: ", "keep one of them"),
        ([Nothing(), AdaptiveRoE(4)], "takes no constraints such as ", "use another proposer"),
        ([Taste()], "Taste() is a scorer, which is a parameter", "Taste())"),
        ([Misfit()], "Misfit is of the kind decoder, but extends no Decoder", "extend Decoder"),
        ([Kindless()], "Kindless has no kind", "`kind = ...` in its class, one of Kind.PROMPTING, Kind.SEARCH, Kind."),
        ([RoE(2), Kindless()], "Kindless has no kind", "Kind.CHOOSING"),
        ([RoE], "RoE is a class, not a stage", "write RoE(...) with brackets"),
        ([5], "5 is not a stage", "pass strategies such as RoE(n=4)"),
        (["RoE(n=4)"], "'RoE(n=4)' is text, not a stage", "write Pipeline.parse('RoE(n=4)')"),
    ],
)
def test_what_cannot_be_meant_is_refused(stages: list[Any], message: str, fix: str) -> None:
    with pytest.raises(PipelineError) as refused:
        Pipeline(*stages)
    assert message in refused.value.message
    assert fix in refused.value.hint


def test_a_stage_alone_does_not_run_and_says_what_does() -> None:
    with pytest.raises(
        PipelineError, match=r"RoE is one stage, and only .* run\n  fix: write Pipeline\(RoE\(...\)\).run\("
    ):
        RoE(4).run(TOY, [QUESTION], seed=0)


def test_the_same_refusals_by_operator_and_text() -> None:
    with pytest.raises(PipelineError, match="prompting goes inside choosing"):
        SelfConsistency(k=5) | ChainOfThought()
    with pytest.raises(PipelineError, match="two decoders"):
        Pipeline.parse("Greedy() | RoE(n=2) | Greedy()")
    with pytest.raises(PipelineError, match="parse reads text, got 5"):
        Pipeline.parse(5)  # type: ignore[arg-type]


def test_a_random_decoder_or_proposer_is_enough_for_a_vote() -> None:
    assert (RoE(2) | Greedy() | SelfConsistency(2)).decoder == Greedy()
    assert (RoE(1) | SelfConsistency(2)).decoder == Sample(temperature=0.7)


TOY = ToyModel()
QUESTION = "Q: 1 + 1\nA:"


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, r"run got an empty list of prompts\n.*at least one"),
        (QUESTION, {}, r"run takes a list of prompts, got a single string\n.*run\(lm, \[prompt\]\)"),
        (Prompt(text="x"), {}, r"run takes a list of prompts, got Prompt"),
        (None, {}, r"run takes a list of prompts, got None"),
        ([{"role": "user", "content": "x"}], {}, r"got the messages of one chat\n.*run\(lm, \[messages\]\)"),
        ([QUESTION], {"seed": -1}, "seed must be at least 0"),
        ([QUESTION], {"seed": 0.5}, "seed must be an integer"),
        ([QUESTION], {"seed": None}, "seed must be an integer"),
        ([QUESTION], {"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ([QUESTION], {"batch_size": 0}, "batch_size must be at least 1"),
        ([QUESTION], {"batch_size": "many"}, 'batch_size must be an integer or "auto"'),
        ([QUESTION], {"max_batch_tokens": 0}, r"run\(max_batch_tokens=0\): max_batch_tokens must be at least 1"),
        ([QUESTION], {"max_batch_tokens": None}, "max_batch_tokens must be an integer"),
        ([QUESTION], {"stop_strings": "\n"}, r"stop_strings must be a list of strings.*\n.*stop_strings=\["),
        ([QUESTION], {"stop_strings": ["\n", ""]}, "none of them empty"),
        ([QUESTION], {"stop_strings": [3]}, "stop_strings must be a list of strings"),
        ([QUESTION], {"stop_strings": 3}, "stop_strings must be a list of strings"),
        ([QUESTION], {"chat_template_kwargs": 5}, r"chat_template_kwargs must be a dict\n.*enable_thinking"),
    ],
)
def test_run_refuses_bad_arguments(prompts: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Pipeline(Greedy()).run(TOY, prompts, **options)


def test_run_refuses_prompts_that_are_none() -> None:
    with pytest.raises(PromptError, match="a prompt is a string or a list of chat messages, got 3"):
        Pipeline(Greedy()).run(TOY, [QUESTION, 3])  # type: ignore[list-item]


def test_a_model_that_is_not_ours_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"runs on a model of tokenscale, got <object.*\n.*ts.wrap\("):
        Pipeline(Greedy()).run(object(), [QUESTION])  # type: ignore[arg-type]


def test_missing_capabilities_are_refused_by_name() -> None:
    with pytest.raises(CapabilityError, match="it is a dense model"):
        Pipeline(RoE(4)).check(ToyModel(moe_layers=0))
    with pytest.raises(CapabilityError, match=r"Demanding\(\) needs telepathy, which toy lacks"):
        Pipeline(Demanding()).check(TOY)
    with pytest.raises(ArgumentError, match="tau has 2 entries"):
        Pipeline(RoE(4, tau=(0.1, 0.2))).run(TOY, [QUESTION])


@pytest.mark.parametrize("stage", [SelfConsistency(2), ChainOfThought()])
def test_stages_that_read_text_need_a_tokenizer(stage: Stage) -> None:
    mute = ToyModel(with_tokenizer=False)
    with pytest.raises(CapabilityError, match=r"reads text, and toy has no tokenizer\n.*ts.wrap\(model, tokenizer\)"):
        Pipeline(stage).run(mute, [Prompt(token_ids=(1, 2))])
    [result] = Pipeline(RoE(2)).run(mute, [Prompt(token_ids=(1, 2))], max_new_tokens=2)
    assert len(result.candidates) == 1
