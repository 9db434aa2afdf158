"""The report's figures against figures worked out by hand from rows that the test makes."""

import json
import math

import numpy as np
import pytest

from tokenscale.core.cost import Cost
from tokenscale.core.data import RoutingStats
from tokenscale.experiments.report import brief, build
from tokenscale.experiments.statistics import (
    bonett_price,
    detectable_mean,
    mean_difference,
    mean_interval,
    sign_flip,
    wilson,
)
from tokenscale.experiments.store import Slot, Store
from tokenscale.experiments.tables import (
    amount,
    arm_tables,
    behaviour_tables,
    claims,
    markdown,
    notes,
    p_value,
    pair_tables,
    smallest_shown,
)
from tokenscale.pipeline import Pipeline
from tokenscale.recipe import Recipe

SCORES = {  # arm -> seed -> score per problem
    "greedy": {0: [1, 1, 0, 0, 1, 0, 0, 1, 0, 0], 1: [1, 0, 0, 0, 1, 0, 0, 1, 0, 1]},
    "roe": {0: [1, 1, 1, 0, 1, 0, 0, 0, 1, 1], 1: [1, 1, 0, 0, 1, 0, 1, 0, 1, 1]},
}
PIPELINES = {"greedy": "Greedy()", "roe": "RoE(n=2)", "vote": "SelfConsistency(k=3)"}
ROUTING = {"choices": 10, "changed": 4, "distinct_experts": 30, "expert_sets": 10}


def row(i, score, arm, seed):
    candidates = [{"text": "x"}] * (1 if arm == "greedy" else 3)
    times = 1 if arm == "greedy" else 3
    cost = Cost(flops=1e6 * times * (1 + i), expert_loads=20, new_tokens=times * (4 + seed))
    return {
        "id": f"p{i:02}",
        "score": float(score),
        "seconds": 0.5,
        "cost": cost.to_dict(),
        "candidates": candidates,
        "truncated": int(i == 0),
        "unparsable": int(i < 2),
        "near_ties": 2 if arm == "roe" else 0,
        "routing": ROUTING if arm == "roe" else RoutingStats().__dict__,
        "notes": [f"tau changed 0 of {i}", "all alike"][: i - 6] if arm == "roe" and i > 6 else [],
    }


@pytest.fixture
def report(tmp_path):
    """Builds the report of a recipe whose answers have these scores; `more` are further keys of the recipe."""

    def report(seeds, contrasts="[[roe, greedy]]", scores=SCORES, more="", path="toy"):
        arms = ", ".join(f"{name}: {PIPELINES[name]}" for name in scores)
        file, folder = tmp_path / "r.yaml", tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        file.write_text(
            f"version: 1\nquestion: Who wins?\nmodels: {{toy: {{path: {path}}}}}\ntasks: {{arithmetic: {{}}}}\n"
            f"seeds: {seeds}\narms: {{{arms}}}\ncontrasts: {contrasts}\n{more}"
        )
        recipe = Recipe.load(file)
        store = Store(folder, {"recipe": recipe.resolved(), "versions": {"tokenscale": "0"}, "data": {}})
        for arm, per_seed in scores.items():
            for seed in seeds:
                rows = [row(i, s, arm, seed) for i, s in enumerate(per_seed[seed])]
                # Rows may lie in any order: pairs are made by problem.
                store.append(Slot("arithmetic", "toy", arm, seed), rows[::-1] if arm == "greedy" else rows)
        built = build(recipe, store)
        store.close()
        assert json.loads(json.dumps(built, allow_nan=False)) == built
        return built

    return report


def test_one_seed(report):
    built = report([0])
    greedy, roe = built["arms"]
    assert (greedy["accuracy"], roe["accuracy"]) == (0.4, 0.6)
    assert greedy["interval"] == [wilson(4, 10).low, wilson(4, 10).high]
    assert roe["pipeline"] == "RoE(n=2, tau=0.3, clean_layers=1) | MeanProbability() | Greedy()"
    assert greedy["cost"]["flops"] == pytest.approx(5.5e6)
    assert (greedy["relative_flops"], roe["relative_flops"]) == (1.0, pytest.approx(3.0))
    assert (roe["truncated"], roe["unparsable"]) == (pytest.approx(1 / 30), pytest.approx(2 / 30))
    assert (roe["router_choices"], roe["router_choices_changed"], roe["distinct_experts"]) == (100, 0.4, 3.0)
    assert (greedy["router_choices_changed"], greedy["distinct_experts"]) == (0.0, None)
    assert (roe["near_ties"], roe["seconds"], roe["notes"]) == (
        20,
        5.0,
        ["tau changed 0 of 7 (3 of 10 answers)", "all alike (2 of 10 answers)"],
    )
    [pair] = built["pairs"]
    assert (pair["first"], pair["second"], pair["declared"]) == ("roe", "greedy", True)
    assert pair["difference"] == pytest.approx(0.2)
    assert (pair["first_only"], pair["second_only"], pair["discordance"]) == (3, 1, pytest.approx(0.4))
    interval = bonett_price(3, 1, 10)
    assert pair["interval"] == [interval.low, interval.high]
    # Four discordant pairs, three one way: 2 (1 + 4) / 16.
    assert pair["p"] == pytest.approx(0.625)
    assert pair["test"] == "exact McNemar"


