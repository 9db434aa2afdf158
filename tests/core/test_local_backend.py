"""The local backend's side of the seam: queue, cancelling, events, refusals."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from tests.core.asks import NOISY, PROMPTS, ask
from tokenscale.core.decode import LocalBackend
from tokenscale.core.errors import ArgumentError, CapabilityError, ModelError, PromptError
from tokenscale.core.prompt import Prompt
from tokenscale.core.step_records import StepRecords
from tokenscale.models.toy import ToyModel
from tokenscale.testing import check_backend
from tokenscale.token_level.aggregators import MeanProbability
from tokenscale.token_level.decoders import Greedy, Sample
from tokenscale.token_level.plain import Plain
from tokenscale.token_level.roe import RoE


def test_the_backend_conforms(lm: ToyModel) -> None:
    prompts = [Prompt(token_ids=p) for p in PROMPTS[:3]]
    for size in (1, 2, 16):
        check_backend(lambda s=size: LocalBackend(lm, NOISY, MeanProbability(), Sample(1.0), batch_size=s), prompts)


@pytest.mark.parametrize("width", [None, 3])
def test_a_cancelled_ask_leaves_the_others_as_they_were(lm: ToyModel, beams: Any, width: int | None) -> None:
    decoder = Sample(1.0) if width is None else beams(width)
    asks = [ask(p, 4 + i, ("cancel", i), k=1 + i % 2) for i, p in enumerate(PROMPTS)]
    backend = LocalBackend(lm, NOISY, MeanProbability(), decoder, batch_size=4)
    tickets = [backend.submit(a) for a in asks]
    done = {c.ticket: c for c in backend.advance()}
    running = [t for t in tickets if t not in done]
    cancelled = {running[0], running[-1]}
    for ticket in cancelled:
        backend.cancel(ticket)
        backend.cancel(ticket)
    while completions := backend.advance():
        done |= {c.ticket: c for c in completions}
    assert set(done) == set(tickets) - cancelled
    for ticket, completion in done.items():
        other = LocalBackend(lm, NOISY, MeanProbability(), decoder, batch_size=4)
        other.submit(asks[ticket])
        assert other.advance()[0].candidates == completion.candidates


def test_cancelling_the_only_ask_ends_the_work(lm: ToyModel) -> None:
    backend = LocalBackend(lm, Plain(), MeanProbability(), Greedy(), batch_size=1)
    first, second = backend.submit(ask(new=20)), backend.submit(ask(PROMPTS[1]))
    backend.advance()
    backend.cancel(second)
    assert backend.advance() == []
    assert backend.hungry
    again = backend.submit(ask())
    assert len({first, second, again}) == 3
    assert backend.advance()[0].ticket == again


def test_a_backend_is_hungry_until_a_batch_waits(lm: ToyModel) -> None:
    backend = LocalBackend(lm, Plain(), MeanProbability(), Greedy(), batch_size=2)
    states = [backend.hungry]
    for _ in range(2):
        backend.submit(ask())
        states.append(backend.hungry)
    assert states == [True, True, False]


def test_tokens_are_told_as_they_are_decided(run: Any, beams: Any) -> None:
    told: list[tuple[int, int, int]] = []
    asks = [ask(p, 5, ("told", i), k=2) for i, p in enumerate(PROMPTS[:3])]
    asks.append(ask(decoder=beams(2), path=("silent",)))
    done = run(asks, Sample(1.0), batch_size=3, on_token=lambda *event: told.append(event))
    for ticket, completion in enumerate(done[:3]):
        for copy, found in enumerate(completion.candidates):
            assert tuple(token for t, c, token in told if (t, c) == (ticket, copy)) == found.token_ids
    assert not [event for event in told if event[0] == 3]


def test_a_search_tells_nothing_even_where_one_beam_is_all_there_is(run: Any, beams: Any) -> None:
    told: list[tuple[int, int, int]] = []
    only_the_end = ToyModel((), spelling="ab")
    run([ask((1, 2), 3)], beams(2), model=only_the_end, on_token=lambda *event: told.append(event))
    assert told == []


def test_bad_asks_are_refused_when_submitted(lm: ToyModel) -> None:
    backend = LocalBackend(lm, Plain(), MeanProbability(), Greedy(), batch_size=2)
    message = "the prompt has 24 tokens, and the context of toy holds 24\n  fix: shorten the prompt"
    with pytest.raises(PromptError, match=message):
        backend.submit(ask((1,) * 24, prefix_ids=(2,) * 4))
    assert backend.advance() == []
    bare = ToyModel(with_tokenizer=False)
    backend = LocalBackend(bare, Plain(), MeanProbability(), Greedy(), batch_size=2)
    with pytest.raises(CapabilityError, match="stop strings need a tokenizer"):
        backend.submit(ask(stop_strings=("a",)))


def test_bad_settings_are_refused_when_opened(lm: ToyModel) -> None:
    with pytest.raises(ArgumentError, match=r"LocalBackend\(batch_size=0\)"):
        LocalBackend(lm, Plain(), MeanProbability(), Greedy(), batch_size=0)
    with pytest.raises(CapabilityError, match="dense"):
        LocalBackend(ToyModel(moe_layers=0), RoE(4), MeanProbability(), Greedy(), batch_size=1)


@pytest.mark.parametrize("call", range(1, 30, 3))
def test_a_step_that_fails_half_way_says_why_and_leaves_nothing(
    lm: ToyModel, beams: Any, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """Some searches have new beams by then, and others have not: their caches fit neither."""
    backend = LocalBackend(lm, Plain(), MeanProbability(), beams(3), batch_size=4)
    calls, token = itertools.count(1), StepRecords.token

    def failing(self: StepRecords, *arguments: Any) -> Any:
        if next(calls) == call:
            raise ModelError("the model's logits are not numbers (NaN)", "check the weights")
        return token(self, *arguments)

    monkeypatch.setattr(StepRecords, "token", failing)
    tickets = [backend.submit(ask(p, 6)) for p in PROMPTS[:4]]
    with pytest.raises(ModelError, match="NaN"):
        backend.advance()
    for ticket in tickets:
        backend.cancel(ticket)
    assert backend.advance() == []
    backend.submit(ask())
    assert len(backend.advance()) == 1
