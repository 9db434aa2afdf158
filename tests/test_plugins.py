"""Names and references: what they find, what they refuse, and that they round-trip."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tokenscale import plugins
from tokenscale.core.errors import ArgumentError, PipelineError, UnknownNameError
from tokenscale.core.stage import Kind
from tokenscale.core.strategy import SequenceStrategy
from tokenscale.sequence_level.self_consistency import SelfConsistency
from tokenscale.token_level.decoders import Greedy
from tokenscale.token_level.roe import RoE

OWN = '''
from dataclasses import dataclass
from tokenscale.core.strategy import SequenceStrategy
from tokenscale.core.stage import Kind, Stage

@dataclass(frozen=True)
class First(SequenceStrategy):
    """The first of k. And more."""
    kind = Kind.CHOOSING
    k: int = 2
    def solve(self, ask):
        [candidates] = yield [ask]
        return candidates[:1]

class Bare(First):
    pass

@dataclass
class Soft(Stage):
    kind = Kind.CHOOSING

@dataclass(frozen=True)
class Hollow(SequenceStrategy):
    kind = Kind.CHOOSING

def helper(text):
    return text

NUMBER = 3
'''


@dataclass(frozen=True)
class Here(SequenceStrategy):
    """A strategy of this test file."""

    kind = Kind.CHOOSING

    def solve(self, ask):  # type: ignore[no-untyped-def]
        [candidates] = yield [ask]
        return candidates


@dataclass(frozen=True)
class Picky(SequenceStrategy):
    kind = Kind.CHOOSING
    k: int

    def __post_init__(self) -> None:
        if self.k > 3:
            raise ValueError("k above 3")
        _ = self.k + 1
        _ = {1: 0, 2: self.k.real, 3: 0}[self.k]

    def solve(self, ask):  # type: ignore[no-untyped-def]
        raise NotImplementedError


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Writes a file of strategies into the current folder, and makes references into it."""
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return "own.py:{}".format


def test_every_built_in_is_found_by_its_own_name() -> None:
    assert plugins.lookup("RoE") is RoE
    assert all(plugins.lookup(name) is cls and plugins.name_of(cls) == name for name, cls in plugins.BUILT_IN.items())


def test_an_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown strategy 'selfconsistancy'\n.*did you mean 'SelfConsistency'"):
        plugins.lookup("selfconsistancy")


def test_two_classes_of_one_name_are_refused() -> None:
    other = type("RoE", (RoE,), {"__module__": "elsewhere"})
    assert plugins.index([RoE, Greedy, RoE]) == {"RoE": RoE, "Greedy": Greedy}
    with pytest.raises(PipelineError, match=r"'RoE' stands for two classes, of .*\.roe and elsewhere"):
        plugins.index([RoE, other])


def test_the_listing_goes_from_the_innermost_kind_outwards() -> None:
    entries = plugins.listing()
    assert [e.kind.value for e in entries] == sorted(e.kind.value for e in entries)
    assert {e.name for e in entries} == set(plugins.BUILT_IN)
    for entry in entries:
        doc = " ".join(inspect.getdoc(plugins.BUILT_IN[entry.name]).split())  # type: ignore[union-attr]
        assert doc.startswith(entry.summary)
        assert entry.summary.endswith(".")
        assert ". " not in entry.summary


def test_a_reference_finds_a_class_once(own: Callable[[str], str], tmp_path: Path) -> None:
    first = plugins.lookup(own("First"))
    assert first.__name__ == "First"
    assert plugins.lookup(f"./{own('First')}") is first
    assert plugins.lookup(f"{tmp_path}/{own('First')}") is first
    assert plugins.name_of(first) == "own.py:First"
    assert plugins.build(first, {"k": 3}) == first(k=3)  # type: ignore[call-arg]


def test_outside_the_current_folder_a_reference_is_absolute(
    own: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = plugins.lookup(own("First"))
    monkeypatch.chdir("/")
    monkeypatch.chdir(sys.prefix)
    assert plugins.name_of(first) == f"{tmp_path.resolve().as_posix()}/own.py:First"


def test_a_reference_finds_functions_too(own: Callable[[str], str]) -> None:
    helper = plugins.load(own("helper"))
    assert callable(helper)
    assert plugins.name_of(helper) == "own.py:helper"


def test_a_file_that_is_imported_already_is_not_run_again() -> None:
    assert plugins.lookup(f"{__file__}:Here") is Here
    assert plugins.lookup(plugins.name_of(Here)) is Here


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Frist", r"unknown name 'Frist' in own.py\n.*did you mean 'First'"),
        ("Bare", r"own.py:Bare is not a frozen dataclass\n.*@dataclass\(frozen=True\)"),
        ("Soft", r"not a frozen dataclass"),
        ("Hollow", r"own.py:Hollow is abstract\n.*define solve"),
        ("helper", r"own.py:helper is not a strategy"),
        ("NUMBER", r"own.py:NUMBER is not a strategy"),
    ],
)
def test_what_cannot_stand_in_a_pipeline_is_refused(own: Callable[[str], str], name: str, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        plugins.lookup(own(name))


def test_files_that_cannot_be_loaded_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PipelineError, match=r"there is no file 'gone.py'\n.*relative to"):
        plugins.lookup("gone.py:Name")
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "failing.py").write_text("1 / 0\n")
    (tmp_path / "leaving.py").write_text("raise SystemExit(0)\n")
    errors = {"broken.py": "SyntaxError", "failing.py": "ZeroDivisionError", "leaving.py": "SystemExit"}
    for name, error in errors.items():
        # Twice: a failed load leaves nothing behind.
        for _ in range(2):
            with pytest.raises(PipelineError, match=rf"{name} cannot be loaded: {error}.*\n.*run `python {name}`"):
                plugins.lookup(f"{name}:Name")


def test_what_no_file_holds_has_no_name() -> None:
    @dataclass(frozen=True)
    class Local(SelfConsistency):
        pass

    for thing in (Local, lambda text: text, 3, type("Made", (), {})):
        with pytest.raises(PipelineError, match=r"has no text form\n.*at the top level of a file"):
            plugins.name_of(thing)


def test_arguments_are_checked_by_name() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown parameter 'claen_layers' in RoE\n.*'clean_layers'"):
        plugins.build(RoE, {"n": 4, "claen_layers": 1})
    with pytest.raises(PipelineError, match=r"RoE needs n, got tau\n.*RoE\(n=...\)"):
        plugins.build(RoE, {"tau": 0.3})


def test_errors_of_a_class_come_out_as_refusals() -> None:
    with pytest.raises(ArgumentError, match="n must be at least 1"):
        plugins.build(RoE, {"n": 0})
    with pytest.raises(PipelineError, match=r"Picky: k above 3\n.*check its k"):
        plugins.build(Picky, {"k": 4})
    with pytest.raises(PipelineError, match=r"Picky: .*not supported"):
        plugins.build(Picky, {"k": "four"})
    with pytest.raises(PipelineError, match=r"Picky: -1\n.*check its k"):
        plugins.build(Picky, {"k": -1})
