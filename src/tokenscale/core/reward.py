"""Reward models: what one must offer, and a strategy's request for its scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tokenscale.core.cost import Usage
from tokenscale.core.data import Candidate, Served
from tokenscale.core.errors import ModelError
from tokenscale.core.prompt import Prompt


@dataclass(frozen=True)
class Graded:
    """A reward model's answer to one text: its scores (one, or one a step) and what it ran."""

    scores: tuple[float, ...]
    usage: Usage


class RewardModel(ABC):
    """A model that scores answers to prompts. `name` is shown in errors; `fingerprint` names its weights."""

    name: str
    fingerprint: str

    @abstractmethod
    def grade(self, texts: Sequence[tuple[Prompt, tuple[str, ...]]]) -> list[Graded]:
        """Scores of (prompt, answer in steps): with one step, one score of the whole answer; else one per step.

        All texts run as few forwards as memory allows. Raises PromptError for a text longer than the context.
        """


@dataclass(frozen=True)
class Grade:
    """The request of a strategy for scores: yielded like an ask, answered with the same candidates.

    `steps[i]` is the text of candidate i in pieces; each candidate comes back with `step_scores` filled in,
    one per piece.
    """

    prompt: Prompt
    candidates: tuple[Candidate, ...]
    steps: tuple[tuple[str, ...], ...]
    model: str | RewardModel


def graded(requests: Sequence[Grade]) -> list[Served]:
    """The answers to requests of any problems; the texts of one reward model run together."""
    answers = [Served([], []) for _ in requests]
    for model in dict.fromkeys(request.model for request in requests):
        places = [(i, c) for i, r in enumerate(requests) if r.model == model for c in range(len(r.candidates))]
        texts = [(requests[i].prompt, requests[i].steps[c]) for i, c in places]
        for (i, c), grade in zip(places, _checked(open_reward_model(model), texts), strict=True):
            candidates = answers[i].candidates
            assert candidates is not None
            candidates.append(replace(requests[i].candidates[c], step_scores=grade.scores))
            answers[i].usages.append(grade.usage)
    return answers


def _checked(model: RewardModel, texts: Sequence[tuple[Prompt, tuple[str, ...]]]) -> list[Graded]:
    """A reward model's answers. Raises ModelError where they are not one per text, with one score per step."""
    found = model.grade(texts)
    if not (isinstance(found, list) and all(isinstance(grade, Graded) for grade in found)):
        message = f"the reward model {model.name} returned {found!r:.80}"
    elif [len(grade.scores) for grade in found] != [len(steps) for _, steps in texts]:
        given, wanted = [len(grade.scores) for grade in found], [len(steps) for _, steps in texts]
        message = f"the reward model {model.name} gave {given!r:.80} scores for {wanted!r:.80} steps"
    else:
        return found
    raise ModelError(message, "return a list with one Graded per text, with one score per step of it")


_open: Callable[[str], RewardModel] | None = None


def set_reward_opener(load: Callable[[str], RewardModel]) -> None:
    """The loader of checkpoints says here how a reward model's reference is opened."""
    global _open
    _open = load


def open_reward_model(reference: str | RewardModel) -> RewardModel:
    """A reward model itself, or what a path or id names, opened once in a process. Raises ModelError."""
    if isinstance(reference, RewardModel):
        return reference
    assert _open is not None, "no loader has been set"
    return _open(reference)
