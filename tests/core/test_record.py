"""A growing candidate: how it ends, the text it becomes, and its traces."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import entr, log_softmax, softmax

from tokenscale.core.data import RoutingStats, Trace
from tokenscale.core.noise import Stream
from tokenscale.core.record import Record, TokenRecord
from tokenscale.core.step_records import entropy_and_disagreement
from tokenscale.core.strategy import Rows
from tokenscale.models.toy import ToyModel

PIECES = ("a", "b", "c", "ab", "bca")
LM = ToyModel(PIECES, spelling="")
END = 0


def token(ident: int, **changes: object) -> TokenRecord:
    base = TokenRecord(ident, -0.5, False, False, 2, RoutingStats(2, 1, 3, 1), (0.7, 0.1, 1.5), ())
    return replace(base, **changes)  # type: ignore[arg-type]


def record(ids: list[int], stop_strings: tuple[str, ...] = (), limit: int = 100) -> Record:
    return Record((1, 2), Stream((0,)), limit, stop_strings, tokens=[token(i) for i in ids])


def test_places_are_absolute() -> None:
    new, grown = record([]), record([3, 4])
    assert (new.last, new.position) == (2, 2)
    assert (grown.last, grown.position, grown.token_ids) == (4, 4, (3, 4))


def test_a_fork_grows_by_itself() -> None:
    one = record([])
    one.add(LM, token(3, log_prob=-0.25))
    other = one.fork()
    other.add(LM, token(4, log_prob=-2.0))
    assert (one.token_ids, other.token_ids) == ((3,), (3, 4))
    assert (one.log_prob, other.log_prob) == (-0.25, -2.25)


def test_the_end_token_comes_before_the_other_reasons() -> None:
    assert record([3, END], ("c",), limit=2).ending(LM) == "eos"
    assert record([1, 3], ("c",), limit=2).ending(LM) == "stop_string"
    assert record([1, 2], ("c",), limit=2).ending(LM) == "length"
    assert record([1, 2], ("c",), limit=3).ending(LM) is None


@pytest.mark.parametrize(
    ("ids", "stops", "text"),
    [
        ([1, 5], ("abca",), ""),  # spans two tokens
        ([3, 4, 4], ("cab",), ""),  # begins and ends on token boundaries
        ([2, 5], ("ca",), "bb"),  # ends inside a text, within one token
        ([2, 5], ("bc",), "b"),  # inside one token
        ([1, 2, 3], ("bc", "abc"), ""),  # the earliest of several
    ],
)
def test_stop_strings_are_found_across_tokens(ids: list[int], stops: tuple[str, ...], text: str) -> None:
    ended = record(ids, stops)
    assert ended.ending(LM) == "stop_string"
    assert ended.finish(LM, "stop_string").text == text


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=80), st.lists(st.text("abc", min_size=1, max_size=6), max_size=3)
)
def test_a_stop_string_ends_a_text_when_it_first_appears(ids: list[int], stops: list[str]) -> None:
    grown = record([], tuple(stops))
    for ident in ids:
        grown.tokens.append(token(ident))
        found = any(s in LM.decode(grown.token_ids) for s in stops)
        assert grown.ending(LM) == ("stop_string" if found else None)
        if found:
            break


def test_a_candidate_keeps_all_ids_and_the_text_before_its_end() -> None:
    ended = record([1, 2, END])
    ended.tokens[1] = token(2, near_tie=True, log_prob=-2.0)
    made = ended.finish(LM, "eos")
    assert (made.text, made.token_ids, made.log_probs) == ("ab", (1, 2, END), (-0.5, -2.0, -0.5))
    assert (made.finish_reason, made.near_ties, made.stream) == ("eos", 1, Stream((0,)))
    assert made.routing == RoutingStats(6, 3, 9, 3)
    assert made.trace == Trace((0.7,) * 3, (0.1,) * 3, (2,) * 3, (1.5,) * 3)


def test_an_end_token_with_a_text_of_its_own_is_left_out() -> None:
    class Newline(ToyModel):
        """A model whose end token is an ordinary piece."""

    lm = Newline(PIECES, spelling="")
    lm.eos_ids = frozenset({3})
    assert record([1, 2, 3]).ending(lm) == "eos"
    assert record([1, 2, 3]).finish(lm, "eos").text == "ab"


def test_without_tokenizer_there_is_no_text() -> None:
    lm = ToyModel(PIECES, spelling="", with_tokenizer=False)
    made = record([1, 2]).finish(lm, "length")
    assert (made.text, made.token_ids) == ("", (1, 2))


def test_without_traces_there_is_no_trace() -> None:
    plain = record([])
    plain.tokens.append(token(1, trace=None))
    assert plain.finish(LM, "length").trace is None


def test_a_text_is_cut_at_the_first_stop_string_of_all() -> None:
    cut = record([1, 2, 3], ("c", "ab")).finish(LM, "stop_string")
    assert (cut.text, cut.stopped_by) == ("", "ab")
    whole = record([1, 2, 3], ("d",)).finish(LM, "length")
    assert (whole.text, whole.stopped_by) == ("abc", "")


def test_entropy_and_disagreement_equal_scipy_and_ignore_padding() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(2, 3, 5)) * 3
    logits[0, 1, 2] = -np.inf
    valid = np.array([[True, True, False], [True, True, True]])
    logits[0, 2] = np.nan
    aggregate = log_softmax(random.normal(size=(2, 5)), -1)
    rows = Rows(torch.tensor(logits, dtype=torch.float32), torch.tensor(valid))
    entropy, disagreement = entropy_and_disagreement(rows, torch.tensor(aggregate, dtype=torch.float32))
    for b in range(2):
        probs = softmax(logits[b, valid[b]], -1)
        wanted = entr(probs.mean(0)).sum() - entr(probs).sum(-1).mean()
        assert disagreement[b].item() == pytest.approx(wanted, abs=1e-6)
        assert entropy[b].item() == pytest.approx(entr(np.exp(aggregate[b])).sum(), abs=1e-6)


def test_equal_rows_do_not_disagree() -> None:
    logits = torch.randn(1, 1, 7, generator=torch.Generator().manual_seed(0)).expand(1, 4, 7)
    _, disagreement = entropy_and_disagreement(Rows(logits, torch.ones(1, 4).bool()), logits[:, 0].log_softmax(-1))
    assert 0 <= disagreement.item() < 1e-6