def test_several_seeds_are_averaged_per_problem_first(report):
    built = report([0, 1])
    means = {arm: np.mean(list(per_seed.values()), axis=0) for arm, per_seed in SCORES.items()}
    greedy, roe = built["arms"]
    assert greedy["problems"] == 10
    assert roe["accuracy"] == pytest.approx(means["roe"].mean())
    assert roe["accuracy_per_seed"] == [pytest.approx(0.6), pytest.approx(0.6)]
    interval = mean_interval(means["roe"].tolist())
    assert roe["interval"] == [pytest.approx(interval.low), pytest.approx(interval.high)]
    assert roe["interval_method"] == "t, four pseudo-problems added"
    [pair] = built["pairs"]
    differences = (means["roe"] - means["greedy"]).tolist()
    interval = mean_difference(differences)
    assert pair["interval"] == [pytest.approx(interval.low), pytest.approx(interval.high)]
    assert pair["p"] == pytest.approx(sign_flip(differences))
    assert (pair["test"], pair["interval_method"]) == ("sign-flip permutation", "t, two pseudo-problems added")
    assert greedy["cost"]["new_tokens"] == pytest.approx(4.5)


@pytest.mark.parametrize(
    ("seeds", "accuracy", "difference"),
    [
        ([0], "(Wilson); diff: points against greedy; p: exact McNemar,", "(Bonett-Price; exact McNemar)"),
        (
            [0, 1],
            "(t, four pseudo-problems added); diff: points against greedy; p: sign-flip permutation,",
            "(t, two pseudo-problems added; sign-flip permutation)",
        ),
    ],
)
def test_the_page_names_its_methods(report, seeds, accuracy, difference):
    page = markdown(report(seeds))
    assert f"\n\ninterval: 95% {accuracy} not adjusted. " in page
    assert f"\n\n### Differences on arithmetic, toy {difference}\n" in page


def test_pairs_that_were_not_declared_are_the_later_arm_minus_the_earlier(report):
    [pair] = report([0], contrasts="[]")["pairs"]
    assert (pair["first"], pair["second"], pair["declared"]) == ("roe", "greedy", False)


def test_a_declared_pair_keeps_its_direction_and_the_table_turns_it(report):
    built = report([0], contrasts="[[greedy, roe]]")
    [pair] = built["pairs"]
    assert pair["difference"] == pytest.approx(-0.2)
    [table] = arm_tables(built)
    column = table.headers.index("diff")
    assert [line[column] for line in table.rows] == ["", "+20.0"]


def test_declared_pairs_without_the_baseline_have_a_line_each(report):
    three = SCORES | {"vote": {0: [1, 1, 1, 1, 1, 0, 0, 0, 1, 0]}}
    built = report([0], "[[roe, greedy], [roe, vote]]", three)
    low, high = (100 * end for end in built["pairs"][1]["interval"])
    assert claims(built) == [f"roe - vote (arithmetic, toy): +0.0 points [{low:.1f}, {high:.1f}], p 1.000"]
    assert f"\n- {claims(built)[0]}\n" in markdown(built)
    assert claims(report([0], "[[roe, greedy]]", three)) == []


def test_a_margin_calls_declared_pairs_equal_whose_interval_lies_within_it(report):
    alike = SCORES | {"vote": {0: SCORES["greedy"][0]}}
    high = bonett_price(0, 0, 10).high  # no discordant pair: the interval is symmetric
    assert bonett_price(0, 0, 10).low == pytest.approx(-high)
    just, less = math.ceil(1000 * high) / 10, math.floor(1000 * high) / 10
    for margin, words in ((just, "equal"), (less, "not shown to be equal")):
        built = report([0], "[[vote, greedy], [roe, vote]]", alike, f"margin: {margin}\n")
        assert built["margin"] == margin
        assert [pair["within_margin"] for pair in built["pairs"]] == [margin == just, False, False]
        first, second = claims(built)
        assert first == (
            f"vote - greedy (arithmetic, toy): +0.0 points [-{100 * high:.1f}, {100 * high:.1f}], p 1.000; "
            f"{words} within the margin of {margin} points"
        )
        assert second.endswith(f"; not shown to be equal within the margin of {margin} points")
        assert f"- {first}\n" in markdown(built)
    assert report([0])["pairs"][0]["within_margin"] is None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Greedy()", "Greedy()"),
        ("ChainOfThought()", "Greedy() | ChainOfThought()"),
        ("SelfConsistency(k=5)", "Sample(temperature=0.7) | SelfConsistency(k=5)"),
        ("MeanLogit() | Sample(top_k=4)", "MeanLogit() | Sample(temperature=0.7, top_k=4)"),
        ("RoE(n=2, tau=(0.1, 0.2))", "RoE(n=2, tau=(0.1, 0.2), clean_layers=1) | Greedy()"),
    ],
)
def test_brief_pipelines(text, shown):
    assert brief(Pipeline.parse(text).resolved()) == shown


