"""Streams: the pieces of a text are the text, nothing is shown that is taken back, and closing cancels."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tokenscale as ts
from tokenscale.core.streaming import Piece, Progress, TextStream
from tokenscale.models.toy import ToyModel

TOY = ToyModel()
PIECES = ("a", "b", "ab", "\n", "Q:", "x")
SPELLED = ToyModel(PIECES, spelling="")
END = 0
LIVE = [
    "Greedy()",
    "Sample(temperature=1.0)",
    "RoE(n=3, tau=1.0)",
    "RoE(n=3, tau=1.0) | Sample(temperature=1.0) | ChainOfThought()",
    'Constrained(regex="[0-9 +]{1,12}") | Sample(temperature=1.0)',
]
LATE = ["SelfConsistency(k=5)", "RoE(n=3, tau=1.0) | SelfConsistency(k=3)"]


@pytest.mark.parametrize("text", LIVE)
@pytest.mark.parametrize("seed", range(4))
def test_the_pieces_are_the_text_and_come_one_by_one(text: str, seed: int) -> None:
    pipe = ts.Pipeline.parse(text)
    *pieces, result = pipe.stream(TOY, "Q: 1 + 1?\nA:", seed=seed, max_new_tokens=24)
    assert all(isinstance(piece, Piece) for piece in pieces)
    assert "".join(piece.text for piece in pieces) == result.text
    assert result == pipe.run(TOY, ["Q: 1 + 1?\nA:"], seed=seed, max_new_tokens=24)[0]
    if len(result.candidates[0].token_ids) > 8:
        assert len(pieces) > 4


@pytest.mark.parametrize("text", LATE)
def test_a_choice_is_shown_at_the_end_and_its_progress_before(text: str) -> None:
    pipe = ts.Pipeline.parse(text)
    *progress, piece, result = pipe.stream(TOY, "Q: 1 + 1?\nA:", max_new_tokens=24)
    assert piece == Piece(result.text)
    assert all(isinstance(event, Progress) for event in progress)
    assert [p.ended for p in progress] == sorted({p.ended for p in progress})
    assert progress[-1] == Progress(result.cost.new_tokens, len(result.candidates))
    assert result == pipe.run(TOY, ["Q: 1 + 1?\nA:"], max_new_tokens=24)[0]


@given(
    st.lists(st.integers(1, len(PIECES)), max_size=30),
    st.lists(st.text("abQ:\nx", min_size=1, max_size=4), max_size=3),
)
def test_no_piece_is_taken_back(ids: list[int], stops: list[str]) -> None:
    """What was shown at any time is the beginning of the text that the candidate gets if it goes on or ends."""
    stream, shown = TextStream(SPELLED, stops), ""
    text = SPELLED.decode(ids)
    cuts = [place for stop in stops if (place := text.find(stop)) >= 0]
    final = text[: min(cuts)] if cuts else text
    for token in ids:
        stream.add(token)
        shown += stream.piece()
        assert final.startswith(shown)
    assert shown + stream.rest(final) == final


def test_half_characters_are_held_back() -> None:
    lm = ts.load("demo")
    ids = lm.encode(ts.Prompt(text="naïve 数学 ½"))
    stream, pieces = TextStream(lm, ()), []
    for token in ids:
        stream.add(token)
        pieces.append(stream.piece())
    text = lm.decode(ids)
    assert "".join(pieces) + stream.rest(text) == text
    assert "\ufffd" not in "".join(pieces)


def test_closing_a_stream_cancels(monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenscale.core.decode import LocalBackend

    cancelled = []
    monkeypatch.setattr(LocalBackend, "cancel", lambda self, ticket: cancelled.append(ticket))
    endless = ToyModel(suppressed_ids=(END,))
    stream = ts.Pipeline(ts.Sample(1.0)).stream(endless, "Q:", max_new_tokens=50)
    next(stream)
    stream.close()
    assert cancelled == [0]


def test_bad_input_is_refused_before_the_first_event() -> None:
    with pytest.raises(ts.ArgumentError, match=r"stream\(seed=-1\)"):
        ts.Pipeline(ts.Greedy()).stream(TOY, "Q:", seed=-1)
    with pytest.raises(ts.CapabilityError, match="RoE"):
        ts.Pipeline(ts.RoE(4)).stream(ToyModel(moe_layers=0), "Q:")
