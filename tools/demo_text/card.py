"""Writes the model cards of the text models from results.json.

python -m tools.demo_text.card
"""

import json

from tools.demo_model.card import CHECKPOINTS
from tools.demo_text.evaluate import ROWS, TAUS
from tools.demo_text.results import NAMES, RESULTS

TWINS = {
    "demo-text": "Its twin, `demo-text-noisy`, saw the same batches, steps and seed, with noisy expert selection.",
    "demo-text-noisy": (
        "Its experts were selected in training by TopK(logits + {gumbel_scale:g} * Gumbel noise), with gate weights of"
        " the noise-free scores; the saved router is the ordinary one. Its twin, `demo-text`, was trained on the same"
        " batches, steps and seed without noise."
    ),
}
CARD = """---
license: apache-2.0
language: en
tags: [mixture-of-experts, documentation]
---
# {name}: a tiny mixture-of-experts model for Python documentation

An OLMoE (transformers `OlmoeForCausalLM`) with {parameters:.2f} M parameters, {active:.2f} M of them active for a
token: hidden size 128, 4 layers, 64 experts of inner size 32, top-8, gates not renormalised, tied embeddings, a
byte-level BPE of {vocabulary:,} entries. Trained from scratch with seed {seed} on the documentation strings and topics
of Python 3.11's standard library ({tokens:.1f} M tokens in {steps} steps, about {passes:.0f} passes over the train
split, windows of 256 tokens) by `tools/demo_text` of this repository, which reproduces it. The text is under the PSF
licence.
{twin}

**A model this small writes the style of documentation and not its content. It is here so that changes of loss by
token-level methods can be measured on natural text, not to show what they bring to a useful model.**

## What was measured
Loss in nats per token on the held-out test split ({documents} whole documents, less pieces that repeat the train
split; {scored:,} tokens in blocks of at most 255 behind an end token), by plain transformers, float32 arithmetic on
the files in this folder.

| model | loss of the clean model |
|---|---|
{losses}

{twins} The loss on
the text it was being trained on was {fitted:.2f} at the end: the text is small and was seen {passes:.0f} times, so the
model has learned some of it by heart.

RoE with all layers noisy (`clean_layers=0`), clean cache, `current_kv="own"`, noise of seed {noise_seed}: change of the
loss against the clean model, with half the width of its 95% interval (paired, by document). Negative is better.

{table}

{best}

With `current_kv="clean"` and n = 8:

{clean_table}

For comparison, without noise: one expert more in every layer (top-9) changes the loss by {more}, and a
temperature of {temperature:g}, chosen on the validation split, by {warm}.

{storage}

{lesson}
"""
LESSON = """## How to read this
{peaks} The gain is small everywhere, and which tau gives it depends on training.

An average of rows is softer than a row, and both models are surer of themselves than they are right on text they were
not trained on. {yardstick} So these figures show how RoE's gain grows with n and depends on tau, not that RoE
is the best way to lower this loss.

An earlier trial with this shape (5 M tokens of such text, other documents held out, n = 8, `current_kv="clean"`) gave,
for comparison only: trained plainly 3.064, with RoE -0.0013 ± 0.0005 at tau 0.1 and +0.0132 at tau 0.5; trained with
noise 3.164, with RoE -0.0012 ± 0.0003 at tau 0.1 and -0.0050 ± 0.0011 at tau 0.5. There the plainly trained twin was
the better model in absolute terms, by more than RoE brought. {here} One seed each: neither is settled."""


def clean(test: dict) -> dict:
    """The row of the clean model."""
    return next(row for row in test["rows"] if row["n"] == 1)


def cells(test: dict, current_kv: str, clean_layers: int = 0) -> dict[tuple[int, float], dict]:
    """Rows by (n, tau)."""
    keys = {"current_kv": current_kv, "clean_layers": clean_layers}
    return {(row["n"], row["tau"]): row for row in test["rows"] if row["n"] > 1 and keys.items() <= row.items()}


def figure(row: dict) -> str:
    """Change and half width."""
    return f"{row['change']:+.4f} ± {row['half_width']:.4f}"


def table(test: dict, current_kv: str, counts: tuple[int, ...]) -> str:
    """One line an n, one column a tau that was run."""
    found = cells(test, current_kv)
    taus = sorted({tau for _, tau in found})
    lines = ["| n | " + " | ".join(f"tau {tau}" for tau in taus) + " |", "|---" * (1 + len(taus)) + "|"]
    lines += [f"| {n} | " + " | ".join(figure(found[n, tau]) for tau in taus) + " |" for n in counts]
    return "\n".join(lines)


