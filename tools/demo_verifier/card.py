"""Writes the model card of the packaged verifier from results.json.

python -m tools.demo_verifier.card
"""

import json
from pathlib import Path

from tools.demo_verifier.results import RESULTS
from tools.demo_verifier.samples import CHECKPOINTS

CARD = Path(CHECKPOINTS / "demo-verifier" / "README.md")
ARMS = {
    "greedy": "greedy",
    "vote_8": "vote over 8 samples",
    "best_by_log_prob_sum": "best of 8 by log-probability",
    "best_by_log_prob_mean": "best of 8 by mean log-probability",
    "best_by_verifier": "best of 8 by the verifier",
    "best_by_steps_min": "best of 8 by the verifier's worst step",
    "best_by_steps_prod": "best of 8 by the product of its steps",
    "best_by_steps_mean": "best of 8 by the mean of its steps",
    "vote_weighted_by_verifier": "vote of 8 weighted by the verifier",
    "any_of_8": "any of 8 right",
}
TEXT = """---
license: apache-2.0
language: en
tags: [reward-model, arithmetic, synthetic]
---
# demo-verifier: a tiny reward model for the demo model's solutions

A Llama (transformers `LlamaForSequenceClassification`, one label) with {parameters:.2f} M parameters, the demo model's
tokenizer. It reads a problem with a solution and says how likely the solution is right (the sigmoid of its output).
After every token it has learned to say whether everything so far is right, so the same model scores steps: in these
solutions a comma ends a step, `ProcessRewardScorer(steps=",")`. `tools/demo_verifier` of this repository made it.

It was trained on {count:,} samples of `demo` and `demo-noisy` at temperatures 0.7 to 1 ({right:.0f}% right), on fresh
problems of the generator's training split, and on written solutions and computations with errors put in;
{tokens:.1f} M tokens, {steps} steps, seed {seed}. No expression of the validation or test split is the whole of a
problem it was trained on.

## What was measured
Accuracy in per cent with 95% Wilson intervals, 2,000 problems a split; 8 samples of `demo` at T = 0.7 behind
`A: Let's think step by step.`, the verifier given the question as it was asked, without that trigger. Plain
transformers.

{table}

Area under the ROC curve of right against wrong samples:

{aucs}

Exact McNemar tests of best of 8 by the verifier on the test split: {tests}.

{trigger}
{storage}

## What it can do and what not
{verdict}
Only the generator's sentences and the demo models' ways of writing solutions.
"""


def cell(report: dict, arm: str) -> str:
    """Accuracy with its interval."""
    found = report["arms"][arm]
    low, high = found["interval"]
    return f"{found['accuracy']:.1f} [{low:.1f}, {high:.1f}]"


def table(results: dict) -> str:
    """One row an arm."""
    lines = ["| | validation | test |", "|---|---|---|"]
    return "\n".join(
        lines
        + [f"| {name} | {cell(results['validation'], a)} | {cell(results['test'], a)} |" for a, name in ARMS.items()]
    )


def aucs(results: dict) -> str:
    """One row a score, over all samples and within each style."""
    names = {"verifier": "the verifier", "log_prob_mean": "mean log-probability"}
    lines = ["| | validation | test | brief ones, test | detailed ones, test |", "|---|---|---|---|---|"]
    for key, name in names.items():
        found = [results[split]["auc"][key] for split in ("validation", "test")]
        found += [results["test"]["auc_of_a_style"][style][key] for style in ("brief", "detailed")]
        lines.append(f"| {name} | {' | '.join(f'{value:.3f}' for value in found)} |")
    return "\n".join(lines)


def tests(results: dict) -> str:
    """Paired comparisons on the test split."""
    names = {
        "greedy": "greedy",
        "vote_8": "the vote",
        "best_by_log_prob_mean": "mean log-probability",
        "best_by_log_prob_sum": "log-probability",
    }
    found = results["test"]["mcnemar_p_of_best_by_verifier"]
    return ",\n".join(f"p = {found[key]:.2g} against {name}" for key, name in names.items())


def verdict(results: dict) -> str:
    """What the comparison with the log-probability comes to, in words."""
    arms = results["test"]["arms"]
    mine, theirs = arms["best_by_verifier"]["accuracy"], arms["best_by_log_prob_mean"]["accuracy"]
    p = results["test"]["mcnemar_p_of_best_by_verifier"]["best_by_log_prob_mean"]
    if p >= 0.05:
        said = f"It chooses as well as the demo model's own mean log-probability, within chance ({mine} and {theirs}%)."
    else:
        word = "better" if mine > theirs else "worse"
        said = f"It chooses {word} than the demo model's own mean log-probability ({mine} against {theirs}%)."
    return f"""{said}
It is a judge twenty times smaller than the model that it grades, and tells right from wrong better than that model's
mean log-probability among detailed solutions alone. It knows where and how the demo models err; an error put into a
right solution at random it often misses. The demo model writes in two styles, made on purpose, of which the detailed
one is right more often, and a part of all gains over the vote is seeing the style. So none of this is a finding
about reward models."""


def card(results: dict) -> str:
    """The model card."""
    training, check = results["training"], results["float16"]
    shown = results["validation_with_trigger"]["arms"]["best_by_verifier"]["accuracy"]
    return TEXT.format(
        parameters=training["parameters"] / 1e6,
        count=results["samples"]["count"],
        right=results["samples"]["right"],
        tokens=training["tokens"] / 1e6,
        steps=training["steps"],
        seed=training["seed"],
        table=table(results),
        aucs=aucs(results),
        tests=tests(results),
        trigger=f"With the trigger shown to it, best of 8 by the verifier is right in {shown:.1f}% on validation.",
        storage=(
            f"Storing the weights in float16 moved scores by at most {check['largest_difference']} and changed the best"
            f"\nof 8 in {check['another_best']} of {check['problems']:,} validation problems."
        ),
        verdict=verdict(results),
    )


def main() -> None:
    """Writes the card."""
    CARD.write_text(card(json.loads(RESULTS.read_text())))


if __name__ == "__main__":
    main()
