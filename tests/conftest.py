"""What all tests share: no network, one thread, repeatable examples, tensor shapes checked."""

from __future__ import annotations

import inspect
import os
from datetime import timedelta
from typing import Any, get_args

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from beartype import beartype
from hypothesis import settings
from jaxtyping import AbstractArray, install_import_hook

torch.set_num_threads(1)  # one worker per core does the rest

# The first example of a run may import a library or build a model, hence the long deadline.
settings.register_profile("repeatable", derandomize=True, deadline=timedelta(seconds=10), print_blob=False)
settings.load_profile("repeatable")


def describes_a_tensor(hint: Any) -> bool:
    """Whether a hint is, or contains, a jaxtyping shape."""
    if inspect.isclass(hint) and issubclass(hint, AbstractArray):
        return True
    return any(describes_a_tensor(part) for part in get_args(hint))


def check_tensors(function: Any) -> Any:
    """beartype on a function's tensor arguments alone: refusing other bad input is tokenscale's own job."""
    hints = function.__annotations__
    function.__annotations__ = {name: hint if describes_a_tensor(hint) else Any for name, hint in hints.items()}
    return beartype(function)


# Resolves the string annotations of `from __future__ import annotations` itself, one by one.
install_import_hook("tokenscale", f"{__name__}.check_tensors")
