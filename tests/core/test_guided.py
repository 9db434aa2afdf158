"""Constraints in the decode loop: what may follow, how a text ends, and what stands in where nothing is possible."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from tests.core.asks import END, ask
from tokenscale.core.constraint import Constraint, Guide
from tokenscale.core.signals import StopRule
from tokenscale.core.strategy import Aggregator
from tokenscale.token_level.decoders import Sample
from tokenscale.token_level.plain import Plain

Texts = frozenset[tuple[int, ...]]


@dataclass
class Language(Guide):
    """The texts of a finite language: `said` is what was written so far."""

    texts: Texts
    vocab: int
    said: tuple[int, ...] = ()

    def _next(self) -> set[int]:
        length = len(self.said)
        return {t[length] for t in self.texts if t[:length] == self.said and len(t) > length}

    def allowed(self) -> Any:
        mask = torch.zeros(self.vocab, dtype=torch.bool)
        mask[[*self._next(), *([END] if self.met else [])]] = True
        return mask

    def advance(self, token: int) -> None:
        self.said = (*self.said, token)

    def fork(self) -> Guide:
        return Language(self.texts, self.vocab, self.said)

    @property
    def met(self) -> bool:
        return self.said in self.texts

    @property
    def over(self) -> bool:
        return not self._next()


@dataclass(frozen=True)
class OneOf(Constraint):
    texts: Texts

    def start(self, lm: Any) -> Guide:
        return Language(self.texts, lm.vocab_size)


LANGUAGE = OneOf(frozenset({(1,), (1, 2, 3), (2, 2), (3, 1, 1, 1)}))


@pytest.mark.parametrize("width", [None, 1, 3])
def test_every_text_is_of_the_language(run: Any, beams: Any, width: int | None) -> None:
    decoder = Sample(2.0) if width is None else beams(width)
    [done] = run([ask((1,), 6, k=40 if width is None else 1)], decoder, constraint=LANGUAGE)
    found = {tuple(i for i in c.token_ids if i != END) for c in done.candidates}
    assert found <= LANGUAGE.texts
    assert {c.finish_reason for c in done.candidates} <= {"constraint", "eos"}
    if width is None:
        assert found == LANGUAGE.texts


def test_the_best_text_of_the_language_is_found(run: Any, lm: Any, beams: Any) -> None:
    """A search that keeps everything finds the likeliest text, its end included where the text could go on."""

    def total(text: tuple[int, ...]) -> float:
        longer = any(t != text and t[: len(text)] == text for t in LANGUAGE.texts)
        ids, score = (*text, END) if longer else text, 0.0
        for place, token in enumerate(ids):
            score += float(lm.exact_log_probs((1, *ids[:place]))[token])
        return score

    [done] = run([ask((1,), 6)], beams(50), constraint=LANGUAGE)
    [found] = done.candidates
    best = max(LANGUAGE.texts, key=total)
    assert tuple(i for i in found.token_ids if i != END) == best
    assert found.log_prob == pytest.approx(total(best), abs=1e-5)


def test_a_constraint_that_is_not_met_in_time_says_so(run: Any) -> None:
    [done] = run([ask((1,), 2, k=30, decoder=Sample(2.0))], constraint=LANGUAGE)
    reasons = {c.token_ids: c.finish_reason for c in done.candidates}
    assert reasons[3, 1] == reasons[1, 2] == "constraint_unmet"
    assert reasons[2, 2] == "constraint"
    assert reasons[1, END] == "eos"


def test_the_ask_has_the_last_word(run: Any) -> None:
    only = OneOf(frozenset({(3, 3)}))
    asks = [ask((1,), 4, constraint=only), ask((1,), 4, k=30, free=True, decoder=Sample(2.0)), ask((1,), 4)]
    own, free, pipelines = run(asks, constraint=LANGUAGE)
    assert own.candidates[0].token_ids == (3, 3)
    assert any(c.token_ids[0] == END for c in free.candidates)
    assert tuple(i for i in pipelines.candidates[0].token_ids if i != END) in LANGUAGE.texts


@pytest.mark.parametrize(
    ("prefix", "reason"), [((1, 2, 3), "constraint"), ((2, 2), "constraint"), ((2, 1), "constraint_unmet")]
)
def test_a_beginning_after_which_nothing_may_follow(run: Any, prefix: tuple[int, ...], reason: str) -> None:
    [done] = run([ask((1,), 4, prefix_ids=prefix, constraint=LANGUAGE)])
    assert [(c.token_ids, c.finish_reason) for c in done.candidates] == [((), reason)]
    assert done.usages == []


def test_a_pause_is_no_end(run: Any) -> None:
    """A step of a longer answer is not expected to be complete."""
    [done] = run([ask((1,), 4, pauses=("b",), constraint=OneOf(frozenset({(1, 2, 3)})))])
    assert [(c.token_ids, c.finish_reason) for c in done.candidates] == [((1, 2), "pause")]


@dataclass(frozen=True)
class NoB(Aggregator):
    """The first row without token 2."""

    def aggregate(self, rows: Any) -> Any:
        barred = rows.logits[:, 0].index_fill(-1, torch.tensor([2]), float("-inf"))
        return torch.log_softmax(barred, -1)


@dataclass(frozen=True)
class WithoutB(Plain):
    default_aggregator = NoB()


def test_where_aggregate_and_constraint_agree_on_nothing_the_first_row_decides(run: Any, lm: Any) -> None:
    [done] = run([ask((1,), 4, constraint=OneOf(frozenset({(2, 1)})))], None, WithoutB())
    [found] = done.candidates
    assert (found.token_ids, found.fallbacks) == ((2, 1), 1)
    assert found.log_probs[0] == pytest.approx(float(lm.exact_log_probs((1,))[2]), abs=1e-5)


@dataclass(frozen=True)
class After(StopRule):
    """Ends after so many values, which must be the candidate's own, in order."""

    count: int
    signal = "confidence"

    def stops(self, values: Any) -> bool:
        return len(values) >= self.count


def test_a_stop_rule_reads_the_signals_of_its_candidate(run: Any) -> None:
    signals = frozenset({"confidence", "self_certainty"})
    asks = [ask((1,), 9, k=5, decoder=Sample(1.0), stop_rule=After(3)), ask((2,), 9, decoder=Sample(1.0))]
    ruled, other = run(asks, signals=signals)
    for candidate in ruled.candidates:
        assert len(candidate.token_ids) == len(candidate.signal("confidence")) <= 3
        assert candidate.finish_reason == ("stop_rule" if candidate.token_ids[-1] != END else "eos")
    assert set(dict(other.candidates[0].signals)) == signals
    with pytest.raises(ValueError, match="confidence, which is not recorded"):
        run(asks[:1])
