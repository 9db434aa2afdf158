"""AdaptiveRoE: exact early exit never changes a token; the gate saves rows and says what that cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.token_level.sequential import LM, PROMPT, STREAM, proposed
from tokenscale.core.data import Ask, RoutingStats
from tokenscale.core.decode import LocalBackend
from tokenscale.core.errors import ArgumentError, PipelineError
from tokenscale.core.noise import CHECK_DOMAIN, RowNoiseReader
from tokenscale.core.plan import PLAIN
from tokenscale.core.prompt import Prompt
from tokenscale.models.toy import ToyModel
from tokenscale.pipeline import Pipeline
from tokenscale.sequence_level.self_consistency import SelfConsistency
from tokenscale.testing import check_proposer
from tokenscale.token_level.adaptive_roe import AdaptiveRoE
from tokenscale.token_level.adaptive_rows import EarlyExit
from tokenscale.token_level.aggregators import MeanLogit, MeanProbability
from tokenscale.token_level.decoders import Greedy, Sample
from tokenscale.token_level.plain import Plain
from tokenscale.token_level.roe import RoE

# From distributions that are nearly flat to nearly certain ones; the end and a likely token suppressed.
MODELS = [
    ToyModel(("a", "b", "1", "2"), spelling="", moe_layers=2, experts=6, width=5, sharpness=s, seed=i, suppressed_ids=x)
    for i, (s, x) in enumerate([(0.02, ()), (1.0, (0, 2)), (4.0, ()), (20.0, (3,))])
]


def answers(lm: ToyModel, proposer: Any, prompts: list[list[int]], **run: Any) -> Any:
    asked = [Prompt(token_ids=tuple(ids), key=str(i)) for i, ids in enumerate(prompts)]
    return Pipeline(proposer, Greedy()).run(lm, asked, max_new_tokens=4, **run)


@settings(max_examples=25)
@given(st.data())
def test_exact_early_exit_never_changes_a_token(data: st.DataObject) -> None:
    lm = data.draw(st.sampled_from(MODELS))
    n, tau, chunk = data.draw(st.integers(2, 9)), data.draw(st.floats(0.1, 5.0)), data.draw(st.integers(1, 4))
    options = data.draw(
        st.fixed_dictionaries(
            {
                "clean_layers": st.just(0),
                "noise": st.sampled_from(["gumbel", "gaussian", "uniform-experts", "antithetic"]),
                "first_token": st.sampled_from(["rows", "clean"]),
                "current_kv": st.sampled_from(["own", "clean"]),
            }
        )
    )
    prompts = data.draw(st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=5), min_size=1, max_size=2))
    whole = answers(lm, RoE(n, tau, **options), prompts, trace=True)
    early = answers(lm, AdaptiveRoE(n, tau, chunk=chunk, **options), prompts, trace=True)
    for one, other in zip(whole, early, strict=True):
        assert one.winner.token_ids == other.winner.token_ids
        assert other.cost.rows == sum(other.winner.trace.rows) <= one.cost.rows
        assert all(rows in (1, n) or n // 2 < rows <= n for rows in other.winner.trace.rows)


@settings(max_examples=200)
@given(st.integers(2, 12), st.integers(1, 12), st.integers(0, 10**6), st.sampled_from([0.05, 0.3, 1.0, 30.0]))
def test_a_settled_token_cannot_be_overtaken(n: int, chunk: int, seed: int, flatness: float) -> None:
    """Whatever the other rows say: dirichlet rows, and the worst case, all of them certain of the second token."""
    rows = np.random.default_rng(seed).dirichlet(np.full(5, flatness), size=n)
    stop, ran = EarlyExit(n, chunk), n // 2 + 1
    total = torch.from_numpy(rows[:ran].sum(0)).float()[None]
    while ran < n and bool(stop.more(total, ran)):
        end = min(ran + stop.rest, n)
        total, ran = total + torch.from_numpy(rows[ran:end].sum(0)).float(), end
    settled = int(total.argmax())
    assert settled == int(rows.sum(0).argmax())
    if ran < n:
        worst = rows[:ran].sum(0)
        worst[int(total[0].topk(2).indices[1])] += n - ran
        assert settled == int(worst.argmax())


def test_half_of_the_rows_are_never_enough() -> None:
    """With certain rows that agree, n // 2 + 1 rows settle a token, and no fewer could."""
    for n in range(2, 20):
        sure = torch.tensor([[1.0, 0.0, 0.0]])
        needed = next(ran for ran in range(1, n + 1) if ran == n or not bool(EarlyExit(n, 1).more(sure * ran, ran)))
        assert needed == n // 2 + 1 == EarlyExit(n, 1).first
    tie = torch.tensor([[3.0, 1.0]])
    assert bool(EarlyExit(6, 1).more(tie, 4))
    assert bool(EarlyExit(6, 1).more(tie + torch.tensor([[5e-5, 0.0]]), 4))
    assert not bool(EarlyExit(6, 1).more(tie + torch.tensor([[7e-5, 0.0]]), 4))