def test_the_smallest_difference_names_its_assumptions(report):
    built = report([0])
    [entry] = built["smallest_shown"]
    # Ten problems, all discordant ones in one arm's favour: 6 of them are needed for p <= 0.05.
    assert entry["difference"] == entry["discordance"] > 0.6
    [line] = smallest_shown(built)
    assert line.startswith("10 problems (arithmetic, toy) can show a paired difference of ")
    assert "power 0.80, two-sided alpha 0.05" in line
    assert f"differ on {100 * entry['discordance']:.0f}% of the problems" in line


def test_the_smallest_difference_over_several_seeds(report):
    built = report([0, 1])
    differences = np.mean([SCORES["roe"][s] for s in (0, 1)], 0) - np.mean([SCORES["greedy"][s] for s in (0, 1)], 0)
    [entry] = built["smallest_shown"]
    assert entry["difference"] == pytest.approx(detectable_mean(differences.tolist()))
    assert smallest_shown(built)[0].endswith("if differences averaged over 2 seeds spread as they do here.")


@pytest.mark.parametrize(
    ("problems", "said"), [(4, "4 problems (arithmetic, toy) are"), (1, "1 problem (arithmetic, toy) is")]
)
def test_too_few_problems_say_so(problems, said):
    entry = {"task": "arithmetic", "model": "toy", "problems": problems, "difference": None}
    assert smallest_shown({"smallest_shown": [entry]}) == [f"{said} too few to show any difference."]


def test_one_problem_is_one(report):
    one = {arm: {0: per_seed[0][:1]} for arm, per_seed in SCORES.items()}
    [table] = arm_tables(report([0], scores=one))
    assert table.title == "toy on 1 problem of arithmetic"


def test_tables(report):
    built = report([0])
    [arms] = arm_tables(built)
    assert arms.title == "toy on 10 problems of arithmetic"
    assert dict(zip(arms.headers, arms.rows[1], strict=True)) == {
        "arm": "roe",
        "pipeline": "RoE(n=2, tau=0.3, clean_layers=1) | Greedy()",
        "accuracy": "60.0%",
        "interval": "[31.3, 83.2]",
        "diff": "+20.0",
        "p": "0.625",
        "FLOPs": "16.5 M",
        "cost": "x3.00",
        "new tokens": "12.0",
        "expert loads": "20",
        "seconds": "5.0",
    }
    [pairs] = pair_tables(built)
    assert pairs.rows[0][:3] == ("roe - greedy", "yes", "+20.0")
    assert pairs.rows[0][5:7] == ("3", "1")
    [behaviour] = behaviour_tables(built)
    assert behaviour.rows == [
        ("greedy", "10.0%", "20.0%", "-", "-", "0"),
        ("roe", "3.3%", "6.7%", "40.0%", "3.00", "20"),
    ]
    assert notes(built) == [f"roe (toy): {note}" for note in built["arms"][1]["notes"]]


def test_the_page(report):
    page = markdown(report([0]))
    assert page.startswith("# Who wins?\n\nThe task is synthetic arithmetic, which")
    assert "| roe | RoE(n=2, tau=0.3, clean_layers=1) \\| Greedy() | 60.0% |" in page
    assert "tokenscale 0; fingerprint" in page
    assert "- roe (toy): tau changed 0 of 7 (3 of 10 answers)" in page
    tables = [block for block in page.split("\n\n") if block.startswith("|")]
    assert len(tables) == 3
    for table in tables:
        columns = {len(line.replace("\\|", "").strip("|").split("|")) for line in table.splitlines()}
        assert len(columns) == 1


@pytest.mark.parametrize(
    ("path", "caveat"),
    [
        ("demo", "A tiny model on synthetic arithmetic shows that the machinery is right, not which"),
        ("demo-noisy", "A tiny model on synthetic arithmetic shows"),
        ("toy", "The task is synthetic arithmetic, which does not show which strategy wins on yours."),
        ("owner/demo", "The task is synthetic arithmetic"),
    ],
)
def test_only_the_packaged_models_are_called_tiny(report, path, caveat):
    assert report([0], path=path)["caveat"].startswith(caveat)


@pytest.mark.parametrize(
    ("value", "shown"), [(0, "0"), (12.34, "12.3"), (41_230_000, "41.2 M"), (9.99e14, "999 T"), (1e15, "1 P")]
)
def test_amounts(value, shown):
    assert amount(value) == shown


def test_p_values_are_never_zero():
    assert [p_value(p) for p in (1.0, 0.0214, 0.001, 2.4e-5)] == ["1.000", "0.021", "0.001", "2e-05"]
    assert math.isclose(float(p_value(2.4e-5)), 2e-5)
