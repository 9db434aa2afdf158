"""Which answers vote together: by normal form, and by math-verify in processes that may hang or die."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenscale.core.errors import CapabilityError, UnknownNameError
from tokenscale.sequence_level.answers import KINDS, equality, extract, groups, judge, same

STAND_IN = "tests.sequence_level.slow_worker"


@pytest.fixture(scope="module")
def stand_in() -> Iterator[judge.Judge]:
    """A judge whose processes start at once and are given three seconds, enough for a busy machine."""
    made = judge.Judge(workers=2, seconds=3.0, module=STAND_IN)
    yield made
    made.close()


@pytest.fixture(scope="module")
def library() -> Iterator[judge.Judge]:
    """A judge with one process of the library itself, that is given time: importing it takes seconds."""
    pytest.importorskip("math_verify", reason="math-verify is not installed: pip install 'tokenscale[math]'")
    made = judge.Judge(workers=1, seconds=60.0)
    yield made
    made.close()


def processes(of: judge.Judge) -> list[int | None]:
    return [worker._process and worker._process.pid for worker in of._workers]


answers = st.lists(st.none() | st.sampled_from(["1", "2", "x", "+x", "x+", "yes"]))


@given(answers, st.sampled_from(sorted(set(KINDS) - {"math-verify"})))
def test_groups_are_the_classes_of_equal_normal_forms(drawn: list[str | None], kind: str) -> None:
    found = groups(drawn, kind)
    assert sorted(place for group in found for place in group) == [i for i, a in enumerate(drawn) if a is not None]
    assert all(len({drawn[place] for place in group}) == 1 for group in found)
    assert len(found) == len(set(drawn) - {None})
    assert found == sorted(sorted(group) for group in found)


@given(answers, st.randoms(use_true_random=False))
def test_judged_groups_do_not_depend_on_the_order(
    stand_in: judge.Judge, drawn: list[str | None], random: object
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(equality, "shared", lambda: stand_in)
        order = list(range(len(drawn)))
        random.shuffle(order)  # type: ignore[attr-defined]
        shuffled = groups([drawn[i] for i in order], "math-verify")
        found = groups(drawn, "math-verify")
    assert sorted(sorted(order[place] for place in group) for group in shuffled) == found
    # What the stand-in finds equal: by hand, "x", "+x" and "x+" are one answer.
    classes = {"x": "x", "+x": "x", "x+": "x"}
    assert [{classes.get(drawn[p], drawn[p]) for p in group} for group in found] == [  # type: ignore[arg-type]
        {name} for name in dict.fromkeys(classes.get(a, a) for a in drawn if a is not None)
    ]


class Neighbours:
    """A judge whose "equal" is not transitive: numbers that differ by one at most."""

    def equal(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        return [abs(int(one) - int(other)) <= 1 for one, other in pairs]


@pytest.mark.parametrize("drawn", list(permutations(["1", "2", "3", "4"])))
def test_groups_are_around_the_shortest_form_whatever_the_order(
    drawn: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(equality, "shared", Neighbours)
    found = groups(drawn, "math-verify")
    assert sorted(sorted(drawn[place] for place in group) for group in found) == [["1", "2"], ["3", "4"]]
    assert [min(group) for group in found] == sorted(min(group) for group in found)


def test_none_is_the_same_as_nothing() -> None:
    assert same("1", "1", "number")
    assert not same("1", "2", "number")
    assert not same(None, None, "number")
    assert not same("1", None, "math")
    assert groups([None, None], "text") == groups([], "text") == []


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="unknown kind of answer 'maths'"):
        groups(["1"], "maths")


def test_a_hung_process_is_replaced_and_its_pair_is_unequal(stand_in: judge.Judge) -> None:
    assert stand_in.equal([("a", "a+")]) == [True]
    before = processes(stand_in)
    started = time.monotonic()
    assert stand_in.equal([("hang", "b"), ("b", "b+"), ("c", "d")]) == [False, True, False]
    assert 3.0 <= time.monotonic() - started < 60.0
    # The hung one is gone; the next pairs get a verdict, and what was judged is not asked again.
    assert stand_in.equal([("e", "e+"), ("f", "f+")]) == [True, True]
    assert processes(stand_in) != before
    started = time.monotonic()
    assert stand_in.equal([("b", "hang")]) == [False]
    assert time.monotonic() - started < 3.0


def test_a_dead_process_is_replaced(stand_in: judge.Judge) -> None:
    assert stand_in.equal([("die", "a"), ("die", "b"), ("die", "c")]) == [False] * 3
    assert stand_in.equal([("g", "g+")]) == [True]
    for worker in stand_in._workers:  # killed from outside, between two pairs
        if worker._process is not None:
            worker._process.kill()
            worker._process.wait()
    assert stand_in.equal([("h", "h+"), ("i", "i+")]) == [True, True]


def test_no_more_processes_start_than_are_needed() -> None:
    made = judge.Judge(workers=3, seconds=60.0, module=STAND_IN)
    assert processes(made) == [None] * 3
    assert [made.equal([pair]) for pair in (("a", "b"), ("a", "c"))] == [[False]] * 2
    running = [worker._process for worker in made._workers if worker._process is not None]
    assert len(running) == 1
    made.close()
    assert running[0].poll() is not None


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "KEPT_VERDICTS", 2)
    made = judge.Judge(workers=1, seconds=60.0, module=STAND_IN)
    for letter in "abcdef":
        assert made.equal([(letter, f"{letter}+"), (letter, "z")]) == [True, False]
        assert len(made._verdicts) <= 4
    made.close()


def test_a_process_that_does_not_start_is_named() -> None:
    made = judge.Judge(workers=1, seconds=1.0, module="tests.sequence_level.no_such_worker")
    with pytest.raises(CapabilityError, match=r"math-verify does not start\n  fix: run `.*no_such_worker`"):
        made.equal([("a", "b")])
    made.close()


def test_the_missing_library_is_named_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "find_spec", lambda name: None)
    with pytest.raises(CapabilityError, match=r"not installed\n  fix: pip install 'tokenscale\[math\]'"):
        judge.Judge()


EQUAL = [
    ("x+1", "1+x", True),
    (r"\frac{1}{2}x", "0.5x", True),
    (r"2\sqrt{2}", r"\sqrt{8}", True),
    (r"\{1,2\}", r"\{2,1\}", True),
    ("(x-1)(x+1)", "x^2-1", True),
    ("(1,2)", "(1,2]", False),
    ("2x+1", "2y+1", False),
    (r"\text{evelyn}", r"\text{bob}", False),
    ("2", "3", False),
]


def test_math_verify_decides(library: judge.Judge) -> None:
    assert library.equal([(one, other) for one, other, _ in EQUAL]) == [equal for *_, equal in EQUAL]
    assert library.equal([(other, one) for one, other, _ in EQUAL]) == [equal for *_, equal in EQUAL]


def test_answers_equal_by_math_verify_vote_together(library: judge.Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equality, "shared", lambda: library)
    texts = [r"\boxed{x + 1}", r"\boxed{1 + x}", "no idea at all", r"\boxed{3x}", r"The answer is $\frac{2x+2}{2}$."]
    found = [extract(text, "math-verify") for text in texts]
    assert groups(found, "math-verify") == [[0, 1, 4], [3]]
    assert groups(found, "math") == [[0], [1], [3], [4]]


@pytest.mark.slow
def test_math_verify_hangs_and_is_replaced() -> None:
    pytest.importorskip("math_verify", reason="math-verify is not installed: pip install 'tokenscale[math]'")
    made = judge.Judge(workers=1, seconds=10.0)
    assert made.equal([("9^{9^{9^{9}}}", "3"), ("x+1", "1+x")]) == [False, True]
    made.close()


def test_one_judge_is_shared_and_a_fork_gets_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "find_spec", lambda name: object())
    first = judge.shared()
    assert judge.shared() is first
    monkeypatch.setattr("os.getpid", lambda: -1)
    assert judge.shared() is not first