def test_rows_come_in_chunks() -> None:
    """Nearly flat rows settle nothing, so all run; the first forward has more than half of them."""
    asked: list[tuple[int, bool]] = []

    class Counting(ToyModel):
        def step(self, state: Any, tokens: Any, plan: Any = None) -> Any:
            asked.append((plan.n, plan.commit))
            return super().step(state, tokens, plan)

    lm = Counting(("a", "b", "1"), spelling="", moe_layers=3, sharpness=0.01)
    rows, [work] = AdaptiveRoE(16, 1.0).start(lm, [(1, 2)], [STREAM]).propose(torch.tensor([2]))
    assert asked == [(9, True), (4, False), (3, False)]
    assert torch.equal(rows.logits, RoE(16, 1.0).start(lm, [(1, 2)], [STREAM]).propose(torch.tensor([2]))[0].logits)
    assert (int(work.rows), int(work.heads)) == (16, 16)


def test_what_the_chunks_run_is_billed_once_each() -> None:
    """As plain RoE's, row by row, where all rows run; fewer rows cost fewer products."""
    flat = ToyModel(("a", "b", "1"), spelling="", moe_layers=3, sharpness=0.01)
    bills = [p.start(flat, [(1, 2)], [STREAM]).propose(torch.tensor([2]))[1][0] for p in (RoE(8), AdaptiveRoE(8))]
    for name in ("rows", "heads", "runs", "choices", "changed", "experts"):
        assert torch.equal(getattr(bills[0], name), getattr(bills[1], name))
    sharp = ToyModel(("a", "b", "1"), spelling="", moe_layers=3, sharpness=60.0)
    _, [work] = AdaptiveRoE(8, 1e-6).start(sharp, [(1, 2)], [STREAM]).propose(torch.tensor([2]))
    assert (int(work.rows), int(work.runs), int(work.choices)) == (5, 5 * 3 * 2, 4 * 1)


class Watched(ToyModel):
    """Notes what every forward ran: whether it stored its token, its rows, and its experts as (layer, expert)."""

    forwards: ClassVar[list[tuple[bool, int, set[tuple[int, ...]]]]] = []

    def step(self, state: Any, tokens: Any, plan: Any = PLAIN) -> Any:
        found = super().step(state, tokens, plan)
        assert found.experts is not None
        assert len(tokens) == 1
        self.forwards.append((plan.commit, plan.n, set(map(tuple, found.experts.nonzero()[:, 2:].tolist()))))
        return found


@pytest.mark.parametrize(
    "stages",
    [
        (AdaptiveRoE(8, 1.0, 0, chunk=1), Greedy()),
        (AdaptiveRoE(5, 1.0, 0, exact=False, threshold=0.12, audit=0.1), Sample(1.0), SelfConsistency(3)),
    ],
    ids=["chunks", "gate, three samples"],
)
def test_every_forward_of_a_token_is_billed(stages: Any) -> None:
    """Weights, cache and steps of forwards counted one by one, in lockstep: the first ones together, and so on."""
    lm = Watched(("a", "b", "1"), spelling="", moe_layers=3, sharpness=2.0)
    Watched.forwards.clear()
    pipe, prompt = Pipeline(*stages), [Prompt(token_ids=(1,))]  # one token: nothing is prefilled
    [result] = pipe.run(lm, prompt, max_new_tokens=9, batch_size=1)
    noted, candidates = list(Watched.forwards), list[list[list[tuple[int, set[Any]]]]]()
    for texts in (c.token_ids for c in result.candidates):
        steps: list[Any] = []
        while noted and (len(steps) < len(texts) or not noted[0][0]):
            commit, *ran = noted.pop(0)
            steps = [*steps, []] if commit else steps
            steps[-1].append(ran)
        candidates.append(steps)
    assert not noted
    shape, bill = lm.shape, dict.fromkeys(("bytes", "expert_loads", "rows", "sequential_steps"), 0.0)
    for time in range(9):
        for number in range(8):
            live = [c[time][number] for c in candidates if time < len(c) and number < len(c[time])]
            loads = len(set().union(*(experts for _, experts in live)))
            keys = 1 + time * len(live)  # the prompt's once, and of every candidate its own
            weights = shape.dense_bytes + shape.head_bytes + loads * shape.expert_bytes
            bill["bytes"] += bool(live) * (weights + keys * shape.kv_bytes)
            bill["expert_loads"] += loads
            bill["rows"] += sum(rows for rows, _ in live)
            bill["sequential_steps"] += bool(live)
    assert len({len(step) for c in candidates for step in c}) > 1
    assert {name: getattr(result.cost, name) for name in bill} == bill
    plain = ToyModel(("a", "b", "1"), spelling="", moe_layers=3, sharpness=2.0)
    assert pipe.run(plain, prompt, max_new_tokens=9)[0].cost == result.cost


