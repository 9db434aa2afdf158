"""The decode loop against brute force on a model whose every probability is known."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import log_softmax

from tokenscale.core.cost import Ledger
from tokenscale.core.data import Ask, Prompt
from tokenscale.core.decode import LocalBackend
from tokenscale.core.errors import ArgumentError, CapabilityError, ModelError, PipelineError, PromptError
from tokenscale.core.model import PLAIN, RowPlan, State, Step
from tokenscale.core.noise import Stream
from tokenscale.core.strategy import Choice, Decoder, Rows, TokenProposer
from tokenscale.models.toy import ToyModel
from tokenscale.testing import check_backend
from tokenscale.token_level.aggregators import MeanProbability
from tokenscale.token_level.decoders import Greedy, Sample
from tokenscale.token_level.plain import Plain
from tokenscale.token_level.roe import RoE, RoEProposals

FALSE_ALARM = 1e-4
END = 0
PROMPTS = [(1, 2, 3), (2,), (3, 3, 1, 2, 2), (1, 1), (2, 3), (3,), (1, 3, 2)]
NOISY = RoE(4, tau=1.0, clean_layers=0)


def ask(prompt: tuple[int, ...] = (1, 2, 3), new: int = 6, path: tuple[int | str, ...] = (0,), **more: Any) -> Ask:
    return Ask(Prompt(token_ids=prompt), Stream(path), new, **more)


def greedy(lm: ToyModel, prompt: tuple[int, ...], new: int) -> tuple[int, ...]:
    """Brute force: the most likely token, again and again."""
    ids: list[int] = []
    while len(ids) < new and ids[-1:] != [END]:
        ids.append(int(lm.exact_log_probs((*prompt, *ids)).argmax()))
    return tuple(ids)


def test_greedy_decoding_equals_brute_force(run: Any, lm: ToyModel) -> None:
    done = run([ask(p) for p in PROMPTS])
    for prompt, completion in zip(PROMPTS, done, strict=True):
        [found] = completion.candidates
        assert found.token_ids == greedy(lm, prompt, 6)
        for place, (token, log_prob) in enumerate(zip(found.token_ids, found.log_probs, strict=True)):
            exact = lm.exact_log_probs((*prompt, *found.token_ids[:place]))[token]
            assert log_prob == pytest.approx(exact, abs=1e-6)
        assert found.near_ties == 0
        assert found.text == lm.decode(found.token_ids)


def beam_search(lm: ToyModel, prompt: tuple[int, ...], new: int, width: int) -> dict[tuple[int, ...], float]:
    """Brute force: every ended beam of a search over sets of prefixes, with its total log-probability."""
    live, ended = {(): 0.0}, dict[tuple[int, ...], float]()
    for _ in range(new):
        grown = {
            (*ids, token): score + lp
            for ids, score in live.items()
            for token, lp in enumerate(lm.exact_log_probs((*prompt, *ids)))
            if token not in lm.suppressed_ids
        }
        best = sorted(grown, key=lambda ids: -grown[ids])[:width]
        ended |= {ids: grown[ids] for ids in best if ids[-1] == END or len(ids) == new}
        live = {ids: grown[ids] for ids in best if ids not in ended}
    return ended


FLAT = {"spelling": "", "moe_layers": 1, "sharpness": 0.5}
SEARCHED = {
    "beams change places": ToyModel(("a", "b", "1"), **FLAT, suppressed_ids=(END,)),
    "the first to end is often the best": ToyModel(("a", "b", "1"), **FLAT),
    "the first to end is often not the best": ToyModel(("a", "b", "1"), spelling="", moe_layers=3, sharpness=4.0),
}


@pytest.mark.parametrize("width", [1, 2, 3, 100])
@pytest.mark.parametrize("model", SEARCHED.values(), ids=SEARCHED)
def test_beams_equal_brute_force(run: Any, beams: Any, width: int, model: ToyModel) -> None:
    """Wide enough, the search finds the best continuation of all."""
    new = 3 if width == 100 else 6
    done = run([ask(p, new) for p in PROMPTS], beams(width), model=model, batch_size=2)
    for prompt, completion in zip(PROMPTS, done, strict=True):
        [found] = completion.candidates
        ended = beam_search(model, prompt, new, width)
        wanted = max(ended, key=lambda ids: ended[ids])
        assert found.token_ids == wanted
        assert found.log_prob == pytest.approx(ended[wanted], abs=1e-5)
        if width == 100 and not model.suppressed_ids:
            everything = model.continuations(prompt, new)
            assert everything[wanted] == max(everything.values())


@dataclass(frozen=True)
class Force(Decoder):
    """Takes one given token."""

    token: int

    def choose(self, log_probs: Any, scores: Any, uniforms: Any) -> Choice:
        tokens = torch.full((len(log_probs), 1), self.token)
        return Choice(torch.zeros_like(tokens), tokens, torch.ones(len(log_probs)))


def test_beams_share_the_noise_of_their_ask(run: Any, beams: Any) -> None:
    """RoE is one function from prefix to distribution: a beam's steps repeat as asks that continue its prefix."""
    one = ask((1, 2), 3, ("beams",))
    [completion] = run([one], beams(5), NOISY)
    [found] = completion.candidates
    for place, token in enumerate(found.token_ids):
        again = replace(one, prefix_ids=found.token_ids[:place], max_new_tokens=1, decoder=Force(token))
        [repeated] = run([again], None, NOISY)
        assert repeated.candidates[0].log_probs[0] == pytest.approx(found.log_probs[place], abs=1e-6)


