"""Where a model's files are: in the package, in a folder, or under a hub id."""

from __future__ import annotations

import difflib
from pathlib import Path

from tokenscale.core.errors import ModelError

PACKAGED = ("demo", "demo-noisy", "demo-text", "demo-text-noisy")
REWARD_MODELS = ("demo-verifier",)
CHECKPOINTS = Path(__file__).parent / "checkpoints"
CLOSE = 0.7  # of difflib's ratio: "dmeo" is as close to "demo" as 0.75


def loadable(packaged: tuple[str, ...]) -> str:
    """The hint that says what can be loaded."""
    return f"give {', '.join(map(repr, packaged))}, a folder with config.json and weights, or a hub id"


LOADABLE = loadable(PACKAGED)


def find(path: str | Path, packaged: tuple[str, ...] = PACKAGED) -> str | Path:
    """What transformers is to load for `path`; `packaged` are the names in the package of the kind that is wanted.

    Raises ModelError for a folder that is not there, holds no model or has no tokenizer, for a packaged
    model of the other kind, and for a name without a folder that is close to a packaged one; a hub id
    has its owner before a slash.
    """
    name, folder = str(path), Path(path)
    if name in packaged:
        return CHECKPOINTS / name
    if name in PACKAGED:
        raise ModelError(f"{name!r} is a language model, no reward model", loadable(packaged))
    if name in REWARD_MODELS:
        message = f"{name!r} is a reward model, which scores answers and writes none"
        raise ModelError(message, f'write scorer=RewardModelScorer(model="{name}"); as a language model {LOADABLE}')
    if folder.is_dir():
        _check(name, folder, packaged)
    elif folder.is_absolute() or len(folder.parts) > 2:
        raise ModelError(f"there is no model {name!r}: no such folder", loadable(packaged))
    else:
        _refuse_slip(name, packaged)
    return path


def _check(name: str, folder: Path, packaged: tuple[str, ...]) -> None:
    """Refuses a folder without a model, or whose tokenizer transformers would make up without a word."""
    if not (folder / "config.json").is_file():
        raise ModelError(f"the folder {name!r} holds no config.json, so no model", loadable(packaged))
    names = ("tokenizer", "vocab", "spiece", "sentencepiece", "tekken")
    if not any(file.name.startswith(names) for file in folder.iterdir()):
        raise ModelError(
            f"the model folder {name!r} has no tokenizer",
            "put tokenizer.json and tokenizer_config.json beside the weights (tokenizer.save_pretrained(folder)), "
            "or load both yourself and call tokenscale.wrap(model, tokenizer)",
        )


def _refuse_slip(name: str, packaged: tuple[str, ...]) -> None:
    close = difflib.get_close_matches(name.lower(), packaged, n=1, cutoff=CLOSE)
    if close and "/" not in name:
        message = f"there is no model {name!r}: no packaged one, and no such folder"
        raise ModelError(message, f"did you mean {close[0]!r}? {loadable(packaged)}")