GATES = [
    AdaptiveRoE(4, 0.8, exact=False, threshold=0.3, audit=0),
    AdaptiveRoE(4, 0.8, exact=False, gate="entropy", threshold=1.0, audit=0.5),
]


@pytest.mark.parametrize("proposer", [AdaptiveRoE(5, 0.8), AdaptiveRoE(4, 0.8, chunk=1, first_token="clean"), *GATES])
def test_it_conforms(proposer: Any) -> None:
    check_proposer(proposer, LM)


@pytest.mark.parametrize("first_token", ["rows", "clean"])
def test_the_gate_opens_where_the_clean_row_is_not_sure(first_token: Any) -> None:
    follow = (2, 3, 3, 1, 1, 2, 3, 1)
    whole = proposed(RoE(4, 0.8, first_token=first_token), follow=follow)
    clean = [np.exp(rows[0] - np.logaddexp.reduce(rows[0])) for rows in whole]
    leads = [np.sort(p)[-1] - np.sort(p)[-2] for p in clean]
    entropies = [-(p * np.log(p)).sum() for p in clean]
    for kind, values, sign in (("margin", leads, -1), ("entropy", entropies, 1)):
        threshold = float(np.median(values[1:])) + 1e-4
        gate: Any = {"gate": kind, "threshold": threshold, "audit": 0, "first_token": first_token}
        found = proposed(AdaptiveRoE(4, 0.8, exact=False, **gate), follow=follow)
        opened = [sign * (value - threshold) > 0 for value in values]
        opened[0] &= first_token == "rows"
        assert 0 < sum(opened) < len(opened)
        for rows, wanted, more in zip(found, whole, opened, strict=True):
            assert np.array_equal(rows, wanted if more else wanted[:1])


def test_audited_tokens_are_the_streams_and_are_compared() -> None:
    """Every token is sure here; a share of them is run in all rows, and the differences are counted by hand."""
    lm, n, audit = MODELS[1], 6, 0.4
    adaptive = AdaptiveRoE(n, 3.0, 0, exact=False, threshold=0.0, audit=audit)
    [result] = Pipeline(adaptive).run(lm, [Prompt(token_ids=(1, 2))], max_new_tokens=40, trace=True)
    stream, ids = result.winner.stream, (1, 2, *result.winner.token_ids)
    reader = RowNoiseReader(stream, CHECK_DOMAIN, 1, 1, 1)
    checked, differed = 0, 0
    for place, rows in enumerate(result.winner.trace.rows):
        prefix = ids[: 2 + place]
        drawn = bool(reader.at(len(prefix) - 1)[0, 0, 0] < np.float32(audit))
        assert rows == (n if drawn else 1)
        checked += drawn
        [all_rows] = proposed(RoE(n, 3.0, 0), lm, prefix, (), stream)
        probs = np.exp(all_rows.astype(float))
        probs /= probs.sum(-1, keepdims=True)
        probs[:, sorted(lm.suppressed_ids)] = 0
        differed += drawn and probs.sum(0).argmax() != probs[0].argmax()
    assert checked > 8
    assert differed > 0
    assert (result.routing.checked, result.routing.differed) == (checked, differed)
    assert result.to_dict()["routing"]["checked"] == checked
    [note] = result.notes
    assert f"all rows for {checked} tokens that the clean row was sure of, to check: for {differed} of them" in note
    assert result.cost.rows == sum(result.winner.trace.rows) == 40 + (n - 1) * checked


def test_without_a_gate_or_with_all_of_it_it_is_the_model_or_roe() -> None:
    rows = proposed(AdaptiveRoE(4, 0.8, exact=False, threshold=0.0, audit=0))
    assert all(np.array_equal(a, b) for a, b in zip(rows, proposed(Plain()), strict=True))
    for all_of_it in ({"threshold": 1.1}, {"threshold": 0.0, "audit": 1.0}, {"gate": "entropy", "threshold": 0.0}):
        rows = proposed(AdaptiveRoE(4, 0.8, exact=False, **{"audit": 0.0, **all_of_it}))  # type: ignore[arg-type]
        assert all(np.array_equal(a, b) for a, b in zip(rows, proposed(RoE(4, 0.8)), strict=True))


