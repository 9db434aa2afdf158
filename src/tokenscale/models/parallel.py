"""Tensor parallelism: a model whose weights transformers has sharded over the processes of `torchrun`.

Every process (rank) runs the same program on the same prompts and seeds, holds a part of the weights, and
gets the same logits. Draws are functions of stream and place, so ranks agree on them without a word.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate
from transformers.distributed.tensor_parallel import get_kv_heads_per_rank

from tokenscale.core.errors import ArgumentError, ModelError, OutOfMemoryError
from tokenscale.core.memory import out_of_memory
from tokenscale.models.stored import runs_on

ALONE = "load it with distributed_config=DistributedConfig(tp_plan='auto') under torchrun, or on one device"


@dataclass(frozen=True)
class Ranks:
    """The processes that run one model together: this one is `rank` of `size`."""

    rank: int
    size: int
    group: Any
    device: torch.device

    def least(self, value: int) -> int:
        """The smallest of the values that the ranks give."""
        shared = torch.tensor([value], device=self.device)
        dist.all_reduce(shared, op=dist.ReduceOp.MIN, group=self.group)
        return int(shared)

    def equal(self, value: int) -> bool:
        """Whether all ranks give the same value, of at most 62 bits. Costs one collective of two numbers."""
        shared = torch.tensor([value, -value], device=self.device)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX, group=self.group)
        most, least = shared.tolist()
        return bool(most == -least)

    @contextmanager
    def lockstep(self, *work: Any) -> Iterator[None]:
        """One forward, which all ranks must make of the same work: else their sums would mix texts in silence.

        Raises ArgumentError on all ranks where they differ. Memory that runs out on one rank ends the run,
        since the others wait for it and cannot be told: OutOfMemoryError.
        """
        if not self.equal(digest(work)):
            raise ArgumentError(
                f"the {self.size} ranks of this model were given different prompts, seeds or settings (this is rank "
                f"{self.rank})",
                "run the same script with the same prompts and seeds on every rank: they share one model, and each "
                "problem is computed by all of them together",
            )
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if text := out_of_memory(error):
                hint = "give smaller bounds for all ranks, such as max_batch_tokens=4096 or batch_size=4"
                raise OutOfMemoryError(f"memory ran out on rank {self.rank} of {self.size}: {text}", hint) from error
            raise


def digest(value: Any, seed: int = 0) -> int:
    """A checksum of numbers, texts, tensors, and sequences and dataclasses of them: equal where they are."""
    if isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous().flatten()
        return zlib.crc32(flat.view(torch.uint8).numpy().tobytes(), zlib.crc32(str(tuple(value.shape)).encode(), seed))
    if is_dataclass(value):
        value = [getattr(value, field.name) for field in fields(value)]
    if isinstance(value, list | tuple) and not all(isinstance(part, int) for part in value):
        for part in value:
            seed = digest(part, seed)
        return zlib.crc32(str(len(value)).encode(), seed)
    return zlib.crc32(repr(value).encode(), seed)


def sharded(model: Any) -> bool:
    """Whether some of its weights are parts, of which other processes hold the rest."""
    return any(isinstance(p, DTensor) for p in model.parameters())


def find_ranks(model: Any) -> Ranks | None:
    """The ranks of a sharded model; None where one process holds all of it.

    Raises ModelError for what cannot run in lockstep: layers in a pipeline, replicas with batches of their
    own, experts spread over other groups than the dense weights, weights sharded by other means, heads
    that the ranks cannot share evenly, and plans of transformers that do not run.
    """
    config, name = getattr(model.config, "distributed_config", None), type(model).__name__
    mesh = getattr(model, "_mesh_manager", None)
    if config is None or mesh is None:
        if sharded(model):
            raise ModelError(f"the weights of {name} are sharded, but not by transformers' DistributedConfig", ALONE)
        return None
    if why := _refused(config):
        raise ModelError(f"{name} is loaded with {why}", ALONE)
    _check_heads(model, config.tp_size)
    group = mesh.get_mesh("tp").get_group()
    ranks = Ranks(dist.get_rank(group), config.tp_size, group, torch.device(mesh.get_mesh("tp").device_type))
    _check_plan(model, ranks)
    return ranks


@torch.no_grad()
def _check_plan(model: Any, ranks: Ranks) -> None:
    """Runs two tokens: not every plan in transformers runs, and ranks must get the same logits to the bit."""
    name = type(model).__name__
    ids = torch.tensor([[0, 1]], device=runs_on(model.get_input_embeddings()))
    try:
        logits = model(input_ids=ids).logits
    except Exception as error:  # each model's code meets sharded tensors in its own way
        told = next(iter(str(error).splitlines()), "") or type(error).__name__
        message = f"the plan by which transformers shards {name} does not run: {told}"
        raise ModelError(message, "give DistributedConfig a tp_plan of your own, or load it on one device") from error
    if not ranks.equal(digest(logits)):
        message = f"the ranks of {name} compute different logits from the same tokens, so they would part"
        raise ModelError(message, "run all ranks on devices of one kind")


def _refused(config: Any) -> str:
    if config.pp_size > 1:
        return f"pp_size={config.pp_size}: a pipeline of layers gives its logits to one rank only"
    if config.dp_size > 1:
        return f"{config.dp_size} data-parallel replicas (FSDP), each of which would run a batch of its own"
    if config.ep_size not in (1, config.tp_size):
        return f"ep_size={config.ep_size} over other ranks than tp_size={config.tp_size}"
    return ""


def _check_heads(model: Any, size: int) -> None:
    config = model.config.get_text_config(decoder=True)
    layers = config.per_layer_config if getattr(config, "is_heterogeneous", False) else [config]
    counts = [getattr(layer, "num_key_value_heads", None) or layer.num_attention_heads for layer in layers]
    if get_kv_heads_per_rank(model.tp_plan, counts, size) is None:
        keys = next(count for count in counts if count % size)
        raise ModelError(
            f"{type(model).__name__} has {keys} heads of keys and values, which {size} ranks cannot share evenly",
            f"start as many processes as divide {keys}, or load it on one device",
        )


def prefix(tensor: Tensor, count: int) -> Tensor:
    """The first `count` numbers of a tensor as flattened, on every rank, where it is sharded too.

    Only dimensions that are sharded are gathered whole, the others as far as they are needed.
    """
    if not isinstance(tensor, DTensor):
        return tensor.detach().flatten()[:count]
    box, behind = [], tensor.numel()
    for length in tensor.shape:
        behind //= max(length, 1)
        box.append(min(length, -(-count // max(behind, 1))))
    split = {getattr(placement, "dim", None) for placement in tensor.placements}
    split = {dim % tensor.ndim for dim in split if dim is not None}
    local, shape = tensor.to_local().detach(), list(tensor.shape)
    for dim, length in enumerate(box):
        if dim not in split:
            local, shape[dim] = local.narrow(dim, 0, length), length
    strides = torch.empty(shape, device="meta").stride()
    cut = DTensor.from_local(
        local.contiguous(),
        tensor.device_mesh,
        tensor.placements,
        run_check=False,
        shape=torch.Size(shape),
        stride=strides,
    )
    whole = cut.redistribute(placements=[Replicate()] * len(tensor.placements)).to_local()
    for dim, length in enumerate(box):
        whole = whole.narrow(dim, 0, length)
    return whole.flatten()[:count]
