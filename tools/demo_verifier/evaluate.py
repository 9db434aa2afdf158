"""Best of 8 by the verifier against the vote, the log-probability and greedy decoding, on a held-out split.

    python -m tools.demo_verifier.evaluate --model build/demo_verifier/run/checkpoint.pt \
        --candidates build/demo_verifier/validation.jsonl --out build/demo_verifier/run/validation.json

The candidates are those of the demo model's own evaluation (the same draws), drawn first where the file is not there.
Scoring is plain transformers, independent of the library. The recipe is chosen on the validation split.
"""

import argparse
import json
import math
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaForSequenceClassification

from tools.demo_model.documents import TRIGGER, prompt
from tools.demo_model.evaluate import (
    SAMPLING_SEED,
    TEMPERATURE,
    VOTERS,
    Evaluation,
    accuracy,
    load_problems,
    mcnemar,
    vote,
)
from tools.demo_model.evaluate import load_model as load_demo
from tools.demo_model.sampling import Sample
from tools.demo_model.solutions import TERSE_START, read_answer
from tools.demo_verifier.samples import CHECKPOINTS
from tools.demo_verifier.train import auc, build, scores

STEP = ","  # what ends a step of a solution
REDUCTIONS = ("last", "min", "prod", "mean")


@dataclass(frozen=True)
class Drawn:
    """One problem with the greedy continuation and the samples."""

    question: str
    answer: str
    greedy: Sample
    samples: tuple[Sample, ...]


def draw(split: str) -> list[Drawn]:
    """The candidates of every problem of a split."""
    problems = load_problems(split, None)
    evaluation = Evaluation(*load_demo(CHECKPOINTS / "demo", CHECKPOINTS / "demo"), problems)
    greedy = evaluation.said(TRIGGER)
    samples = evaluation.said(TRIGGER, copies=VOTERS, temperature=TEMPERATURE, seed=SAMPLING_SEED)
    return [
        Drawn(p["question"], p["answer"], g[0], tuple(s)) for p, g, s in zip(problems, greedy, samples, strict=True)
    ]


def write(found: list[Drawn], path: Path) -> None:
    """One JSON list a line."""
    rows = (
        [d.question, d.answer, [d.greedy.text, d.greedy.log_prob], [[s.text, s.log_prob] for s in d.samples]]
        for d in found
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(path: Path) -> list[Drawn]:
    """What `write` wrote."""
    rows = map(json.loads, path.read_text().splitlines())
    return [Drawn(q, a, Sample(*greedy), tuple(Sample(*s) for s in samples)) for q, a, greedy, samples in rows]


def load_model(path: Path) -> tuple[LlamaForSequenceClassification, AutoTokenizer]:
    """A model folder, or a checkpoint of train.py, in float32."""
    if path.is_dir():
        model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32, local_files_only=True)
        return model.eval(), AutoTokenizer.from_pretrained(path)
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINTS / "demo")
    model = build(tokenizer)
    model.load_state_dict(torch.load(path, weights_only=True)["model"])
    return model.eval(), tokenizer


def step_ends(ends: list[int], start: int, text: str) -> list[int]:
    """The tokens that end a step of `text`, which begins at character `start`; the last token is one of them."""
    places = [start + i for i, character in enumerate(text[:-1]) if character == STEP]
    tokens = [next(t for t, end in enumerate(ends) if end > place) for place in places]
    return [*tokens, len(ends) - 1]


@torch.no_grad()
def step_scores(model, tokenizer, texts: list[tuple[str, str]], rows: int = 64) -> list[list[float]]:
    """The scores of (prompt, answer) texts at the end of every step, the last being that of the whole text."""
    encodings = [tokenizer(p + a, return_offsets_mapping=True) for p, a in texts]
    order = sorted(range(len(texts)), key=lambda i: len(encodings[i]["input_ids"]))
    found: list[list[float]] = [[] for _ in texts]
    for start in range(0, len(order), rows):
        some = order[start : start + rows]
        ids = [torch.tensor(encodings[i]["input_ids"]) for i in some]
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=tokenizer.pad_token_id)
        values = scores(model, padded)
        for row, i in enumerate(some):
            ends = [end for _, end in encodings[i]["offset_mapping"]]
            found[i] = values[row, step_ends(ends, len(texts[i][0]), texts[i][1])].double().tolist()
    return found


def reduced(steps: list[float], how: str) -> float:
    """One score of the steps' probabilities of being right."""
    chances = [1 / (1 + math.exp(-score)) for score in steps]
    if how == "last":
        return chances[-1]
    return {"min": min(chances), "prod": math.prod(chances), "mean": sum(chances) / len(chances)}[how]


