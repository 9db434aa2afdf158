"""Reading a checkpoint and its tokenizer, with transformers' errors turned into ours: the only file that loads any."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer
from transformers.utils import is_accelerate_available, logging

from tokenscale.core.errors import ModelError
from tokenscale.models.quantised import refuse_folder
from tokenscale.models.source import PACKAGED, find, loadable

QUANTISING = {"quantization_config", "dtype", "revision", "device_map"}
INSTALL = "install the package that is named"


def read_checkpoint(
    path: str | Path,
    from_pretrained: Callable[..., Any],
    keywords: Mapping[str, Any],
    packaged: tuple[str, ...] = PACKAGED,
) -> tuple[Any, Any]:
    """(what transformers' `from_pretrained` returns, tokenizer) of a name in `packaged`, a folder or a hub id.

    Keywords that are None are left out; packaged models compute in float32. Raises ModelError.
    """
    source, fix = find(path, packaged), loadable(packaged)
    given = {name: value for name, value in keywords.items() if value is not None}
    hint = _hint(given, fix)
    _refuse(str(path), Path(source), given)
    if str(path) in packaged:
        given.setdefault("dtype", torch.float32)
    revision = given.get("revision")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **({"revision": revision} if revision else {}))
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"the tokenizer of {str(path)!r} cannot be read: {error}", fix) from error
    try:
        with _no_bars():
            return from_pretrained(source, **given), tokenizer
    except OSError as error:
        raise ModelError(f"the model {str(path)!r} cannot be loaded: {error}", fix) from error
    except ImportError as error:
        asked = given.keys() - QUANTISING
        raise ModelError(f"the model {str(path)!r} cannot be loaded: {error}", hint if asked else INSTALL) from error
    except Exception as error:  # transformers raises anything for a wrong keyword: AttributeError, ImportError
        raise ModelError(f"the model {str(path)!r} cannot be loaded: {error}", hint) from error


def _refuse(name: str, folder: Path, given: Mapping[str, Any]) -> None:
    """What can be told before weights are read."""
    refuse_folder(name, folder, given.get("quantization_config"))
    placing = [keyword for keyword in ("device_map", "tp_plan") if keyword in given]
    if getattr(given.get("distributed_config"), "tp_size", 1) > 1:
        placing.append("distributed_config")
    if placing and not is_accelerate_available():
        raise ModelError(f"{placing[0]} needs the package accelerate", 'pip install "tokenscale[larger]"')


def _hint(keywords: Mapping[str, Any], otherwise: str) -> str:
    """The fix where transformers refuses what its class was given: the caller's keywords, if there are any."""
    if not keywords:
        return otherwise
    given = ", ".join(f"{name}={value!r:.60}" for name, value in keywords.items())
    return f"leave out or change what was given: {given} (see transformers' from_pretrained)"


@contextmanager
def _no_bars() -> Iterator[None]:
    """Keeps transformers' own progress bars out of a program's output; a download shows its bar."""
    before = logging.set_tqdm_hook(lambda _, args, keywords: logging.EmptyTqdm(*args, **keywords))
    try:
        yield
    finally:
        logging.set_tqdm_hook(before)
