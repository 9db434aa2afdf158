"""The decode loop against brute force on a model whose every probability is known."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
from scipy import stats
from scipy.special import log_softmax

from tests.core.asks import END, NOISY, PROMPTS, ask
from tokenscale.core.strategy import Decoder, TokenProposer
from tokenscale.models.toy import ToyModel
from tokenscale.token_level.decoders import Greedy, Sample
from tokenscale.token_level.plain import Plain

FALSE_ALARM = 1e-4


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
                [lane], [same] = one.lanes, other.lanes
                assert lane.cached.content == same.cached.content
                assert (lane.rows, lane.heads, lane.runs, lane.beams) == (same.rows, same.heads, same.runs, same.beams)
                np.testing.assert_array_equal(lane.experts, same.experts)
                np.testing.assert_array_equal(lane.cached.prefill.experts, same.cached.prefill.experts)


def test_samples_are_nested(run: Any) -> None:
    [few] = run([ask(path=("nest",), k=3)], Sample(1.0))
    [many] = run([ask(path=("nest",), k=8)], Sample(1.0))
    assert many.candidates[:3] == few.candidates
    assert len({c.token_ids for c in many.candidates}) > 1


def test_a_prefix_is_continued(run: Any) -> None:
    [whole] = run([ask((1, 2), 6, ("prefix",))], Sample(1.0), NOISY)
    [found] = whole.candidates
    assert len(found.token_ids) > 2
    head, tail = found.token_ids[:2], found.token_ids[2:]
    [rest] = run([ask((1, 2), 4, ("prefix",), prefix_ids=head)], Sample(1.0), NOISY)
    assert rest.candidates[0].token_ids == tail
    assert rest.candidates[0].log_probs == found.log_probs[2:]
