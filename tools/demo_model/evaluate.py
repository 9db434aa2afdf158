"""Accuracy of a checkpoint on a held-out split: greedy, direct, in detail, vote and any of k.

    python -m tools.demo_model.evaluate --model build/demo_model/demo-s0/checkpoint.pt --out FILE.json

The gates that chose the recipe of training are looked up on the validation split. One thread.
"""

import argparse
import json
import math
import time
from collections import Counter
from pathlib import Path

import torch
from scipy.stats import binomtest, norm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from tools.demo_model.documents import DETAIL_TRIGGER, TRIGGER, prompt
from tools.demo_model.model import build
from tools.demo_model.sampling import Sample, continuations
from tools.demo_model.solutions import TERSE_START, read_answer

DATA = Path("src/tokenscale/experiments/data/arithmetic")
VOTERS, TEMPERATURE, SAMPLING_SEED = 8, 0.7, 0


def load_problems(split: str, limit: int | None) -> list[dict[str, str]]:
    """The first ``limit`` problems of a split."""
    return [json.loads(line) for line in (DATA / f"{split}.jsonl").read_text().splitlines()][:limit]


def load_model(path: Path, tokenizer_folder: Path) -> tuple[PreTrainedModel, AutoTokenizer]:
    """A model folder, or a checkpoint of train.py, in float32 with grouped experts."""
    if path.is_dir():
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, experts_implementation="grouped_mm", local_files_only=True
        )
    else:
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
        state = torch.load(path, weights_only=True)
        model = build(state["recipe"]["model"], len(tokenizer), tokenizer.pad_token_id, tokenizer.eos_token_id)
        model.load_state_dict(state["model"])
    return model.eval(), tokenizer


def vote(samples: list[Sample]) -> str | None:
    """The most frequent answer; ties go to the larger summed probability, then to the first seen."""
    answers = [(read_answer(sample.text), sample.log_prob) for sample in samples]
    counts = Counter(answer for answer, _ in answers if answer is not None)
    if not counts:
        return None
    mass = {answer: math.fsum(math.exp(lp) for found, lp in answers if found == answer) for answer in counts}
    return max(counts, key=lambda answer: (counts[answer], mass[answer]))


def wilson(right: int, count: int, confidence: float = 0.95) -> list[float]:
    """Wilson's interval for a share, in per cent."""
    z, share = float(norm.ppf(0.5 + confidence / 2)), right / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return [round(100 * (centre - half), 2), round(100 * (centre + half), 2)]


def mcnemar(first: list[bool], second: list[bool]) -> float:
    """Exact two-sided p-value of McNemar's test on paired outcomes."""
    gained = sum(b and not a for a, b in zip(first, second, strict=True))
    lost = sum(a and not b for a, b in zip(first, second, strict=True))
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def accuracy(right: list[bool]) -> dict:
    """Accuracy in per cent with its 95% interval."""
    return {"accuracy": round(100 * sum(right) / len(right), 2), "interval": wilson(sum(right), len(right))}


def styles(samples: list[Sample], right: list[bool]) -> dict:
    """Per cent of continuations in the terse style, and the accuracy within each style (None: no such one)."""
    marks: dict[bool, list[bool]] = {True: [], False: []}
    for sample, mark in zip(samples, right, strict=True):
        marks[sample.text.startswith(TERSE_START)].append(mark)
    terse, other = (round(100 * sum(m) / len(m), 2) if m else None for m in (marks[True], marks[False]))
    share = round(100 * len(marks[True]) / len(samples), 2)
    return {"terse_share": share, "terse_accuracy": terse, "detailed_accuracy": other}


class Evaluation:
    """The arms of one model on one list of problems."""

    def __init__(self, model: PreTrainedModel, tokenizer: AutoTokenizer, problems: list[dict[str, str]]):
        self.model, self.tokenizer, self.problems = model, tokenizer, problems

    def said(self, trigger: str, **options) -> list[list[Sample]]:
        """Continuations of every problem behind a trigger."""
        prompts = [prompt(problem["question"], trigger) for problem in self.problems]
        return continuations(self.model, self.tokenizer, prompts, **options)

    def marks(self, answers: list[str | None]) -> list[bool]:
        """Which answers are right."""
        return [answer == problem["answer"] for answer, problem in zip(answers, self.problems, strict=True)]

    def greedy(self, trigger: str) -> tuple[list[bool], list[Sample]]:
        """(marks, continuations) of greedy decoding."""
        samples = [copies[0] for copies in self.said(trigger)]
        return self.marks([read_answer(sample.text) for sample in samples]), samples

    def report(self) -> dict:
        """Every arm, and the vote compared with greedy on the same problems."""
        greedy, texts = self.greedy(TRIGGER)
        drawn = self.said(TRIGGER, copies=VOTERS, temperature=TEMPERATURE, seed=SAMPLING_SEED)
        voted = self.marks([vote(copies) for copies in drawn])
        each = [self.marks([read_answer(copies[j].text) for copies in drawn]) for j in range(VOTERS)]
        single = [mark for marks in each for mark in marks]
        samples = [copies[j] for j in range(VOTERS) for copies in drawn]
        return {
            "problems": len(self.problems),
            "greedy": accuracy(greedy) | styles(texts, greedy),
            "direct": accuracy(self.greedy("")[0]),
            "in_detail": accuracy(self.greedy(DETAIL_TRIGGER)[0]),
            "one_sample": {"accuracy": round(100 * sum(single) / len(single), 2)} | styles(samples, single),
            f"vote_{VOTERS}": accuracy(voted) | {"mcnemar_p_against_greedy": mcnemar(greedy, voted)},
            f"any_of_{VOTERS}": accuracy([any(marks) for marks in zip(*each, strict=True)]),
            "temperature": TEMPERATURE,
            "sampling_seed": SAMPLING_SEED,
        }


def gates(report: dict) -> dict[str, bool]:
    """The conditions on the validation split that a recipe of training must meet."""
    greedy, voted = report["greedy"]["accuracy"], report[f"vote_{VOTERS}"]
    return {
        "greedy between 50 and 80": 50 <= greedy <= 80,
        "vote at least 4 points above greedy": voted["accuracy"] >= greedy + 4,
        "p below 0.01": voted["mcnemar_p_against_greedy"] < 0.01,
        "any of 8 at least 15 points above greedy": report[f"any_of_{VOTERS}"]["accuracy"] >= greedy + 15,
        "direct below chain of thought": report["direct"]["interval"][1] < report["greedy"]["interval"][0],
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a model folder or a checkpoint of train.py")
    parser.add_argument("--tokenizer", type=Path, default=Path("build/demo_model/tokenizer"))
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--limit", type=int, help="the first so many problems only")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = load_model(options.model, options.tokenizer)
    before = time.monotonic()
    report = Evaluation(model, tokenizer, load_problems(options.split, options.limit)).report()
    report |= {"split": options.split, "gates": gates(report), "seconds": round(time.monotonic() - before)}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