@pytest.mark.parametrize("decoder", [Sample(1.0), Sample(0.7), Sample(1.5, top_k=3)])
def test_samples_have_the_exact_distribution(run: Any, decoder: Sample) -> None:
    """Chi-square over all continuations of three tokens; a fresh seed would fail once in 10,000 runs."""
    lm = ToyModel(("a", "b", "1"), spelling="", moe_layers=1, experts=4, width=4)

    def log_probs(prefix: tuple[int, ...]) -> np.ndarray:
        scaled = lm.exact_log_probs(prefix) / decoder.temperature
        if decoder.top_k:
            scaled[scaled < np.sort(scaled)[-decoder.top_k]] = -np.inf
        return log_softmax(scaled)

    exact = lm.continuations((1, 2), 3, log_probs)
    k = 1200
    [completion] = run([ask((1, 2), 3, ("chi",), k=k)], decoder, model=lm, batch_size=1000)
    counts = Counter(c.token_ids for c in completion.candidates)
    assert set(counts) <= set(exact)
    # Cells that expect fewer than five are counted together.
    common = [ids for ids, p in exact.items() if p * k >= 5]
    found = [counts[ids] for ids in common]
    wanted = [exact[ids] * k for ids in common]
    found.append(k - sum(found))
    wanted.append(k - sum(wanted))
    cells = slice(None) if wanted[-1] > 1e-6 else slice(-1)
    assert stats.chisquare(found[cells], wanted[cells], sum_check=False).pvalue > FALSE_ALARM


@pytest.mark.parametrize("decoder", [Greedy(), Sample(1.0), Sample(0.7, top_p=0.9)])
@pytest.mark.parametrize("proposer", [Plain(), NOISY])
def test_nothing_depends_on_batch_size_and_order(run: Any, proposer: TokenProposer, decoder: Decoder) -> None:
    """Exactly: tokens, log-probabilities, traces, costs and usages."""
    asks = [ask(p, 3 + i, ("batch", i), k=1 + i % 3) for i, p in enumerate(PROMPTS)]
    wanted = run(asks, decoder, proposer, batch_size=1, trace=True)
    for batch_size in (3, 16):
        order = list(range(len(asks)))
        random.Random(batch_size).shuffle(order)
        shuffled = run([asks[i] for i in order], decoder, proposer, batch_size=batch_size, trace=True)
        for place, i in enumerate(order):
            assert shuffled[place].candidates == wanted[i].candidates
            for one, other in zip(shuffled[place].usages, wanted[i].usages, strict=True):
                assert (one.prompt, one.rows, one.beams) == (other.prompt, other.rows, other.beams)
                np.testing.assert_array_equal(one.experts, other.experts)
                np.testing.assert_array_equal(one.prefill_experts, other.prefill_experts)


