"""What tells one set of weights from another."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch

SAMPLE_BYTES = 4096


def fingerprint(model: Any, tokenizer: Any) -> str:
    """A hash of the configuration, the tokenizer and, of every tensor, its name, shape, type and first 4 KiB."""
    digest = hashlib.blake2b(digest_size=16)
    config = model.config.to_dict()
    for volatile in ("_name_or_path", "transformers_version"):
        config.pop(volatile, None)
    digest.update(repr(sorted(config.items(), key=lambda item: str(item[0]))).encode())
    if tokenizer is not None:
        digest.update(repr(sorted(tokenizer.get_vocab().items())).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        sample = tensor.detach().flatten()[: SAMPLE_BYTES // tensor.element_size()]
        if sample.device.type != "meta":
            digest.update(np.ascontiguousarray(sample.cpu().view(torch.uint8).numpy()).tobytes())
    return digest.hexdigest()
