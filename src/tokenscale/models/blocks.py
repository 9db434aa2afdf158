"""The places of a decoder where rows are changed or read: its layers, their feed-forward blocks, the final norm.

They are found by structure, and a model in which they cannot be found does without dropout or early
layers. Hooks are gone after any exit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tokenscale.core.errors import ModelError
from tokenscale.core.plan import Dropout

FEED_FORWARD = ("mlp", "feed_forward", "block_sparse_moe", "shared_mlp", "ffn")
BEHIND = ("post_feedforward_layernorm", "post_mlp_layernorm", "mlp_sconv")
"""What some models put between the feed-forward block and the residual stream."""
STREAMS = ("hyper", "residual", "altup")
"""In names of classes that replace the plain sum of a residual stream."""


@dataclass(frozen=True)
class Blocks:
    """The decoder without lm_head, its layers in order, its final norm, and what its feed-forward blocks add.

    `ends[l]` are the modules whose outputs layer l's feed-forward block adds. `no_dropout` and
    `no_early_layers` say as the end of a sentence why these are not to be had; empty where they are.
    """

    decoder: nn.Module
    layers: tuple[nn.Module, ...]
    norm: nn.Module | None
    ends: tuple[tuple[nn.Module, ...], ...]
    no_dropout: str = ""
    no_early_layers: str = ""


def find_blocks(model: Any) -> Blocks:
    """The parts of a causal model. Dropout and early layers are refused where the layers are of another plan."""
    whole = model.base_model if model.base_model is not model else model
    config = model.config.get_text_config(decoder=True)
    counts = {config.num_hidden_layers, getattr(config, "num_layers", None)}
    decoder, stack = _layers(model.get_decoder(), counts)
    if not stack:
        missing = "its decoder layers are not one list of modules"
        return Blocks(whole, (), None, (), missing, missing)
    ends, norm = tuple(_ends(layer) for layer in stack), _final_norm(decoder)
    one_stream = not any(_other_streams(layer) for layer in stack)
    one_block = all(e or _is_mixer(x) for e, x in zip(ends, stack, strict=True))
    return Blocks(
        decoder if whole is model else whole,
        stack,
        norm,
        ends,
        "" if one_stream and one_block else "its layers do not add one feed-forward block to one residual stream",
        "" if norm and not _other_streams(decoder) else "its last layer is not followed by one norm and lm_head",
    )


def _layers(decoder: nn.Module, counts: set[int | None]) -> tuple[nn.Module, tuple[nn.Module, ...]]:
    """The module whose child is the list of decoder layers, and that list."""
    for module in (decoder, *decoder.children()):
        for child in module.children():
            if isinstance(child, nn.ModuleList) and len(child) in counts:
                return module, tuple(child)
    return decoder, ()


def _ends(layer: nn.Module) -> tuple[nn.Module, ...]:
    children = dict(layer.named_children())
    if any(isinstance(child, nn.ModuleList) for child in children.values()):
        return ()  # several blocks of a kind in one layer (longcat)
    behind = [children[name] for name in BEHIND if name in children]
    if behind:
        return (behind[-1],)
    found = [children[name] for name in FEED_FORWARD if name in children]
    if "mixer" in children and type(children["mixer"]).__name__.lower().endswith(("moe", "mlp")):
        found.append(children["mixer"])
    return tuple(found)


def _is_mixer(layer: nn.Module) -> bool:
    """A layer of one block only, which need not be a feed-forward block."""
    return "mixer" in dict(layer.named_children())


def _other_streams(module: nn.Module) -> bool:
    return any(word in type(child).__name__.lower() for child in module.children() for word in STREAMS)


def _final_norm(decoder: nn.Module) -> nn.Module | None:
    norms = {
        name: module
        for name, module in decoder.named_children()
        if "norm" in type(module).__name__.lower() and not isinstance(module, nn.Embedding)
    }
    return next(iter(norms.values())) if len(norms) == 1 else norms.get("norm")


@contextmanager
def dropped(blocks: Blocks, dropout: Dropout) -> Iterator[None]:
    """Dropout on what every feed-forward block adds, for the rows of one forward, [batch, rows] in that order."""
    kept = torch.where(dropout.uniforms < dropout.rate, 0.0, 1 / (1 - dropout.rate))
    kept = torch.where((dropout.uniforms == 1).all(-1, keepdim=True), 1.0, kept)
    handles = []
    try:
        for layer, modules in enumerate(blocks.ends):
            handles += [module.register_forward_hook(_scale(kept[layer])) for module in modules]
        yield
    finally:
        for handle in handles:
            handle.remove()


def _scale(kept: Float[Tensor, "batch rows hidden"]) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) else output
        scaled = first * kept.to(first.device, first.dtype).view(first.shape)
        return (scaled, *output[1:]) if isinstance(output, tuple) else scaled

    return hook


@contextmanager
def early(blocks: Blocks, layers: Sequence[int]) -> Iterator[None]:
    """The final norm is given what `layers` put out as further positions behind that of the last layer.

    So the model's own code makes all logits, with whatever it does behind lm_head.
    """
    out: dict[int, Tensor] = {}
    last = len(blocks.layers) - 1
    assert blocks.norm is not None

    def norm_hook(module: nn.Module, args: tuple[Tensor, ...]) -> Any:
        hidden, *others = args
        if not torch.equal(hidden, out[last].to(hidden.device, hidden.dtype)):
            raise ModelError(
                "the final norm does not read what the last decoder layer puts out",
                "use a strategy that needs no early layers, such as Greedy()",
            )
        return (torch.cat([hidden, *(out[i].to(hidden.device, hidden.dtype) for i in layers)], 1), *others)

    handles = [blocks.norm.register_forward_pre_hook(norm_hook)]
    try:
        for i in {*layers, last}:
            handles.append(blocks.layers[i].register_forward_hook(_keep(out, i)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _keep(out: dict[int, Tensor], layer: int) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        out[layer] = output[0] if isinstance(output, tuple) else output

    return hook