def test_beams_and_samples_share_a_batch(run: Any, beams: Any) -> None:
    asks = [
        ask(p, 5, ("mixed", i), decoder=[None, Sample(1.0), beams(3)][i % 3], k=1 + i % 2)
        for i, p in enumerate(PROMPTS)
    ]
    together = run(asks, None, NOISY, batch_size=4)
    for one, completion in zip(asks, together, strict=True):
        assert completion.candidates == run([one], None, NOISY, batch_size=4)[0].candidates


def test_the_backend_conforms(lm: ToyModel) -> None:
    prompts = [Prompt(token_ids=p) for p in PROMPTS[:3]]
    for size in (1, 2, 16):
        check_backend(lambda s=size: LocalBackend(lm, NOISY, MeanProbability(), Sample(1.0), batch_size=s), prompts)


def test_samples_are_nested(run: Any) -> None:
    [few] = run([ask(path=("nest",), k=3)], Sample(1.0))
    [many] = run([ask(path=("nest",), k=8)], Sample(1.0))
    assert many.candidates[:3] == few.candidates
    assert len({c.token_ids for c in many.candidates}) > 1


def test_the_end_token_ends_a_candidate(run: Any) -> None:
    [completion] = run([ask(k=50, new=20)], Sample(2.0))
    ended = [c for c in completion.candidates if c.finish_reason == "eos"]
    assert len(ended) > 10
    assert all(c.token_ids.index(END) == len(c.token_ids) - 1 for c in ended)
    others = [c for c in completion.candidates if c.finish_reason == "length"]
    assert all(END not in c.token_ids and len(c.token_ids) == 20 for c in others)


def test_stop_strings_end_a_candidate_where_they_appear(run: Any, lm: ToyModel) -> None:
    stops = ("ab1", "bb")
    free = run([ask(path=("stop",), k=60, new=15)], Sample(1.5))[0].candidates
    stopped = run([ask(path=("stop",), k=60, new=15, stop_strings=stops)], Sample(1.5))[0].candidates
    spanning = 0
    for long, short in zip(free, stopped, strict=True):
        ends = [n for n in range(1, len(long.token_ids) + 1) if any(s in lm.decode(long.token_ids[:n]) for s in stops)]
        kept = ends[0] if ends and long.token_ids[ends[0] - 1] != END else len(long.token_ids)
        assert short.token_ids == long.token_ids[:kept]
        assert not any(s in short.text for s in stops)
        if ends:
            assert short.finish_reason == "stop_string"
            assert lm.decode(short.token_ids).startswith(short.text)
            spanning += 1
    assert spanning > 10


def test_length_is_bounded_by_the_ask_and_the_context(run: Any, lm: ToyModel) -> None:
    suppressed = ToyModel(("a", "b", "1"), spelling="", context_length=8, suppressed_ids=(END,))
    done = run([ask((1, 2, 3), 4), ask((1, 2, 3), 100), ask((1,) * 7, 100)], model=suppressed)
    assert [len(c.candidates[0].token_ids) for c in done] == [4, 5, 1]
    assert {c.candidates[0].finish_reason for c in done} == {"length"}


def test_suppressed_tokens_are_never_chosen_and_log_probs_stay_the_models(run: Any, lm: ToyModel) -> None:
    banned = ToyModel(("a", "b", "1"), spelling="", moe_layers=3, experts=4, sharpness=2.0, suppressed_ids=(END, 2))
    [completion] = run([ask(k=40, new=10)], Sample(1.0), model=banned)
    for found in completion.candidates:
        assert not {END, 2} & set(found.token_ids)
    first = completion.candidates[0]
    assert first.log_probs[0] == pytest.approx(lm.exact_log_probs((1, 2, 3))[first.token_ids[0]], abs=1e-6)


