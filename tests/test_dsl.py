"""The text form: exact round trips, and every wrong text refused with its place."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.pipeline_examples import Everything, pipelines, score
from tokenscale import dsl
from tokenscale.core.errors import PipelineError, UnknownNameError
from tokenscale.core.stage import Stage
from tokenscale.pipeline import Pipeline
from tokenscale.plugins import name_of
from tokenscale.sequence_level.chain_of_thought import ChainOfThought
from tokenscale.sequence_level.self_consistency import SelfConsistency
from tokenscale.token_level.aggregators import MeanLogit, MeanProbability
from tokenscale.token_level.decoders import Greedy, Sample
from tokenscale.token_level.plain import Plain
from tokenscale.token_level.roe import RoE

INF = float("inf")


@given(pipelines())
def test_text_round_trips(pipe: Pipeline) -> None:
    assert Pipeline.parse(repr(pipe)) == pipe
    assert repr(Pipeline.parse(repr(pipe))) == repr(pipe)
    assert hash(Pipeline.parse(repr(pipe))) == hash(pipe)


@given(pipelines())
def test_what_is_printed_without_references_is_python_too(pipe: Pipeline) -> None:
    if ".py:" not in repr(pipe):
        names = {c.__name__: c for c in (Plain, RoE, MeanProbability, MeanLogit, Greedy, Sample, ChainOfThought)}
        names["SelfConsistency"] = SelfConsistency  # type: ignore[assignment]
        evaluated = eval(repr(pipe), {**names, "inf": INF})
        assert Pipeline(evaluated) == pipe


@pytest.mark.parametrize(
    ("text", "stages"),
    [
        ("RoE(4)", [RoE(4)]),
        ("RoE(4, 0.5, clean_layers=0)", [RoE(4, 0.5, 0)]),
        ("RoE(n=4, tau=[0.1, 0.2],)", [RoE(4, (0.1, 0.2))]),
        ("RoE(n=4, tau=(0.1,))", [RoE(4, (0.1,))]),
        ("RoE(n=4, tau=(.1))", [RoE(4, 0.1)]),
        ("RoE(n=4, tau=1e-1)", [RoE(4, 0.1)]),
        ("  RoE ( n = +4 )\n|\tGreedy ( ) ", [RoE(4), Greedy()]),
        ("Sample(top_k=None)", [Sample()]),
        ("ChainOfThought('it\\'s \\x41\\u00e9\\U0001f600\\n\\\\ \"')", [ChainOfThought("it's Aé\U0001f600\n\\ \"")]),
        ("ChainOfThought(\"it's\", '')", [ChainOfThought("it's")]),
        ("ChainOfThought('')".replace("''", "'('"), [ChainOfThought("(")]),
        (f"{name_of(Everything)}(Greedy(), flag=True)", [Everything(Greedy(), flag=True)]),
        (f"'{name_of(Everything)}'(RoE(2), (1, (True, [])))", [Everything(RoE(2), (1, (True, ())))]),
        (f"{name_of(Everything)}(Plain(), rest={name_of(score)})", [Everything(Plain(), rest=score)]),
        (
            f"{name_of(Everything)}(Plain(), (-inf, +inf, -2.))",
            [Everything(Plain(), (-float("inf"), float("inf"), -2))],
        ),
    ],
)
def test_what_may_be_written(text: str, stages: list[Stage]) -> None:
    assert dsl.parse(text) == stages


@pytest.mark.parametrize(
    ("text", "message", "place", "fix"),
    [
        ("", "the text of a pipeline is empty", "", "write Greedy()"),
        ("  \n", "the text of a pipeline is empty", "", "write Greedy()"),
        ("SelfConsistancy(k=5)", "unknown strategy 'SelfConsistancy'", "column 1", "did you mean 'SelfConsistency'"),
        ("RoE(n=4, tua=0.3)", "unknown parameter 'tua' in RoE", "column 10", "did you mean 'tau'"),
        ("Greedy(x=1)", "unknown parameter 'x' in Greedy", "column 8", "write Greedy(), which takes no parameters"),
        ("RoE(n=4", "expected ')', got the end", "column 8", "close the bracket"),
        ("RoE(n=4 tau=1)", "expected ')', got 'tau'", "column 9", "separate arguments by ','"),
        ("RoE n=4", "expected '(', got 'n'", "column 5", "RoE(...)"),
        ("RoE(n=4))", "expected '|' or the end, got ')'", "column 9", "remove it"),
        ("RoE(n=4) Greedy()", "expected '|' or the end, got 'Greedy'", "column 10", "join stages by |"),
        ("RoE(n=4) |", "expected a stage, got the end", "column 11", "RoE(n=4)"),
        ("| Greedy()", "expected a stage, got '|'", "column 1", "RoE(n=4)"),
        ("RoE(n=)", "expected a value, got ')'", "column 7", "write a number"),
        ("RoE(n=auto)", "auto is not a value", "column 7", 'put text in quotes: "auto"'),
        ("Sample(top_k=none)", "none is not a value", "column 14", "did you mean 'None'"),
        ("SelfConsistency(k=RoE)", "RoE is not a value", "column 19", "RoE(...) with brackets"),
        ("Sample(1, 2, 0.5, 0.5, 1)", "Sample has no more than 4 parameters", "column 24", "temperature, top_k"),
        ("Greedy(1)", "Greedy has no more than 0 parameters", "column 8", "write Greedy()"),
        ("RoE(n=4, n=5)", "n of RoE is given twice", "column 10", "keep one"),
        ("RoE(4, n=5)", "n of RoE is given twice", "column 8", "keep one"),
        ("RoE(n=4, 0.3)", "a value without a name behind one with a name", "column 10", "name=value"),
        ("RoE(tau=0.3)", "RoE needs n, got tau", "column 1", "RoE(n=...)"),
        ("Greedy() | RoE(n=0)", "RoE(n=0): n must be at least 1", "column 12", "write n=1"),
        ("RoE(n=4, tau=nan)", "tau must be a finite number", "column 1", "write tau="),
        ("SelfConsistency(k=0)", "SelfConsistency(k=0): k must be at least 1", "column 1", "write k=1"),
        ("ChainOfThought('a)", 'unexpected "\'"', "column 16", "close the string"),
        ("ChainOfThought('\\d')", "a backslash that escapes nothing", "column 16", "two of them"),
        (
            "ChainOfThought('a', examples='\\\n')",
            "a backslash that escapes nothing",
            "line 1, column 30",
            "two of them",
        ),
        ("Greedy()\n| Sampel()", "unknown strategy 'Sampel'", "line 2, column 3", "did you mean 'Sample'"),
        ("RoE(n=4) & Greedy()", "unexpected '&'", "column 10", "joined by |"),
        ("gone.py:Mine()", "there is no file 'gone.py'", "column 1", "path relative"),
        ("RoE(n=" + "9" * 5000 + ")", "a number with too many digits", "column 7", "shorter"),
        ("RoE(" + "(" * 30, "more than 20 brackets in brackets", "column 25", "flatter"),
        ("RoE(" * 30, "more than 20 brackets in brackets", "column 85", "flatter"),
    ],
)
def test_wrong_texts_are_refused_with_their_place(text: str, message: str, place: str, fix: str) -> None:
    with pytest.raises(PipelineError) as refused:
        Pipeline.parse(text)
    assert message in refused.value.message
    assert fix in refused.value.hint
    if place:
        assert f"at {place}\n" in refused.value.message


def test_the_caret_points_at_the_place() -> None:
    with pytest.raises(UnknownNameError) as refused:
        Pipeline.parse("RoE(n=4) |\n  Sample(temprature=0.7)")
    _, line, caret = refused.value.message.split("\n")
    assert line == "    Sample(temprature=0.7)"
    assert line[caret.index("^") :].startswith("temprature")


def test_of_a_long_line_the_part_around_the_place_is_shown() -> None:
    with pytest.raises(PipelineError) as refused:
        Pipeline.parse(f"ChainOfThought('{'a' * 500}') | Nothing() | ChainOfThought('{'b' * 500}')")
    _, line, caret = refused.value.message.split("\n")
    assert line[caret.index("^") :].startswith("Nothing()")
    assert len(line) < 120


def test_what_has_no_text_form_prints_and_is_refused() -> None:
    pipe = Pipeline(Everything(Plain(), rest=lambda text: text))
    with pytest.raises(PipelineError):
        Pipeline.parse(repr(pipe))
    with pytest.raises(PipelineError, match=r"Everything.rest: .*has no text form\n.*path/to/file.py:<lambda>"):
        pipe.to_spec()


def test_a_path_with_blanks_stands_in_quotes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my own.py").write_text(
        "from dataclasses import dataclass\n"
        "from tokenscale.core.strategy import Kind, SequenceStrategy\n"
        "@dataclass(frozen=True)\n"
        "class Mine(SequenceStrategy):\n"
        "    kind = Kind.CHOOSING\n"
        "    rest: object = None\n"
        "    def solve(self, ask):\n"
        "        yield []\n"
        "def f(): pass\n"
    )
    monkeypatch.chdir(tmp_path)
    pipe = Pipeline.parse("'my own.py:Mine'()")
    assert repr(pipe) == "'my own.py:Mine'()"
    assert Pipeline.parse(repr(pipe)) == pipe == Pipeline.from_spec(pipe.to_spec())
    # As an argument such a reference would read as text, so it prints as what parse refuses.
    holding = Pipeline.from_spec([{"my own.py:Mine": {"rest": {"ref": "my own.py:f"}}}])
    assert Pipeline.from_spec(holding.to_spec()) == holding
    with pytest.raises(PipelineError):
        Pipeline.parse(repr(holding))


TEXTS = [
    "RoE(n=4, tau=0.3) | SelfConsistency(k=5)",
    "ChainOfThought(trigger='Let\\'s think', examples=\"Q: 1\\n\") | RoE(4, tau=(0.1, 0.2, [])) | SelfConsistency(k=5)",
    "Plain() | MeanLogit() | Sample(temperature=1e-1, top_k=None, top_p=.9) | SelfConsistency(3, 'letter')",
    "tests/gone.py:Mine(rest=RoE(n=2), other=tests/gone.py:f) | Greedy()",
]
PIECES = [
    *"()[]|,='\"\\ \n.:+-0123456789eEtTnN_aµ٤é\x00\u2028",
    "inf",
    "nan",
    "True",
    "None",
    ".py:",
    "RoE",
    "k=",
    "9" * 5000,
]


def mutated(text: str, chance: random.Random) -> str:
    """The text after one to four random edits: pieces put in, taken out, replaced, doubled or moved."""
    for _ in range(chance.randint(1, 4)):
        start = chance.randint(0, len(text))
        end = min(len(text), start + chance.randint(0, 6))
        piece = chance.choice(["", chance.choice(PIECES), text[start:end] * 2])
        text = text[:start] + piece + text[end:]
        if chance.random() < 0.2:
            cut = chance.randint(0, len(text))
            text = text[cut:] + text[:cut]
    return text


def refusal(text: str) -> PipelineError | None:
    """What parse refuses a text with; None for one that it reads, which then round-trips."""
    try:
        pipe = Pipeline.parse(text)
    except PipelineError as error:
        return error
    assert Pipeline.parse(repr(pipe)) == pipe
    return None


def test_a_thousand_mutations_are_read_or_refused() -> None:
    chance = random.Random(0)
    refusals = [refusal(mutated(chance.choice(TEXTS), chance)) for _ in range(1000)]
    assert all(error is None or error.hint for error in refusals)
    assert 5 < refusals.count(None) < 500


@given(st.text(max_size=40) | st.lists(st.sampled_from(PIECES)).map("".join))
def test_any_text_is_read_or_refused(text: str) -> None:
    error = refusal(text)
    assert error is None or error.hint


def test_a_mapping_is_told_to_stand_in_quotes() -> None:
    with pytest.raises(PipelineError, match=r"(?s)unexpected '\{'.*fix: put a mapping in quotes: json_schema='\{"):
        dsl.parse('Constrained(json_schema={"type": "integer"})')
