"""RoE's options: each against the sequential reference, each refused where it means nothing, each in the text form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.token_level.sequential import LM, assert_same, proposed, roe_rows
from tokenscale import dsl
from tokenscale.core.data import RoutingStats
from tokenscale.core.errors import ArgumentError, CapabilityError
from tokenscale.core.model import CLEAN_CURRENT_KV
from tokenscale.models.toy import ToyModel
from tokenscale.pipeline import Pipeline
from tokenscale.testing import check_proposer
from tokenscale.token_level.roe import RoE

DEFAULTS = RoE(4, 0.8)
OPTIONS: list[dict[str, Any]] = [
    {"weights": "perturbed"},
    {"current_kv": "clean"},
    {"first_token": "clean"},
    {"noise": "gaussian"},
    {"noise": "uniform-experts"},
    {"noise": "antithetic"},
    {"keep_head": 2},
    {"candidate_pool": 4},
    {"keep_head": 1, "candidate_pool": 6, "noise": "uniform-experts"},
    {"cache": "private"},
    {"cache": "private", "prefill": "noisy"},
    {"cache": "private", "first_token": "clean"},
    {"cache": "private", "prefill": "noisy", "first_token": "clean", "noise": "antithetic", "weights": "perturbed"},
]
NAMES = [", ".join(f"{k}={v}" for k, v in options.items()) for options in OPTIONS]


@pytest.mark.parametrize("options", OPTIONS, ids=NAMES)
def test_every_option_equals_the_sequential_reference(options: dict[str, Any]) -> None:
    roe = RoE(4, 0.8, **options)
    found = proposed(roe)
    assert_same(found, roe_rows(roe))
    assert not all(a.shape == b.shape and (a == b).all() for a, b in zip(found, proposed(DEFAULTS), strict=True))


def test_scores_are_the_logits_of_a_softmax_router() -> None:
    assert_same(proposed(RoE(4, 0.8, noise_on="scores")), proposed(DEFAULTS))


@pytest.mark.parametrize("options", OPTIONS[1:3] + OPTIONS[5:6] + OPTIONS[9:], ids=NAMES[1:3] + NAMES[5:6] + NAMES[9:])
def test_it_conforms(options: dict[str, Any]) -> None:
    check_proposer(RoE(3, 0.8, **options), LM)


@pytest.mark.parametrize("kind", ["gumbel", "gaussian", "uniform-experts", "antithetic"])
@pytest.mark.parametrize("cache", ["clean", "private"])
def test_samples_of_a_small_n_are_the_first_of_a_large_one(kind: Any, cache: Any) -> None:
    few, many = (proposed(RoE(n, 0.8, noise=kind, cache=cache)) for n in (3, 6))
    for a, b in zip(few, many, strict=True):
        assert (a == b[:3]).all()


def test_with_a_noisy_prefill_the_way_to_a_text_does_not_matter() -> None:
    """The same text, reached by a prompt or by steps, gives the same samples: the prompt's noise is the steps'."""
    roe = RoE(3, 0.8, cache="private", prefill="noisy")
    assert (proposed(roe, follow=())[0] == proposed(roe, prompt=(1,), follow=(2, 3, 1))[-1]).all()


@pytest.mark.parametrize("options", OPTIONS, ids=NAMES)
def test_only_what_differs_from_the_defaults_is_shown(options: dict[str, Any]) -> None:
    roe = RoE(4, 0.8, **options)
    shown = dsl.to_text(roe)
    assert repr(roe) == shown
    assert shown.startswith("RoE(n=4, tau=0.8, clean_layers=1, ")
    assert shown.count("=") == 3 + len(options)
    assert Pipeline.parse(shown) == Pipeline(roe) == Pipeline.from_spec(Pipeline(roe).to_spec())
    assert repr(RoE(4)) == dsl.to_text(RoE(4)) == "RoE(n=4, tau=0.3, clean_layers=1)"


def test_no_head_has_one_form() -> None:
    assert RoE(4, keep_head=0) == RoE(4)
    assert repr(RoE(4, keep_head=0)) == repr(RoE(4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "clean"}, r"RoE\(weights='clean'\): weights must be 'original' or 'perturbed'\n  fix: write weig"),
        ({"current_kv": None}, r"RoE\(current_kv=None\): current_kv must be 'own' or 'clean'"),
        ({"first_token": "row"}, "first_token must be 'rows' or 'clean'"),
        ({"noise": "normal"}, "noise must be 'gumbel', 'gaussian', 'uniform-experts' or 'antithetic'"),
        ({"noise_on": "scored"}, "noise_on must be 'logits' or 'scores'"),
        ({"cache": "own"}, "cache must be 'clean' or 'private'"),
        ({"prefill": True}, "prefill must be 'clean' or 'noisy'"),
        ({"keep_head": -1}, r"RoE\(keep_head=-1\): keep_head must be at least 0"),
        ({"keep_head": 1.0}, "keep_head must be an integer"),
        ({"candidate_pool": 0}, r"RoE\(candidate_pool=0\): candidate_pool must be at least 1"),
        ({"prefill": "noisy"}, r"the clean cache holds the clean sample's keys .*\n  fix: write cache='private'"),
        ({"cache": "private", "current_kv": "clean"}, "each sample sees its own key\n  fix: leave current_kv out"),
        ({"noise": "uniform-experts", "weights": "perturbed"}, "leave no scores to perturb\n  fix: leave weights='per"),
        ({"noise": "uniform-experts", "noise_on": "scores"}, "leave no scores to perturb\n  fix: leave noise_on='sco"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        RoE(4, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"keep_head": 3},
            r"keep_head=3\) keeps all of the 3 experts that toy runs\n  fix: write keep_head=2, or less",
        ),
        ({"candidate_pool": 3}, "toy runs 3 experts, so none is left out\n  fix: write candidate_pool=4, or more"),
        ({"candidate_pool": 2}, "so none is left out"),
    ],
)
def test_ranks_that_leave_nothing_to_choose_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        RoE(4, **options).check(LM)
    RoE(4, weights="perturbed", **options)  # gate weights alone may be noisy
    RoE(1, **options).check(LM)
    with pytest.raises(ArgumentError, match="fix: leave it out"):
        RoE(4, keep_head=1).check(ToyModel(top_k=1))


def test_a_model_whose_rows_see_their_own_key_alone_is_refused() -> None:
    other = ToyModel()
    other.capabilities -= {CLEAN_CURRENT_KV}
    RoE(4).check(other)
    with pytest.raises(
        CapabilityError, match=r"RoE\(current_kv='clean'\) shows every row the clean row's key, which toy"
    ):
        RoE(4, current_kv="clean").check(other)


def profile(folder: Path, text: str) -> str:
    path = folder / "profile.yaml"
    path.write_text(text)
    return str(path)


def test_a_profile_gives_the_taus_of_its_model(tmp_path: Path) -> None:
    path = profile(tmp_path, f"tau: [0, 0.5, 0.25, 0]\nfingerprint: {LM.fingerprint}\nobjective: perplexity\n")
    tuned = RoE(4, path)
    assert tuned.random
    assert tuned.taus(4) == (0.0, 0.5, 0.25, 0.0)
    assert_same(proposed(tuned), proposed(RoE(4, (0, 0.5, 0.25, 0))))
    assert Pipeline.parse(repr(tuned)) == Pipeline(tuned)
    assert tuned == RoE(4, path)
    assert repr(tuned) == f"RoE(n=4, tau={path!r}, clean_layers=1)"
    check_proposer(tuned, LM)
    [note] = tuned.notes(RoutingStats(choices=10))
    assert path in note


def test_a_profile_of_another_model_is_refused(tmp_path: Path) -> None:
    tuned = RoE(4, profile(tmp_path, "tau: [0, 0.5, 0.25, 0]\nfingerprint: abc\n"))
    with pytest.raises(ArgumentError, match="tuned for another model than toy\n  fix: tune one for toy, or give num"):
        tuned.check(LM)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n", "is no mapping of keys"),
        ("tau: [0.1]\n", "has no fingerprint\n  fix: name a profile"),
        ("{}", "has no tau and no fingerprint"),
        ("tau: [0.1, high]\nfingerprint: a\n", "tau must be a finite number"),
        ("tau: [0.1, -1]\nfingerprint: a\n", "is empty or negative"),
        ("tau: []\nfingerprint: a\n", "is empty or negative"),
        ("tau: [\n", "cannot be read"),
        ("\0", "cannot be read"),
    ],
)
def test_what_is_no_profile_is_refused_when_the_pipeline_is_built(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        RoE(4, profile(tmp_path, text))


@pytest.mark.parametrize("path", ["gone.yaml", ""])
def test_a_profile_that_is_not_there_is_refused_when_the_pipeline_is_built(path: str) -> None:
    with pytest.raises(ArgumentError, match=r"there is no profile|cannot be read"):
        RoE(4, tau=path)


def test_clean_layers_that_silence_a_profile_are_refused(tmp_path: Path) -> None:
    """The default clean_layers=1 under a profile that was tuned with noise at the ends."""
    path = profile(tmp_path, f"tau: [0.2, 0.5, 0.25, 0]\nfingerprint: {LM.fingerprint}\n")
    with pytest.raises(
        ArgumentError, match=r"layer 0 is clean, and this profile has tau=0\.2 there\n  fix: write clean_lay"
    ):
        RoE(4, path).check(LM)
    RoE(4, path, clean_layers=0).check(LM)
