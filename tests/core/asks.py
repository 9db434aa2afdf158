"""The asks that the tests of the decode loop make of the tiny model."""

from __future__ import annotations

from typing import Any

from tokenscale.core.data import Ask
from tokenscale.core.noise import Stream
from tokenscale.core.prompt import Prompt
from tokenscale.token_level.roe import RoE

END = 0
PROMPTS = [(1, 2, 3), (2,), (3, 3, 1, 2, 2), (1, 1), (2, 3), (3,), (1, 3, 2)]
NOISY = RoE(4, tau=1.0, clean_layers=0)


def ask(prompt: tuple[int, ...] = (1, 2, 3), new: int = 6, path: tuple[int | str, ...] = (0,), **more: Any) -> Ask:
    return Ask(Prompt(token_ids=prompt), Stream(path), new, **more)
