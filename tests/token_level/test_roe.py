"""RoE against a sequential reference: one sample after the other, from nothing but token ids."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenscale.core.data import Ask, Candidate, RoutingStats
from tokenscale.core.decode import LocalBackend
from tokenscale.core.errors import ArgumentError, CapabilityError
from tokenscale.core.model import ROUTING_NOISE
from tokenscale.core.noise import ROUTING_DOMAIN, RowNoiseReader, Stream
from tokenscale.core.plan import Routing, RowPlan
from tokenscale.core.prompt import Prompt
from tokenscale.core.strategy import Decoder
from tokenscale.models.toy import ToyModel
from tokenscale.models.toy_parts import Choosing
from tokenscale.testing import check_proposer
from tokenscale.token_level.aggregators import MeanProbability
from tokenscale.token_level.decoders import Greedy, Sample
from tokenscale.token_level.plain import Plain
from tokenscale.token_level.roe import RoE

LM = ToyModel(("a", "b", "1"), spelling="", moe_layers=4, experts=5, width=6, context_length=40, sharpness=2.0)
LAYERS, EXPERTS = 4, 5
STREAM = Stream((0, "roe"))


def reference(roe: RoE, ids: Sequence[int], stream: Stream, lm: ToyModel = LM) -> np.ndarray:
    """log of (1/n) sum_i softmax(z_i), float64: the noise of the last token's position, one sample at a time."""
    position, layers = len(ids) - 1, lm.shape.moe_layers
    taus = roe.tau if isinstance(roe.tau, tuple) else (roe.tau,) * layers
    taus = [t if roe.clean_layers <= layer < layers - roe.clean_layers else 0.0 for layer, t in enumerate(taus)]
    reader = RowNoiseReader(stream, ROUTING_DOMAIN, max(roe.n - 1, 1), layers, lm.shape.experts)
    uniforms = reader.at(position).astype(np.float64)
    total = np.zeros(lm.vocab_size)
    for i in range(roe.n):
        shift = np.zeros((layers, lm.shape.experts))
        if i > 0:
            shift = np.array(taus)[:, None] * -np.log(-np.log1p(-uniforms[i - 1]))
        choosing = Choosing(shift, np.ones(layers, np.bool_), Routing(), None)
        # A cache of its own for every sample: the clean keys of all tokens but the last.
        past = lm.prefill([ids[:-1]]).sequences[0].past
        logits = lm._logits(lm._forward(past, ids[-1], choosing).hidden[-1])
        total += np.exp(logits) / np.exp(logits).sum()
    return np.log(total / roe.n)


def decode(roe: Any, asks: Sequence[Ask], decoder: Decoder, batch_size: int = 16, lm: ToyModel = LM) -> list[Candidate]:
    backend = LocalBackend(lm, roe, MeanProbability(), decoder, batch_size=batch_size)
    tickets = [backend.submit(ask) for ask in asks]
    done: dict[int, Candidate] = {}
    while completions := backend.advance():
        done |= {c.ticket: c.candidates[0] for c in completions}
    return [done[t] for t in tickets]


def asks(count: int, new: int = 8) -> list[Ask]:
    prompts = [(1 + i % 3, 2, 3)[: 1 + i % 3] * (1 + i % 2) for i in range(count)]
    return [Ask(Prompt(token_ids=p), STREAM.child(i), new) for i, p in enumerate(prompts)]


ROES = [
    RoE(2, 0.3),
    RoE(5, 0.5),
    RoE(4, 1.0, clean_layers=0),
    RoE(3, (0.9, 0.1, 0.7, 0.9)),
    RoE(8, (0.0, 2.0, 0.0, 0.5), clean_layers=0),
]


@pytest.mark.parametrize("roe", ROES, ids=repr)
@pytest.mark.parametrize("decoder", [Greedy(), Sample(1.0)])
def test_decoding_equals_the_sequential_reference(roe: RoE, decoder: Decoder) -> None:
    """Batched, with prompts of different lengths that join and leave: every log-probability within 1e-5."""
    wanted = asks(7)
    for ask, found in zip(wanted, decode(roe, wanted, decoder, batch_size=3), strict=True):
        ids = list(ask.prompt.token_ids or ())
        for token, log_prob in zip(found.token_ids, found.log_probs, strict=True):
            exact = reference(roe, ids, ask.stream.child(0))
            assert log_prob == pytest.approx(exact[token], abs=1e-5)
            if decoder == Greedy():
                assert token == exact.argmax()
            ids.append(token)


