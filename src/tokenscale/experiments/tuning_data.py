"""What parameters are tuned and tested on: the task's problems, or texts cut into pieces."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

import numpy as np

from tokenscale.core.errors import RecipeError
from tokenscale.core.model import LanguageModel
from tokenscale.core.prompt import Prompt
from tokenscale.experiments.tasks import Problem, draw, find_task, prompts
from tokenscale.recipe import Recipe
from tokenscale.recipe_sections import PromptSection
from tokenscale.recipe_tune import TuneSection, TuningDataSection

Split = Literal["validation", "test"]
_LINES = 'write JSON lines, each with a text: {"name": "a", "text": "..."}'


@dataclass(frozen=True)
class Item:
    """What is scored or answered at once. Items of one `unit` (a document, a problem) may depend on each other.

    `text` are the ids whose perplexity counts, behind `prompt` where there is one; `problem` is what an
    accuracy grades.
    """

    unit: str
    text: tuple[int, ...] | str
    prompt: Prompt | None = None
    problem: Problem | None = None


@dataclass(frozen=True)
class Document:
    """One text of a split; `name` tells it from the others."""

    name: str
    text: str


@dataclass(frozen=True)
class Data:
    """A validation and a test sample that share nothing, both of documents or both of problems."""

    validation: tuple[Document, ...] | tuple[Problem, ...]
    test: tuple[Document, ...] | tuple[Problem, ...]

    @property
    def digests(self) -> dict[str, str]:
        """A hash of each sample's content, to tell whether data changed."""
        return {"validation": _digest(self.validation), "test": _digest(self.test)}


def read_data(recipe: Recipe, tune: TuneSection, task: str | None) -> Data:
    """Both samples. Raises RecipeError for files that cannot be read, an empty sample, and an overlap."""
    samples = []
    for key, section in (("data", tune.data), ("test", tune.test)):
        sample = _documents(tune, section) if task is None else _problems(recipe, section, task)
        if not sample:
            raise RecipeError(f"tune.{key}: there is nothing in the {section.split} split", "add texts to it")
        samples.append(sample)
    validation, test = samples
    shared = {_content(one): one for one in validation}.keys() & {_content(one) for one in test}
    if shared:
        message = f"tune: {len(shared)} of the {len(test)} test samples are among those that it tunes on"
        raise RecipeError(f"{message}, such as {min(shared)!r:.60}", "take them out of one of the two splits")
    return Data(validation, test)


def _problems(recipe: Recipe, section: TuningDataSection, task: str) -> tuple[Problem, ...]:
    """A sample of problems, less those that stand in prompts as solved examples."""
    arms = [arm.prompt for arm in recipe.arms.values() if arm.prompt is not None]
    shots = max(how.few_shot or 0 for how in (recipe.prompt, *arms)) if section.split == "validation" else 0
    end = None if section.limit is None else shots + section.limit
    drawn = draw(find_task(task), section.split, None)
    return drawn[shots:end]


def _documents(tune: TuneSection, section: TuningDataSection) -> tuple[Document, ...]:
    """A sample of documents, in an order that the split's name fixes."""
    if tune.text_files is not None:
        path = getattr(tune.text_files, section.split)
        found = _read_lines(_text(Path(path)), path)
    else:
        packaged = resources.files("tokenscale.experiments") / "data" / str(tune.texts) / f"{section.split}.jsonl"
        found = _read_lines(packaged.read_text(encoding="utf-8"), f"{tune.texts}/{section.split}")
    key = int.from_bytes(hashlib.blake2b(section.split.encode(), digest_size=8).digest(), "little")
    order = np.random.Generator(np.random.Philox(key)).permutation(len(found))
    return tuple(found[i] for i in order[: section.limit])


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RecipeError(f"tune.text_files: {str(path)!r} cannot be read: {reason}", _LINES) from None


def _read_lines(text: str, source: str) -> list[Document]:
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
        except ValueError:
            data = None
        if not isinstance(data, dict) or not isinstance(data.get("text"), str):
            raise RecipeError(f"tune: line {number} of {source!r} has no text", _LINES)
        found.append(Document(str(data.get("name", number)), data["text"]))
    return found


def _content(sample: Document | Problem) -> str:
    return sample.text.strip() if isinstance(sample, Document) else sample.question.strip()


def _digest(samples: Sequence[Document | Problem]) -> str:
    content = json.dumps([vars(sample) for sample in samples], sort_keys=True)
    return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()


def items(
    sample: Sequence[Document | Problem], lm: LanguageModel, how: PromptSection, task: str | None, piece_tokens: int
) -> list[Item]:
    """The items of a sample: pieces of at most `piece_tokens` tokens of each document, or the problems.

    The first token of a piece has nothing before it and is not scored. Raises RecipeError for pieces
    longer than the model's context, and for documents without two tokens.
    """
    if task is None:
        return _pieces([one for one in sample if isinstance(one, Document)], lm, piece_tokens)
    problems = [one for one in sample if isinstance(one, Problem)]
    asked, found = prompts(find_task(task), problems, how, lm), []
    for problem, prompt in zip(problems, asked, strict=True):
        solved = find_task(task).solve(problem)
        found.append(Item(problem.id, solved if prompt.messages is None else solved.strip(), prompt, problem))
    return found


def _pieces(documents: Sequence[Document], lm: LanguageModel, piece_tokens: int) -> list[Item]:
    if piece_tokens > lm.context_length:
        message = f"tune.piece_tokens is {piece_tokens}, and the context of {lm.name} holds {lm.context_length}"
        raise RecipeError(message, f"write piece_tokens: {lm.context_length}, or less")
    pieces = []
    for document in documents:
        ids = lm.encode(Prompt(text=document.text))
        cut = [ids[start : start + piece_tokens] for start in range(0, len(ids), piece_tokens)]
        pieces += [Item(document.name, piece) for piece in cut if len(piece) > 1]
    if not pieces:
        raise RecipeError("tune: no document has two tokens", "give longer texts")
    return pieces
