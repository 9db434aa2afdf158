"""An unparsable answer never wins over a parsed one, whatever its candidate's probability and number of votes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenscale.core.data import Ask, Candidate
from tokenscale.core.noise import Stream
from tokenscale.core.prompt import Prompt
from tokenscale.sequence_level.answers import KINDS, extract
from tokenscale.sequence_level.self_consistency import SelfConsistency

ROOT = Stream((0, "p"))
ASK = Ask(Prompt(text="Q: 1 + 1\nA:"), ROOT, max_new_tokens=8)
TEXTS = st.sampled_from(
    ["I do not know", "...", "", r"\boxed{", "so 2", "(B)", "yes", r"\boxed{3}", "The answer is 2."]
)


@given(
    st.lists(st.tuples(TEXTS, st.sampled_from([-0.01, -1.0, -50.0, float("-inf")])), min_size=1, max_size=12),
    st.sampled_from(sorted(set(KINDS) - {"math-verify"})),
)
def test_a_candidate_without_an_answer_wins_only_where_none_has_one(drawn: list[tuple[str, float]], kind: str) -> None:
    candidates = [Candidate(text, (i,), (log_prob,), "eos", ROOT.child(i)) for i, (text, log_prob) in enumerate(drawn)]
    solving = SelfConsistency(len(drawn), answers=kind).solve(ASK)
    assert next(solving) == [replace(ASK, k=len(drawn))]
    with pytest.raises(StopIteration) as end:
        solving.send([candidates])
    [winner] = end.value.value
    parsed = {extract(text, kind) for text, _ in drawn} - {None}
    assert winner.answer in (parsed or {None})
    assert extract(winner.text, kind) == winner.answer
    assert {answer for answer, _ in winner.votes} == (parsed or {None})
