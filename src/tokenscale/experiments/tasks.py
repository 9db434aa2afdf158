"""Tasks: problems with reference answers, how each is asked and how an answer is graded."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

import numpy as np

from tokenscale.core.errors import RecipeError, nearest
from tokenscale.core.model import LanguageModel
from tokenscale.core.prompt import Prompt
from tokenscale.recipe_sections import PromptSection, TaskSection
from tokenscale.sequence_level.answers import extract

Split = Literal["validation", "test"]


@dataclass(frozen=True)
class Problem:
    """One question with its reference answer; `id` names the problem's random streams and its rows."""

    id: str
    question: str
    answer: str


class Task(ABC):
    """A frozen set of problems in splits that share none, with a prompt and a grader."""

    name: str

    @abstractmethod
    def problems(self, split: Split) -> tuple[Problem, ...]:
        """All problems of a split, in file order."""

    @abstractmethod
    def ask(self, problem: Problem) -> str:
        """The prompt of a problem as plain text; it ends where the answer begins."""

    @abstractmethod
    def solve(self, problem: Problem) -> str:
        """The reference answer as it would stand behind `ask`: the worked half of a few-shot example."""

    @abstractmethod
    def extract(self, text: str) -> str | None:
        """The answer that a text gives, in normal form; None where it gives none."""

    def grade(self, problem: Problem, text: str) -> float:
        """Score in [0, 1]: 1.0 where the text's answer equals the reference answer."""
        answer = self.extract(text)
        return float(answer is not None and answer == self.extract(problem.answer))


@dataclass(frozen=True)
class Arithmetic(Task):
    """Synthetic arithmetic word problems with integer answers, packaged with the library."""

    name: str = "arithmetic"

    def problems(self, split: Split) -> tuple[Problem, ...]:
        return _packaged(self.name, split)

    def ask(self, problem: Problem) -> str:
        return f"Q: {problem.question}\nA:"

    def solve(self, problem: Problem) -> str:
        return f" #### {problem.answer}"

    def extract(self, text: str) -> str | None:
        return extract(text, "number")


@cache
def _packaged(name: str, split: Split) -> tuple[Problem, ...]:
    path = resources.files("tokenscale.experiments") / "data" / name / f"{split}.jsonl"
    return tuple(Problem(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines())


BUILT_IN: dict[str, Task] = {"arithmetic": Arithmetic()}


def find_task(name: str) -> Task:
    """A task by its name. Raises RecipeError."""
    if name not in BUILT_IN:
        raise RecipeError(f"unknown task {name!r:.80}", nearest(name, BUILT_IN))
    return BUILT_IN[name]


def draw(task: Task, split: Split, limit: int | None) -> tuple[Problem, ...]:
    """A random sample without repeats, by a seed that task and split fix: the same for every arm and seed.

    Samples are nested: those of limit 100 are the first 100 of limit 200. Raises RecipeError for a
    limit beyond the split (`Recipe.load` says the same with the place).
    """
    problems = task.problems(split)
    if limit is not None and limit > len(problems):
        message = f"{limit} problems are asked for, and the {split} split of {task.name} has {len(problems)}"
        raise RecipeError(message, f"ask for {len(problems)} or fewer")
    key = int.from_bytes(hashlib.blake2b(f"{task.name}/{split}".encode(), digest_size=8).digest(), "little")
    order = np.random.Generator(np.random.Philox(key)).permutation(len(problems))
    return tuple(problems[i] for i in order[:limit])


def digest(problems: Sequence[Problem]) -> str:
    """A hash of problems in their order, to tell whether data changed."""
    content = json.dumps([[p.id, p.question, p.answer] for p in problems])
    return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()


def reported(name: str, section: TaskSection) -> tuple[Problem, ...]:
    """The problems that a recipe's task section asks for."""
    return draw(find_task(name), section.split, section.limit)


def prompts(task: Task, problems: Sequence[Problem], how: PromptSection, lm: LanguageModel) -> list[Prompt]:
    """One prompt a problem, its key being the problem's id.

    As chat (`chat: true`, or `auto` and a tokenizer with a chat template) examples are earlier turns;
    as plain text they stand above, a blank line apart.
    """
    chat = how.chat is True or (how.chat == "auto" and bool(getattr(lm.tokenizer, "chat_template", None)))
    examples = draw(task, "validation", how.few_shot or 0)
    build = _chat if chat else _plain
    made = [build(task, problem, examples, how.system) for problem in problems]
    return [p.with_template_options(how.chat_template_kwargs) for p in made] if how.chat_template_kwargs else made


def _plain(task: Task, problem: Problem, examples: Sequence[Problem], system: str | None) -> Prompt:
    parts = [system] if system else []
    parts += [task.ask(example) + task.solve(example) for example in examples]
    return Prompt(text="\n\n".join([*parts, task.ask(problem)]), key=problem.id)


def _chat(task: Task, problem: Problem, examples: Sequence[Problem], system: str | None) -> Prompt:
    turns = [("system", system)] if system else []
    for example in examples:
        turns += [("user", example.question), ("assistant", task.solve(example).strip())]
    turns.append(("user", problem.question))
    messages = tuple((("role", role), ("content", content)) for role, content in turns)
    return Prompt(messages=messages, key=problem.id)