@pytest.mark.parametrize("proposer", [AdaptiveRoE(1), AdaptiveRoE(8, 0.0), AdaptiveRoE(1, exact=False)], ids=repr)
def test_without_noise_it_is_the_model_itself(proposer: AdaptiveRoE) -> None:
    assert not proposer.random
    assert all(np.array_equal(a, b) for a, b in zip(proposed(proposer), proposed(Plain()), strict=True))


def test_what_could_change_a_settled_token_is_refused_when_the_pipeline_is_built() -> None:
    exact, gated = AdaptiveRoE(4), AdaptiveRoE(4, exact=False)
    for stages in ((exact, Sample(1.0)), (exact, MeanLogit()), (exact, SelfConsistency(3))):
        with pytest.raises(
            PipelineError, match=r"settled, which says nothing about .*\n  fix: use MeanProbability\(\)"
        ):
            Pipeline(*stages)
        Pipeline(gated, *stages[1:])
    Pipeline(exact, MeanProbability(), Greedy(), SelfConsistency(3))


def test_processors_and_decoders_of_asks_are_refused() -> None:
    def processor(ids: Any, scores: Any) -> Any:
        return scores

    with pytest.raises(PipelineError, match=r"AdaptiveRoE\(n=4.*takes no logits processors"):
        Pipeline(AdaptiveRoE(4)).run(LM, [Prompt(token_ids=PROMPT)], processor=processor)
    Pipeline(AdaptiveRoE(4, exact=False)).run(LM, [Prompt(token_ids=PROMPT)], processor=processor, max_new_tokens=1)
    backend = LocalBackend(LM, AdaptiveRoE(4), MeanProbability(), Greedy(), batch_size=1)
    with pytest.raises(PipelineError, match="settled"):
        backend.submit(Ask(Prompt(token_ids=PROMPT), STREAM, 1, decoder=Sample(1.0)))
    backend.submit(Ask(Prompt(token_ids=PROMPT), STREAM, 1, decoder=Greedy()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exact": 1}, r"exact must be True or False\n  fix: write exact=True"),
        ({"gate": "entropy"}, r"AdaptiveRoE\(exact=True, gate='entropy'\): gate has no use\n  fix: leave it out, or w"),
        ({"threshold": 0.5}, r"threshold has no use\n  fix: leave it out, or write exact=False"),
        ({"audit": 0.5}, "audit has no use"),
        ({"exact": False, "chunk": 4}, r"chunk has no use\n  fix: leave it out, or write exact=True"),
        ({"chunk": 0}, "chunk must be at least 1"),
        ({"exact": False, "gate": "top"}, "gate must be 'margin' or 'entropy'"),
        ({"exact": False, "threshold": -0.1}, "threshold must be at least 0"),
        ({"exact": False, "threshold": math.nan}, "threshold must be a finite number"),
        ({"exact": False, "audit": 1.5}, "audit must be at least 0 and at most 1"),
        ({"n": 0}, r"AdaptiveRoE\(n=0\): n must be at least 1"),
        ({"tau": -1}, r"AdaptiveRoE\(tau=-1\): tau must not be negative"),
        ({"noise": "normal"}, r"AdaptiveRoE\(noise='normal'\)"),
    ],
)
def test_bad_parameters_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        AdaptiveRoE(**{"n": 4, **options})


@pytest.mark.parametrize(
    "proposer", [AdaptiveRoE(8), AdaptiveRoE(8, chunk=2), *GATES, AdaptiveRoE(4, exact=False)], ids=repr
)
def test_it_has_a_text_form(proposer: AdaptiveRoE) -> None:
    assert Pipeline.parse(repr(proposer)) == Pipeline(proposer) == Pipeline.from_spec(Pipeline(proposer).to_spec())
    assert repr(AdaptiveRoE(8)) == "AdaptiveRoE(n=8, tau=0.3, clean_layers=1)"


def test_notes_are_roes_too() -> None:
    [note] = AdaptiveRoE(4).notes(RoutingStats(choices=5))
    assert note.startswith("AdaptiveRoE changed none of 5 router choices")


def test_a_gallery_proposer_is_asked_whether_it_fits() -> None:
    @dataclass(frozen=True)
    class Picky(Plain):
        def fits(self, aggregator: Any, decoder: Any) -> None:
            raise PipelineError(f"{aggregator} and {decoder}")

    with pytest.raises(PipelineError, match=r"MeanProbability\(\) and Sample\(temperature=0.7"):
        Pipeline(Picky(), SelfConsistency(2))
