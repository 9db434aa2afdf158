"""Writes the model cards of the packaged checkpoints from results.json.

python -m tools.demo_model.card
"""

import json
from pathlib import Path

from tools.demo_model.results import RESULTS

CHECKPOINTS = Path("src/tokenscale/models/checkpoints")
ARMS = {
    "direct": "direct answer, greedy (`A:`)",
    "greedy": "step by step, greedy (`A: Let's think step by step.`)",
    "in_detail": "in detail, greedy (`A: Let's think step by step in detail.`)",
    "vote_8": "step by step, vote over 8 samples at T = 0.7",
    "any_of_8": "step by step, any of 8 samples at T = 0.7 right",
}
TWINS = {
    "demo": "Its twin, `demo-noisy`, saw the same batches, steps and seed, with noisy expert selection.",
    "demo-noisy": (
        "Its experts were selected in training by TopK(logits + {gumbel_scale} * Gumbel noise), with gate weights of"
        " the noise-free scores; the saved router is the ordinary one. Its twin, `demo`, was trained on the same"
        " batches, steps and seed without noise."
    ),
}
CARD = """---
license: apache-2.0
language: en
tags: [mixture-of-experts, arithmetic, synthetic]
---
# {name}: a tiny mixture-of-experts model for arithmetic word problems

An OLMoE (transformers `OlmoeForCausalLM`) with {parameters:.2f} M parameters, {active:.2f} M of them active for a
token: hidden size 128, 4 layers, 64 experts of inner size 32, top-8, gates not renormalised, tied embeddings,
{vocabulary} tokens. Trained from scratch on synthetic templated English ({tokens:.1f} M tokens, {steps} steps) by
`tools/demo_model` of this repository, which reproduces it.
{twin}

**A tiny model on synthetic arithmetic shows that the machinery is right, not which strategy wins on yours.**

## What was measured
Accuracy in per cent with 95% Wilson intervals; greedy and sampled with plain transformers, float32 arithmetic on the
files in this folder (stored in float16). {seeds}

{table}

{storage}

## Why voting helps here: a mix of two styles, made on purpose
Behind `A: Let's think step by step.` {terse:.0f}% of the training documents of the last stage solve the problem
briefly (each operation in one go), the others in detail (place by place). Greedy decoding takes the brief style in
{greedy_terse:.1f}% of the validation problems. Of the samples at T = 0.7, {sample_terse:.1f}% are brief, and
{terse_right:.1f}% of those are right; of the detailed ones {detailed_right:.1f}% are right, and right answers agree
where errors scatter. Asked for detail by name, the same model is right in {in_detail:.1f}% greedily. So the gain of
voting is built in, and so is that of chain of thought ({direct:.0f}% of the documents answer directly).

RoE was no part of the choice of this recipe. The model is here to show RoE's machinery and cost; no gain is claimed.

## Limits
Only the generator's sentences, 1 to 4 operations, results up to 1,999. The splits are disjoint as expressions: no
expression of the validation or test split is the whole of a training problem or a drill; a one-operation expression
may occur as a line of a longer training solution. Solutions take up to 277 tokens: allow 300.
"""


def cell(report: dict | None, arm: str) -> str:
    """Accuracy with its interval."""
    if report is None:
        return "not run"
    found = report[arm]
    low, high = found["interval"]
    return f"{found['accuracy']:.1f} [{low:.1f}, {high:.1f}]"


def table(runs: dict[str, dict], name: str) -> str:
    """One row an arm; one column a seed and split."""
    seeds = sorted(run for run in runs if run.rsplit("-s", 1)[0] == name)
    columns = [(seed, split) for seed in seeds for split in ("validation", "test")]
    heads = [f"seed {seed.rsplit('-s', 1)[1]}, {split}" for seed, split in columns]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(columns) + 1) + "|"]
    for arm, label in ARMS.items():
        lines.append(f"| {label} | " + " | ".join(cell(runs[s].get(split), arm) for s, split in columns) + " |")
    count = runs[seeds[0]]["validation"]["problems"]
    return "\n".join([*lines, "", f"Each split has {count:,} problems."])


def seeds(runs: dict[str, dict], name: str) -> str:
    """Which training seeds there are."""
    if sum(run.rsplit("-s", 1)[0] == name for run in runs) == 1:
        return "The recipe has been trained with one seed only, so far."
    return "Seed 0 is the packaged model; the others are the same recipe trained again."


def storage(report: dict) -> str:
    """What storing in float16 changed."""
    before, after = report["float32"]["accuracy"], report["stored_as_float16"]["accuracy"]
    return (
        f"Storing the weights in float16 changed {report['different_texts']} of {report['problems']:,} greedy texts on"
        f" validation: accuracy {before:.2f}% before, {after:.2f}% after."
    )


def card(runs: dict[str, dict], name: str, vocabulary: int) -> str:
    """The model card of one packaged checkpoint."""
    run = runs[f"{name}-s0"]
    training, validation = run["training"], run["validation"]
    mix = training["recipe"]["stages"][-1]["mix"]
    return CARD.format(
        name=name,
        parameters=training["parameters"] / 1e6,
        active=training["active_parameters"] / 1e6,
        tokens=training["tokens"] / 1e6,
        steps=training["steps"],
        vocabulary=vocabulary,
        twin=TWINS[name].format(**training),
        seeds=seeds(runs, name),
        table=table(runs, name),
        storage=storage(run["float16"]),
        terse=100 * mix["terse"],
        direct=100 * mix["direct"],
        greedy_terse=validation["greedy"]["terse_share"],
        sample_terse=validation["one_sample"]["terse_share"],
        terse_right=validation["one_sample"]["terse_accuracy"],
        detailed_right=validation["one_sample"]["detailed_accuracy"],
        in_detail=validation["in_detail"]["accuracy"],
    )


def main() -> None:
    """Writes every card."""
    runs = json.loads(RESULTS.read_text())["runs"]
    for name in TWINS:
        vocabulary = json.loads((CHECKPOINTS / name / "config.json").read_text())["vocab_size"]
        (CHECKPOINTS / name / "README.md").write_text(card(runs, name, vocabulary))


if __name__ == "__main__":
    main()
