"""Tuned noise strengths: the file that `RoE(tau="profile.yaml")` names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenscale.core.errors import ArgumentError, finite

_FIX = "name a profile that `tokenscale tune` wrote, or give numbers: tau=0.3"


@dataclass(frozen=True)
class Profile:
    """tau of every MoE layer, and the fingerprint of the one model that they were tuned for."""

    taus: tuple[float, ...]
    fingerprint: str

    def check(self, owner: str, path: str, used: tuple[float, ...]) -> None:
        """Refuses clean layers that the profile has noise for: what runs would not be what was tuned."""
        lost = [layer for layer, pair in enumerate(zip(self.taus, used, strict=True)) if pair[0] != pair[1]]
        if not lost:
            return
        least = min(min(layer, len(used) - 1 - layer) for layer in lost)
        message = f"{owner}(tau={path!r}): MoE layer {lost[0]} is clean, and this profile has tau={self.taus[lost[0]]}"
        raise ArgumentError(f"{message} there", f"write clean_layers={least}")


def load_profile(path: str) -> Profile:
    """The profile of a YAML file: a mapping with `tau` (a number per MoE layer) and `fingerprint`.

    Other keys say how it was tuned and are not read here. Raises ArgumentError.
    """
    data = _read(path)
    if not isinstance(data, dict):
        raise ArgumentError(f"the profile {path!r} is no mapping of keys", _FIX)
    missing = [key for key in ("tau", "fingerprint") if key not in data]
    if missing:
        raise ArgumentError(f"the profile {path!r} has no {' and no '.join(missing)}", _FIX)
    taus = data["tau"] if isinstance(data["tau"], list) else [data["tau"]]
    numbers = tuple(finite(f"profile {path!r}: ", "tau", tau, 0.3) for tau in taus)
    if not numbers or min(numbers) < 0:
        raise ArgumentError(f"the profile {path!r} has tau={data['tau']!r}, which is empty or negative", _FIX)
    return Profile(numbers, str(data["fingerprint"]))


def _read(path: str) -> Any:
    import yaml  # here, since most pipelines name no profile

    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArgumentError(f"there is no profile {path!r}", _FIX) from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ArgumentError(f"the profile {path!r} cannot be read: {error}", _FIX) from error