@pytest.mark.parametrize("roe", [*ROES, RoE(1), RoE(4, 0), RoE(4, (0.0,) * 4)], ids=repr)
def test_it_conforms(roe: RoE) -> None:
    check_proposer(roe, LM)


@pytest.mark.parametrize("roe", [RoE(1), RoE(1, 1.0, 0), RoE(8, 0), RoE(8, (0, 0, 0, 0))], ids=repr)
@pytest.mark.parametrize("decoder", [Greedy(), Sample(1.0)])
def test_without_noise_it_is_the_model_itself(roe: RoE, decoder: Decoder) -> None:
    assert not roe.random
    found, plain = (decode(p, asks(5), decoder) for p in (roe, Plain()))
    assert found == plain
    assert all(c.cost.rows == len(c.token_ids) for c in found)


@settings(max_examples=25)
@given(st.integers(2, 4), st.integers(1, 4), st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_samples_of_a_small_n_are_the_first_of_a_large_one(n: int, more: int, ids: list[int]) -> None:
    few, many = (
        RoE(k, 0.8).start(LM, [tuple(ids)], [STREAM]).propose(torch.tensor(ids[-1:]))[0].logits for k in (n, n + more)
    )
    assert torch.equal(many[:, :n], few)


def test_sample_0_is_clean() -> None:
    noise = RoE(6, 1.0).routing_noise(LM)
    plan = RowPlan(6, noise.step([noise.reader(STREAM)], [2]))
    rows, _ = RoE(6, 1.0).start(LM, [(1, 2, 3)], [STREAM]).propose(torch.tensor([3]))
    step = LM.step(LM.prefill([(1, 2)]), torch.tensor([3]), plan)
    assert torch.equal(step.logits, rows.logits)
    wanted = torch.from_numpy(LM.exact_log_probs((1, 2, 3))).float()
    torch.testing.assert_close(rows.logits[0, 0].log_softmax(-1), wanted, rtol=0, atol=1e-6)
    assert step.changed is not None
    assert not step.changed[:, 0].any()
    assert step.changed[:, 1:].any()


def test_noise_depends_on_the_position_in_the_text_alone() -> None:
    """The same token at the same place, reached by a prompt or by steps, gets the same noise."""
    roe, ids = RoE(4, 1.0), (1, 2, 3, 1, 2)
    stepped = roe.start(LM, [ids[:1]], [STREAM])
    for token in ids:
        rows, _ = stepped.propose(torch.tensor([token]))
    prefilled = roe.start(LM, [ids], [STREAM]).propose(torch.tensor(ids[-1:]))[0]
    assert torch.equal(rows.logits, prefilled.logits)


def test_clean_layers_leave_the_noise_of_the_others_as_it_was() -> None:
    one = RoE(4, (0.0, 0.7, 0.7, 0.0), clean_layers=0)
    rows = [r.start(LM, [(1, 2)], [STREAM]).propose(torch.tensor([2]))[0].logits for r in (one, RoE(4, 0.7))]
    assert torch.equal(rows[0], rows[1])


def test_clean_layers_make_no_noisy_choices() -> None:
    started = RoE(64, 3.0, clean_layers=1).start(LM, [(1, 2)], [STREAM])
    noise = RoE(64, 3.0, clean_layers=1).routing_noise(LM)
    step = LM.step(LM.prefill([(1,)]), torch.tensor([2]), RowPlan(64, noise.step([noise.reader(STREAM)], [1])))
    assert step.changed is not None
    assert step.changed.any(1)[0].tolist() == [False, True, True, False]
    _, [work] = started.propose(torch.tensor([2]))
    assert work.choices.tolist() == [63 * 2]
    assert work.changed.tolist() == [int(step.changed.sum())]


def test_tau_of_every_layer() -> None:
    assert RoE(4).taus(5) == (0.0, 0.3, 0.3, 0.3, 0.0)
    assert RoE(4, (1, 2, 3, 4), clean_layers=1).taus(4) == (0.0, 2.0, 3.0, 0.0)
    assert RoE(4, 1, clean_layers=0).taus(2) == (1.0, 1.0)
    assert RoE(4, 1, clean_layers=3).taus(4) == (0.0,) * 4


def test_more_noise_changes_more_choices() -> None:
    shares = []
    for tau in (0.05, 0.3, 2.0):
        found = decode(RoE(8, tau), asks(4), Greedy())
        shares.append(sum((c.routing for c in found), RoutingStats()).changed_share)
    assert 0 < shares[0] < shares[1] < shares[2] < 1


def test_equal_values_make_equal_parts() -> None:
    assert RoE(4, 1) == RoE(4, 1.0)
    assert repr(RoE(4, 1)) == "RoE(n=4, tau=1.0, clean_layers=1)"
    assert RoE(4, [0.1, 0.2]) == RoE(4, (0.1, 0.2))  # type: ignore[arg-type]
    assert hash(RoE(4, [0.1, 0.2])) == hash(RoE(4, (0.1, 0.2)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, r"RoE\(n=0\): n must be at least 1\n  fix: write n=1, or more"),
        ({"n": -3}, "n must be at least 1"),
        ({"n": 2.0}, r"RoE\(n=2.0\): n must be an integer"),
        ({"n": True}, "n must be an integer"),
        ({"n": 4, "tau": -0.1}, r"RoE\(tau=-0.1\): tau must not be negative\n  fix: write tau=0.3"),
        ({"n": 4, "tau": math.nan}, r"RoE\(tau=nan\): tau must be a finite number\n  fix: write tau=0.3"),
        ({"n": 4, "tau": math.inf}, r"RoE\(tau=inf\): tau must be a finite number"),
        ({"n": 4, "tau": "0.3"}, r"there is no profile '0.3'\n  fix: name a profile .* or give numbers: tau=0.3"),
        ({"n": 4, "tau": None}, "tau must be a finite number"),
        ({"n": 4, "tau": (0.1, -1)}, r"RoE\(tau=-1\): tau must not be negative"),
        ({"n": 4, "tau": (0.1, math.nan)}, "tau must be a finite number"),
        ({"n": 4, "tau": ()}, "tau is empty\n  fix: write tau=0.3, or one number per MoE layer"),
        ({"n": 4, "clean_layers": -1}, r"RoE\(clean_layers=-1\): clean_layers must be at least 0"),
        ({"n": 4, "clean_layers": 0.5}, "clean_layers must be an integer"),
    ],
)
def test_bad_parameters_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        RoE(**options)


