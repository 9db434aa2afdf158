"""One cache whose every token, the prompt's too, runs the experts of given ranks."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from tokenscale.core.cost import Cached
from tokenscale.core.errors import ArgumentError
from tokenscale.core.model import LanguageModel, State
from tokenscale.core.plan import Routing
from tokenscale.core.starting import cached, start_all

Ranks = tuple[int, int]


def start_ranked(
    lm: LanguageModel, prompts: Sequence[tuple[int, ...]], ranks: Ranks | None
) -> tuple[State, list[Cached]]:
    """Prefills with the experts of the ranks from first to last (1 is the best); None: as the model does.

    Equal prompts are prefilled once.
    """
    if ranks is None:
        return start_all(lm, prompts)
    unique = list(dict.fromkeys(prompts))
    state = lm.prefill([p[:-1] for p in unique], [Routing(ranks=(ranks,) * (len(p) - 1)) for p in unique])
    if len(unique) < len(prompts):
        places = {prompt: i for i, prompt in enumerate(unique)}
        state = state.select([places[p] for p in prompts])
    return state, cached(lm, prompts, state.prefills, [ranked_source(ranks)] * len(prompts))


def ranked_source(ranks: Ranks | None) -> Hashable:
    """What tells apart caches of prompts that were run with other experts."""
    return "" if ranks is None else ("ranks", *ranks)


def check_rank(owner: str, name: str, rank: int, lm: LanguageModel) -> None:
    """Refuses a rank, or a number of experts, that the model's layers do not have."""
    if rank > lm.shape.experts:
        message = f"{owner}({name}={rank}): the MoE layers of {lm.name} have {lm.shape.experts} experts"
        raise ArgumentError(message, f"write {name}={lm.shape.experts}, or less")
