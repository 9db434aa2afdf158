"""What tells one model, with its tokenizer, from another."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import torch

from tokenscale.models.parallel import prefix
from tokenscale.models.stored import offloaded, parts

SAMPLE_BYTES = 4096


def fingerprint(model: Any, tokenizer: Any) -> str:
    """A hash of the configuration, the tokenizer and, of every tensor, its name, shape, type and first 4 KiB.

    Of the tokenizer all counts that decides a prompt's ids: vocabulary, chat template and, where it is
    a fast one, its rules. Weights that differ only past the samples have equal fingerprints.
    """
    digest = hashlib.blake2b(digest_size=16)
    config = model.config.to_dict()
    for volatile in ("_name_or_path", "transformers_version"):
        config.pop(volatile, None)
    digest.update(repr(sorted(config.items(), key=lambda item: str(item[0]))).encode())
    if tokenizer is not None:
        digest.update(_tokenizer_text(tokenizer).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        held = offloaded(model, name) if tensor.is_meta else tensor
        for _, part in parts(held) if held is not None else ():
            sample = prefix(part, SAMPLE_BYTES // part.element_size())
            digest.update(np.ascontiguousarray(sample.cpu().view(torch.uint8).numpy()).tobytes())
    return digest.hexdigest()


def _tokenizer_text(tokenizer: Any) -> str:
    """What makes its ids. Padding and truncation are left out: they are settings of the last call."""
    parts: list[object] = [sorted(tokenizer.get_vocab().items()), getattr(tokenizer, "chat_template", None)]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        rules = json.loads(backend.to_str())
        parts.append({name: rules[name] for name in sorted(rules) if name not in ("padding", "truncation")})
    return repr(parts)