def weighted_vote(samples: tuple[Sample, ...], weights: list[float]) -> str | None:
    """The answer with the largest sum of weights."""
    mass: dict[str, float] = defaultdict(float)
    for sample, weight in zip(samples, weights, strict=True):
        answer = read_answer(sample.text)
        if answer is not None:
            mass[answer] += weight
    return max(mass, key=lambda answer: mass[answer]) if mass else None


@dataclass(frozen=True)
class Scored:
    """Problems, with a list of each sample's step scores and mean log-probability per problem."""

    found: list[Drawn]
    steps: list[list[list[float]]]
    mean_log_probs: list[list[float]]

    @classmethod
    def of(cls, model, tokenizer, found: list[Drawn], trigger: str) -> "Scored":
        """Scores all samples; `trigger` is what the verifier sees behind `A:`, whatever they were drawn by."""
        texts = [(prompt(d.question, trigger), s.text) for d in found for s in d.samples]
        flat = step_scores(model, tokenizer, texts)
        steps = [flat[i * VOTERS : (i + 1) * VOTERS] for i in range(len(found))]
        lengths = iter(len(tokenizer(text)["input_ids"]) + 1 for _, text in texts)
        return cls(found, steps, [[s.log_prob / next(lengths) for s in d.samples] for d in found])

    @property
    def right(self) -> list[list[bool]]:
        """Whether each sample's answer is right."""
        return [[read_answer(s.text) == d.answer for s in d.samples] for d in self.found]

    def best(self, values: list[list[float]]) -> list[bool]:
        """Whether the sample of the highest value is right, per problem; ties go to the first."""
        pairs = zip(self.right, values, strict=True)
        return [marks[max(range(VOTERS), key=scored.__getitem__)] for marks, scored in pairs]

    def separation(self, values: list[list[float]], brief: bool | None = None) -> float:
        """The area under the ROC curve of right against wrong samples, of all or of one style."""
        rows = zip(self.found, values, self.right, strict=True)
        triples = [t for d, row, marks in rows for t in zip(d.samples, row, marks, strict=True)]
        pairs = [(v, m) for s, v, m in triples if brief in (None, s.text.startswith(TERSE_START))]
        return round(auc([v for v, m in pairs if m], [v for v, m in pairs if not m]), 4)


def report(scored: Scored) -> dict:
    """Every arm."""
    found, right = scored.found, scored.right
    whole = [[s[-1] for s in row] for row in scored.steps]
    log_sum = [[s.log_prob for s in d.samples] for d in found]
    values = {"verifier": whole, "log_prob_mean": scored.mean_log_probs, "log_prob_sum": log_sum}
    values |= {f"steps_{how}": [[reduced(s, how) for s in row] for row in scored.steps] for how in REDUCTIONS}
    best = {name: scored.best(column) for name, column in values.items()}
    weighted = [[reduced(s, "last") for s in row] for row in scored.steps]
    pairs = list(zip(found, weighted, strict=True))
    arms = {
        "greedy": [read_answer(d.greedy.text) == d.answer for d in found],
        f"vote_{VOTERS}": [vote(list(d.samples)) == d.answer for d in found],
        "vote_weighted_by_verifier": [weighted_vote(d.samples, weights) == d.answer for d, weights in pairs],
        **{f"best_by_{name}": marks for name, marks in best.items()},
        f"any_of_{VOTERS}": [any(row) for row in right],
    }
    against = ("greedy", f"vote_{VOTERS}", "best_by_log_prob_mean", "best_by_log_prob_sum")
    return {
        "problems": len(found),
        "samples_right": round(100 * sum(map(sum, right)) / (VOTERS * len(found)), 2),
        "auc": {name: scored.separation(column) for name, column in values.items()},
        "auc_of_a_style": {
            style: {name: scored.separation(values[name], style == "brief") for name in ("verifier", "log_prob_mean")}
            for style in ("brief", "detailed")
        },
        "arms": {name: accuracy(marks) for name, marks in arms.items()},
        "mcnemar_p_of_best_by_verifier": {name: mcnemar(arms[name], best["verifier"]) for name in against},
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model folder or a checkpoint of train.py")
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--candidates", type=Path, required=True)
    parser.add_argument("--trigger", action="store_true", help="show the verifier the trigger of the samples too")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.candidates.exists():
        write(draw(options.split), options.candidates)
    if options.model:
        before = time.monotonic()
        trigger = TRIGGER if options.trigger else ""
        found = report(Scored.of(*load_model(options.model), read(options.candidates), trigger))
        found |= {
            "split": options.split,
            "verifier_sees": prompt("...", trigger),
            "seconds": round(time.monotonic() - before),
        }
        print(json.dumps(found, indent=1))
        if options.out:
            options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
