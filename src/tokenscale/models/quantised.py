"""Quantised checkpoints: which methods are run and billed, and what is refused by name.

What counts is what a model holds, not only what its configuration says: routers must be left as they
were, since noise is added to their logits, and every stored number must be one that the bill counts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tokenscale.core.errors import ModelError
from tokenscale.models.experts import expert_holders
from tokenscale.models.routers import Router

COUNTED = ("awq", "bitsandbytes", "compressed-tensors", "fp8", "gptq", "mxfp4", "mxfp8", "quanto", "torchao")
"""Methods of transformers whose numbers all lie in parameters, buffers or tensors that `stored.py` knows."""
SKIP = {
    "bitsandbytes": "BitsAndBytesConfig(llm_int8_skip_modules=[{names}])",
    "compressed-tensors": "a checkpoint that was quantised with ignore=[{names}]",
    "gptq": "a checkpoint that was quantised without {names}",
}
"""What keeps modules as they are, by method; the others have `modules_to_not_convert`."""
OTHERWISE = "quantization_config with modules_to_not_convert=[{names}]"


def method_of(quantization: Any) -> str:
    """The name of a method in transformers, of a configuration's `quantization_config` or one of its classes."""
    given = quantization if isinstance(quantization, Mapping) else getattr(quantization, "__dict__", {})
    method = given.get("quant_method")
    if method is None and (given.get("load_in_8bit") or given.get("load_in_4bit")):
        method = "bitsandbytes"
    return str(getattr(method, "value", method or type(quantization).__name__))


def refuse_method(name: str, quantization: Any) -> None:
    """Raises ModelError for a method whose stored numbers the bill does not know."""
    method = method_of(quantization)
    if method not in COUNTED:
        raise ModelError(
            f"{name} is quantised by {method!r}, whose stored bytes are not known to the bill",
            f"use a checkpoint without it, or one quantised by {', '.join(COUNTED[:-1])} or {COUNTED[-1]}",
        )


def refuse_folder(name: str, folder: Path, quantization: Any) -> None:
    """Refuses a method before weights are read: that which is asked for, or the one in a folder's config.json."""
    config = folder / "config.json"
    if quantization is None and config.is_file():
        quantization = json.loads(config.read_text()).get("quantization_config")
    if isinstance(quantization, Mapping) or hasattr(quantization, "quant_method"):
        refuse_method(name, quantization)


def quantised(model: Any) -> bool:
    """Whether some weights are codes: a quantizer of transformers is at work, or parameters are no plain numbers."""
    if getattr(model, "hf_quantizer", None) is not None:
        return True
    return any(_coded(p) for p in model.parameters())


def check_quantised(model: Any, routers: Sequence[Router]) -> None:
    """Refuses what would run wrongly or be billed wrongly. Raises ModelError.

    Refused are methods that are not counted, a lm_head without a weight, routers whose weights are codes or whose
    layers are another package's, and experts of tensors that only `experts_implementation="eager"` multiplies.
    """
    quantization = getattr(model.config, "quantization_config", None)
    method = "a package" if quantization is None else method_of(quantization)
    if quantization is not None:
        refuse_method(type(model).__name__, quantization)
    if not isinstance(getattr(model.get_output_embeddings(), "weight", None), Tensor):
        message = f"lm_head of {type(model).__name__} is quantised by {method} and has no weight, whose size is needed"
        raise ModelError(message, _skipping(method, ["lm_head"]))
    if coded := [router.name for router in routers if not _plain(router.module)]:
        raise ModelError(
            f"the router {coded[0]} of {type(model).__name__} is quantised by {method}"
            f"{f', and {len(coded) - 1} more' if coded[1:] else ''}: its choices would be those of rounded logits",
            _skipping(method, sorted({name.rpartition(".")[2] for name in coded})),
        )
    _check_experts(model, routers)


def _skipping(method: str, names: Sequence[str]) -> str:
    listed = ", ".join(f'"{name}"' for name in names)
    return f"leave it as it is: load with {SKIP.get(method, OTHERWISE).format(names=listed)}"


def _plain(module: nn.Module) -> bool:
    """Whether a module's weights are no codes, and its layers are torch's or transformers' models' own."""
    linear = [m for m in module.modules() if "linear" in type(m).__name__.lower()]
    plain = all(type(m).__module__.startswith(("torch.nn.", "transformers.models.")) for m in linear)
    return plain and not any(_coded(t) for t in [*module.parameters(), *module.buffers()])


def _coded(tensor: Tensor) -> bool:
    """Of one byte or less a number, or made of other tensors. Tables of whole numbers are no codes."""
    wrapped = hasattr(tensor, "__tensor_flatten__") and not isinstance(tensor, DTensor)
    return wrapped or (tensor.element_size() == 1 and tensor.dtype != torch.bool)


def _check_experts(model: Any, routers: Sequence[Router]) -> None:
    way = getattr(model.config.get_text_config(decoder=True), "_experts_implementation", None)
    for router in routers:
        for holder in expert_holders(model, router):
            packed = [name for name, p in holder.named_parameters() if p.ndim == 3 and _stands_for_others(p)]
            if packed and way not in (None, "eager"):
                raise ModelError(
                    f"{packed[0]} around {router.name} is a {type(getattr(holder, packed[0])).__name__}, which "
                    f"{way} products of experts cannot run",
                    'load it with experts_implementation="eager", or leave experts unquantised',
                )


def _stands_for_others(tensor: Tensor) -> bool:
    return hasattr(tensor, "__tensor_flatten__") and hasattr(tensor, "qdata")