def test_a_dense_model_is_refused_by_name() -> None:
    dense = ToyModel(moe_layers=0)
    with pytest.raises(
        CapabilityError, match="dense toy does not allow: it is a dense model, without routers"
    ) as error:
        RoE(4).check(dense)
    assert "Greedy()" in error.value.hint
    assert "SelfConsistency" in error.value.hint
    with pytest.raises(CapabilityError, match="dense toy"):
        RoE(4).start(dense, [(1,)], [STREAM])
    unknown = ToyModel()
    unknown.capabilities = frozenset()
    with pytest.raises(CapabilityError, match="toy does not allow: it does not offer routing_noise"):
        RoE(4).check(unknown)
    assert RoE.needs == {ROUTING_NOISE}


def test_a_tau_per_layer_has_one_entry_a_layer() -> None:
    RoE(4, (0.1,) * 4).check(LM)
    with pytest.raises(
        ArgumentError, match="tau has 3 entries, and toy has 4 MoE layers\n  fix: give 4 numbers, or one"
    ):
        RoE(4, (0.1,) * 3).check(LM)


@pytest.mark.parametrize("roe", [RoE(4, 0.3, clean_layers=2), RoE(4, (0.9, 0.0, 0.0, 0.9)), RoE(2, 1.0, 7)], ids=repr)
def test_clean_layers_that_leave_nothing_are_refused(roe: RoE) -> None:
    with pytest.raises(
        ArgumentError, match="leaves none of the 4 MoE layers of toy noisy\n  fix: write clean_layers=0"
    ):
        roe.check(LM)


@pytest.mark.parametrize("roe", [RoE(1, 0.3, clean_layers=2), RoE(4, 0.0, clean_layers=2)], ids=repr)
def test_the_model_itself_needs_no_noisy_layer(roe: RoE) -> None:
    roe.check(LM)


def test_a_note_tells_of_noise_without_effect() -> None:
    [note] = RoE(4, 0.01).notes(RoutingStats(choices=600, changed=0))
    assert "changed none of 600 router choices although tau=0.01" in note
    assert RoE(4, 0.01).notes(RoutingStats(choices=600, changed=1)) == ()
    assert RoE(4, 0.0).notes(RoutingStats()) == ()
    assert RoE(4, 0.3).notes(RoutingStats()) == ()


def test_noise_that_is_too_small_is_noted_on_a_real_run() -> None:
    [found] = decode(RoE(2, 1e-9), asks(1), Greedy())
    assert found.routing.choices > 0
    assert RoE(2, 1e-9).notes(found.routing)
