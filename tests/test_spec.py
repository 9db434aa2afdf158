"""Pipelines as plain values: exact round trips, and every wrong spec refused with its stage."""

from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import given

from tests.pipeline_examples import Everything, pipelines, score
from tokenscale.core.errors import PipelineError
from tokenscale.pipeline import Pipeline
from tokenscale.plugins import name_of
from tokenscale.token_level.decoders import Greedy
from tokenscale.token_level.plain import Plain
from tokenscale.token_level.roe import RoE


@given(pipelines())
def test_specs_round_trip_through_json_and_yaml(pipe: Pipeline) -> None:
    spec = pipe.to_spec()
    assert Pipeline.from_spec(spec) == pipe
    assert Pipeline.from_spec(json.loads(json.dumps(spec))) == pipe
    assert Pipeline.from_spec(yaml.safe_load(yaml.safe_dump(spec))) == pipe


def test_a_function_of_a_file_is_named() -> None:
    pipe = Pipeline(Everything(Plain(), rest=score))
    [written] = pipe.to_spec()
    assert written[name_of(Everything)]["rest"] == {"ref": name_of(score)}  # type: ignore[index]
    assert f"rest={name_of(score)}" in repr(pipe)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("RoE(n=4)", r"a spec is a list of stages, got 'RoE\(n=4\)'"),
        ({"RoE": {"n": 4}}, "a spec is a list of stages"),
        ([], "a pipeline without stages"),
        (["RoE"], "a stage is a mapping from one name to its arguments, got 'RoE', in stage 1 of the spec"),
        ([{"RoE": {"n": 4}, "Greedy": {}}], "a mapping from one name"),
        ([{"Greedy": None}, {"RoE": 4}], "the arguments of RoE are a mapping, got 4, in stage 2"),
        ([{"Reo": {}}], r"unknown strategy 'Reo', in stage 1 of the spec\n.*did you mean 'RoE'"),
        ([{"RoE": {"n": 4, "tua": 1}}], r"unknown parameter 'tua' in RoE, in stage 1.*\n.*did you mean 'tau'"),
        ([{"RoE": {}}], "RoE needs n, got nothing"),
        ([{"RoE": {"n": 0}}], "n must be at least 1, in stage 1"),
        ([{"RoE": {"n": {1}}}], r"\{1\} has no place in a spec"),
        ([{"RoE": {"n": {"ref": "gone.py:f"}}}], "there is no file 'gone.py'"),
        ([{"RoE": {"n": {}}}], "a mapping from one name"),
    ],
)
def test_wrong_specs_are_refused_with_the_stage(spec: object, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        Pipeline.from_spec(spec)


def test_a_spec_may_leave_arguments_out() -> None:
    assert Pipeline.from_spec([{"Greedy": None}, {"RoE": {"n": 4}}]) == RoE(n=4) | Greedy()


def test_a_spec_that_holds_itself_is_refused() -> None:
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(PipelineError, match="more than 20 values in values"):
        Pipeline.from_spec([{"RoE": {"n": 4, "tau": endless}}])
