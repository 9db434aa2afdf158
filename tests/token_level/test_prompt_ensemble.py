"""PromptEnsemble: variants of a prompt, each with a cache of its own, fed the same tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.token_level.sequential import STREAM
from tokenscale.core.errors import ArgumentError, CapabilityError, ModelError, PromptError
from tokenscale.core.prompt import Prompt
from tokenscale.models.toy import ToyModel
from tokenscale.pipeline import Pipeline
from tokenscale.testing import check_proposer
from tokenscale.token_level.prompt_ensemble import PromptEnsemble

LM = ToyModel(("a", "b", "1"), spelling="!", moe_layers=2, experts=4, context_length=20)
TEMPLATES = ("{prompt}", "a!{prompt}", "{prompt}1b", "b{prompt}!")


def test_rows_read_the_variants() -> None:
    proposals = PromptEnsemble(TEMPLATES).start(LM, [(1, 2, 3)], [STREAM])
    follow = (3, 2, 1)  # the prompt's last token, and two more
    for place, token in enumerate(follow):
        rows, works = proposals.propose(torch.tensor([token]))
        variants = [LM.encode(Prompt(text=t.replace("{prompt}", "ab1"))) for t in TEMPLATES]
        wanted = [LM.exact_log_probs(ids + follow[1 : place + 1]) for ids in variants]
        np.testing.assert_allclose(rows.logits[0].log_softmax(-1).numpy(), np.array(wanted), rtol=0, atol=1e-5)
        assert [int(w.rows) for w in works] == [1, 1, 1, 1]
    [caches] = proposals.cached
    assert [c.prompt for c in caches] == [(1, 2, 3), (1, 4, 1, 2, 3), (1, 2, 3, 3, 2), (2, 1, 2, 3, 4)]


def test_it_conforms() -> None:
    check_proposer(PromptEnsemble(TEMPLATES), LM)


def test_equal_variants_are_prefilled_once() -> None:
    proposals = PromptEnsemble(("{prompt}", "{prompt}", "a{prompt}")).start(LM, [(1, 2), (1, 2)], [STREAM, STREAM])
    assert len({c.content for caches in proposals.cached for c in caches}) == 2


def test_a_token_that_begins_a_text_stays_in_front() -> None:
    end = 0  # begins a text, too
    proposals = PromptEnsemble(("{prompt}", "a{prompt}b")).start(LM, [(end, 2), (end,)], [STREAM, STREAM])
    assert [c.prompt for c in proposals.cached[0]] == [(end, 2), (end, 1, 2, 2)]
    assert [c.prompt for c in proposals.cached[1]] == [(end,), (end, 1, 2)]


def test_a_model_without_a_token_that_begins_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = ToyModel(("a", "b", "1"), spelling="!", moe_layers=1)
    encode = lm.encode

    def no_empty(prompt: Prompt) -> tuple[int, ...]:
        if prompt.text == "":
            raise PromptError("the prompt is empty")
        return encode(prompt)

    monkeypatch.setattr(lm, "encode", no_empty)
    proposals = PromptEnsemble(("a{prompt}",)).start(lm, [(2,)], [STREAM])
    assert proposals.cached[0][0].prompt == (1, 2)


@pytest.mark.parametrize("templates", [(), "{prompt}", ("Be brief.",), ("{prompt}{prompt}",), (3,), None])
def test_what_is_no_template_is_refused(templates: Any) -> None:
    with pytest.raises(ArgumentError, match=r"templates must be texts with one \{prompt\} each\n  fix: write templ"):
        PromptEnsemble(templates)


def test_the_context_bounds_the_longest_variant() -> None:
    long = "a" * 10 + "{prompt}"
    with pytest.raises(PromptError, match="a variant of the prompt has 20 tokens, and toy holds 20"):
        PromptEnsemble(("{prompt}", long)).start(LM, [(1,) * 10], [STREAM])
    proposals = PromptEnsemble(("{prompt}", long)).start(LM, [(1,) * 9], [STREAM])
    for _ in range(2):
        proposals.propose(torch.tensor([1]))
    with pytest.raises(ModelError, match="toy holds 20 tokens"):
        proposals.propose(torch.tensor([1]))


def test_it_has_a_text_form_and_needs_a_tokenizer() -> None:
    pipe = Pipeline(PromptEnsemble(["{prompt}", "a: '{prompt}'\n"]))  # type: ignore[arg-type]
    assert Pipeline.parse(repr(pipe)) == pipe == Pipeline.from_spec(pipe.to_spec())
    bare = ToyModel(with_tokenizer=False)
    with pytest.raises(CapabilityError, match="reads text, and toy has no tokenizer"):
        pipe.run(bare, [Prompt(token_ids=(1,))])