def best(test: dict) -> str:
    """The best cell of the table, and whether its interval is below zero."""
    row = min(cells(test, "own").values(), key=lambda row: row["change"])
    where = f"The best of these {len(ROWS) * len(TAUS)} cells is n = {row['n']}, tau {row['tau']}: {figure(row)}"
    if row["change"] + row["half_width"] < 0:
        share = -100 * row["change"] / clean(test)["loss"]
        return f"{where}, a gain of {share:.2f}% of the loss, picked on the test split itself."
    return f"{where}: RoE does not gain on this model."


def twins(results: dict[str, dict]) -> str:
    """The clean losses of both, compared."""
    found = results["demo-text-noisy"]["clean_loss_above_twin"]
    amount = f"{abs(found['change']):.4f} ± {found['half_width']:.4f} nats per token"
    if abs(found["change"]) < found["half_width"]:
        return f"The two losses differ by {amount}, which may be chance."
    better = "plainly trained twin" if found["change"] > 0 else "twin trained with noise"
    return f"Without RoE the {better} is the better model, by {amount}."


def peak(test: dict, n: int) -> dict:
    """The row of the tau that is best for n."""
    return min((row for (rows, _), row in cells(test, "own").items() if rows == n), key=lambda row: row["change"])


def peaks(results: dict[str, dict]) -> str:
    """For each model the best tau at the largest n, and the change there for every n."""
    said = []
    for name in NAMES:
        test = results[name]["reference"]
        tau = peak(test, ROWS[-1])["tau"]
        changes = ", ".join(f"{cells(test, 'own')[n, tau]['change']:+.4f}" for n in ROWS)
        counts = ", ".join(map(str, ROWS))
        edge = " (the largest tried)" if tau == TAUS[-1] else ""
        said.append(f"`{name}` is best at tau {tau}{edge}, where n = {counts} change the loss by {changes}.")
    return " ".join(said)


def yardstick(results: dict[str, dict]) -> str:
    """What a temperature alone brings to each."""
    said = []
    for name in NAMES:
        warm, row = results[name]["temperature"], peak(results[name]["reference"], ROWS[-1])
        said.append(f"{warm['change']:+.4f} for `{name}` (RoE at its best: {row['change']:+.4f})")
    return f"A temperature alone, which costs nothing, changes the loss by {' and '.join(said)}."


def here(results: dict[str, dict]) -> str:
    """Which twin is better in this training."""
    found = results["demo-text-noisy"]["clean_loss_above_twin"]
    better = "plainly trained twin" if found["change"] > 0 else "twin trained with noise"
    return (
        f"In this training the {better} has the lower loss, by {abs(found['change']):.4f} ± {found['half_width']:.4f}."
    )


def storage(report: dict) -> str:
    """What storing in float16 changed."""
    return (
        f"Storing the weights in float16 changed the loss on the validation split ({report['tokens']:,} tokens) from"
        f" {report['float32']:.5f} to {report['stored_as_float16']:.5f}."
    )


def card(results: dict[str, dict], name: str, vocabulary: int) -> str:
    """The model card of one packaged checkpoint."""
    training, test = results[name]["training"], results[name]["reference"]
    losses = "\n".join(f"| {one} | {clean(results[one]['reference'])['loss']:.4f} |" for one in NAMES)
    return CARD.format(
        name=name,
        parameters=training["parameters"] / 1e6,
        active=training["active_parameters"] / 1e6,
        vocabulary=vocabulary,
        seed=training["seed"],
        tokens=training["tokens"] / 1e6,
        steps=training["steps"],
        passes=training["tokens"] / training["corpus_tokens"],
        twin=TWINS[name].format(**training),
        documents=test["documents"],
        scored=test["tokens"],
        losses=losses,
        twins=twins(results),
        noise_seed=test["seed"],
        fitted=training["curve"][-1]["loss"],
        table=table(test, "own", ROWS),
        best=best(test),
        clean_table=table(test, "clean", (8,)),
        more=figure(test["one_expert_more"]),
        temperature=results[name]["temperature"]["temperature"],
        warm=figure(results[name]["temperature"]),
        storage=storage(results[name]["float16"]),
        lesson=LESSON.format(peaks=peaks(results), yardstick=yardstick(results), here=here(results)),
    )


def main() -> None:
    """Writes both cards."""
    results = json.loads(RESULTS.read_text())["models"]
    for name in NAMES:
        vocabulary = json.loads((CHECKPOINTS / name / "config.json").read_text())["vocab_size"]
        (CHECKPOINTS / name / "README.md").write_text(card(results, name, vocabulary))


if __name__ == "__main__":
    main()