def test_processors_see_the_ids_and_change_what_is_chosen(run: Any, lm: ToyModel) -> None:
    seen: list[list[int]] = []

    def forbid_repeats(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        seen.append(ids[0].tolist())
        scores[:, ids[0, -1]] = float("-inf")
        return scores

    prompts = PROMPTS[:3]
    done = run([ask(p) for p in prompts], processor=forbid_repeats, batch_size=2)
    for prompt, completion in zip(prompts, done, strict=True):
        [found] = completion.candidates
        ids = list(prompt)
        for token, log_prob in zip(found.token_ids, found.log_probs, strict=True):
            exact = lm.exact_log_probs(ids)
            assert ids in seen
            assert log_prob == pytest.approx(exact[token], abs=1e-6)
            exact[ids[-1]] = -np.inf
            assert token == exact.argmax()
            ids.append(token)


def test_processors_that_allow_nothing_are_refused(run: Any) -> None:
    with pytest.raises(PipelineError, match="the logits processors left no token to choose"):
        run([ask()], processor=lambda ids, scores: torch.full_like(scores, float("-inf")))


def test_logits_that_are_not_numbers_are_refused(run: Any) -> None:
    class Broken(ToyModel):
        """Its logits are NaN."""

        def step(self, state: State, tokens: torch.Tensor, plan: RowPlan = PLAIN) -> Step:
            step = super().step(state, tokens, plan)
            return replace(step, logits=step.logits * float("nan"))

    with pytest.raises(ModelError, match="logits are not numbers"):
        run([ask()], model=Broken(("a", "b", "1"), spelling=""))


def test_near_ties_are_counted(run: Any) -> None:
    class Tied(ToyModel):
        """Tokens a and b are equally likely, and likelier than the rest."""

        def step(self, state: State, tokens: torch.Tensor, plan: RowPlan = PLAIN) -> Step:
            step = super().step(state, tokens, plan)
            step.logits[..., 1:3] = 20.0
            return step

    [completion] = run([ask(new=4)], model=Tied(("a", "b", "1"), spelling=""))
    assert completion.candidates[0].token_ids == (1, 1, 1, 1)
    assert completion.candidates[0].near_ties == 4


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


def test_traces_describe_every_token(run: Any, lm: ToyModel) -> None:
    [completion] = run([ask(k=2)], Sample(1.0), NOISY, trace=True)
    for found in completion.candidates:
        assert found.trace is not None
        assert found.trace.rows == (4,) * len(found.token_ids)
        assert all(0 < e <= math.log(4) + 1e-6 for e in found.trace.entropy)
        assert all(d >= 0 for d in found.trace.disagreement)
        assert max(found.trace.disagreement) > 1e-3
        assert all(2 <= n <= 4 for n in found.trace.distinct_experts)
        total = sum(found.trace.distinct_experts) * lm.shape.moe_layers
        assert found.routing.distinct_experts == round(total)
        assert found.routing.choices == 3 * 3 * len(found.token_ids)
        assert found.routing.changed > 0
        assert found.routing.expert_sets == 3 * len(found.token_ids)
    [plain] = run([ask()], trace=True)
    trace = plain.candidates[0].trace
    exact = lm.exact_log_probs((1, 2, 3))
    assert trace.entropy[0] == pytest.approx(-(np.exp(exact) * exact).sum(), abs=1e-6)
    assert trace.disagreement == pytest.approx([0.0] * len(trace.rows), abs=1e-6)
    assert run([ask()])[0].candidates[0].trace is None


def test_padding_rows_count_for_nothing(run: Any) -> None:
    """Four rows of which the last is padding are the three rows of a smaller n."""

    class Padded(RoEProposals):
        """The last row is not valid, and not a number."""

        def propose(self, tokens: torch.Tensor) -> tuple[Rows, Step]:
            rows, step = super().propose(tokens)
            rows.logits[:, -1] = float("nan")
            rows.valid[:, -1] = False
            return rows, step

        def select(self, index: Any) -> RoEProposals:
            return Padded(self._lm, self._tau, self._state.select(index), [self._readers[i] for i in index])

    @dataclass(frozen=True)
    class PaddedRoE(RoE):
        """RoE with a row too many."""

        def start(self, *arguments: Any) -> RoEProposals:
            started = super().start(*arguments)
            assert isinstance(started, RoEProposals)
            return Padded(started._lm, started._tau, started._state, started._readers)

    [few] = run([ask(k=3)], Sample(1.0), replace(NOISY, n=3), trace=True, batch_size=3)
    [padded] = run([ask(k=3)], Sample(1.0), PaddedRoE(4, NOISY.tau, NOISY.clean_layers), trace=True, batch_size=3)
    for one, other in zip(few.candidates, padded.candidates, strict=True):
        assert (one.token_ids, one.log_probs, one.cost) == (other.token_ids, other.log_probs, other.cost)
        assert one.trace == other.trace
        assert one.routing.changed == other.routing.changed


def test_a_dense_model_has_no_expert_counts(run: Any) -> None:
    dense = ToyModel(("a", "b", "1"), spelling="", moe_layers=0)
    [completion] = run([ask()], model=dense, trace=True)
    [found] = completion.candidates
    assert all(math.isnan(n) for n in found.trace.distinct_experts)
    assert found.cost.expert_loads == 0
    assert math.isnan(found.routing.mean_distinct_experts)


def test_usage_says_what_ran(run: Any, lm: ToyModel) -> None:
    """Experts of the clean rows, recorded again by stepping the model by hand."""
    [completion] = run([ask()])
    [found], [usage] = completion.candidates, completion.usages
    state = lm.prefill([()])
    ran = []
    for token in (1, 2, 3, *found.token_ids)[:-1]:
        step = lm.step(state, torch.tensor([token]))
        assert step.experts is not None
        ran.append(np.packbits(step.experts[0, 0].numpy(), axis=-1))
    np.testing.assert_array_equal(usage.prefill_experts, ran[0] | ran[1])
    np.testing.assert_array_equal(usage.experts, np.stack(ran[2:]))
    assert (usage.prompt, usage.rows) == ((1, 2, 3), (1,) * len(found.token_ids))
    assert found.cost == usage.decode_cost(lm.shape)


def test_the_experts_of_beams_are_joined(run: Any, beams: Any) -> None:
    """A search wide enough to keep everything runs the experts of all texts of one length."""
    model = SEARCHED["beams change places"]
    [completion] = run([ask((1, 2), 3)], beams(100), model=model)
    for length, found in enumerate(completion.usages[0].experts):
        wanted = np.zeros_like(found)
        for ids in itertools.product((1, 2, 3), repeat=length):
            *before, last = (1, 2, *ids)
            step = model.step(model.prefill([before]), torch.tensor([last]))
            assert step.experts is not None
            wanted |= np.packbits(step.experts[0, 0].numpy(), axis=-1)
        np.testing.assert_array_equal(found, wanted)


def test_rows_and_beams_are_billed(run: Any, lm: ToyModel, beams: Any) -> None:
    [noisy] = run([ask(new=4)], Greedy(), NOISY)
    [found] = noisy.candidates
    assert (found.cost.rows, found.cost.new_tokens) == (4 * len(found.token_ids), len(found.token_ids))
    [wide] = run([ask(new=3)], beams(3), NOISY)
    usage = wide.usages[0]
    assert usage.beams[0] == 1
    assert max(usage.beams) > 1
    assert usage.rows == tuple(4 * b for b in usage.beams)
    assert wide.candidates[0].cost.new_tokens == sum(usage.beams)
    ledger = Ledger(lm.shape)
    ledger.add(wide.usages, 0)
    assert ledger.bill().prompt_tokens == 3


def test_equal_prompts_are_prefilled_once(run: Any, lm: ToyModel) -> None:
    calls: list[int] = []

    class Counting(ToyModel):
        """Counts the prompts it prefills."""

        def prefill(self, prompts: Any) -> Any:
            calls.append(len(prompts))
            return super().prefill(prompts)

    run([ask(k=5), ask((1, 2))], model=Counting(("a", "b", "1"), spelling=""))
    assert calls == [2]


def test_a_prefix_is_continued(run: Any) -> None:
    [whole] = run([ask((1, 2), 6, ("prefix",))], Sample(1.0), NOISY)
    [found] = whole.candidates
    assert len(found.token_ids) > 2
    head, tail = found.token_ids[:2], found.token_ids[2:]
    [rest] = run([ask((1, 2), 4, ("prefix",), prefix_ids=head)], Sample(1.0), NOISY)
    assert rest.candidates[0].token_ids == tail
    assert rest.candidates[0].log_probs == found.log_probs[2:]


def test_bad_asks_are_refused_when_submitted(lm: ToyModel) -> None:
    backend = LocalBackend(lm, Plain(), MeanProbability(), Greedy(), batch_size=2)
    message = "the prompt has 24 tokens, and the context of toy holds 24\n  fix: shorten the prompt"
    with pytest.raises(PromptError, match=message):
        backend.submit(ask((1,) * 20, prefix_ids=(2,) * 4))
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
