"""The compiled kernels as functions of tensors.

They compute in float32, whatever the tensors' type; a row's result does not depend on the rows beside it.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import c_double, c_int, c_int64, c_void_p
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenscale.models.native.build import BuildError, built

DTYPES = (torch.float32, torch.bfloat16)


class AttentionCall(ctypes.Structure):
    """The arguments of the attention kernel, in the order of csrc/attention.cpp."""

    _fields_ = (
        ("q", c_void_p),
        *((name, c_int64) for name in ("q_batch", "q_head", "q_row")),
        *((name, c_void_p) for name in ("tail_keys", "tail_values")),
        *((name, c_int64) for name in ("key_batch", "key_head", "key_column")),
        *((name, c_int64) for name in ("value_batch", "value_head", "value_column")),
        ("tail_first", c_void_p),
        ("tail_end", c_int64),
        *((name, c_void_p) for name in ("own_keys", "own_values")),
        *((name, c_int64) for name in ("own_key_batch", "own_key_head", "own_key_row")),
        *((name, c_int64) for name in ("own_value_batch", "own_value_head", "own_value_row")),
        *((name, c_int64) for name in ("own_step", "stored", "segments")),
        *((name, c_void_p) for name in ("segment_keys", "segment_values")),
        *((name, c_void_p) for name in ("segment_length", "segment_begin", "segment_end")),
        *((name, c_void_p) for name in ("reader_first", "readers", "part_first", "parts", "sinks", "out")),
        *((name, c_int64) for name in ("batch", "heads", "kv_heads", "rows", "dim", "value_dim")),
        *((name, c_double) for name in ("scale", "softcap")),
        *((name, c_int64) for name in ("half", "threads")),
    )


@cache
def loaded() -> ctypes.CDLL:
    """The kernels, compiled at the first call on a machine. Raises BuildError where they cannot be had."""
    if os.environ.get("TOKENSCALE_KERNELS") == "0":
        raise BuildError("TOKENSCALE_KERNELS=0 switches them off")
    try:
        found = ctypes.CDLL(str(built()))
    except OSError as error:
        raise BuildError(f"the compiled library does not load: {error}") from None
    for name, arguments in SIGNATURES.items():
        function = getattr(found, name)
        function.argtypes, function.restype = arguments, None if name in ALLOCATE_NOTHING else _checked
    return found


def _checked(failed: int) -> None:
    """What a kernel gave. Raises MemoryError."""
    if failed:
        raise MemoryError("a kernel ran out of memory")


ALLOCATE_NOTHING = ("tokenscale_rms_norm", "tokenscale_rotate")


SIGNATURES = {
    "tokenscale_linear": [*[c_void_p] * 4, *[c_int64] * 3, c_int, c_int],
    "tokenscale_experts": [*[c_void_p] * 6, *[c_int64] * 5, c_int, c_int],
    "tokenscale_grouped": [c_void_p, c_int64, *[c_void_p] * 4, *[c_int64] * 4, *[c_int] * 3],
    "tokenscale_rms_norm": [*[c_void_p] * 3, *[c_int64] * 2, c_double, c_int],
    "tokenscale_rotate": [*[c_void_p] * 5, *[c_int64] * 4, c_int],
    "tokenscale_attention": [ctypes.POINTER(AttentionCall)],
}


@cache
def why_missing() -> str:
    """Why there are no kernels, as the end of a sentence; empty where there are. Compiles them at the first call."""
    try:
        loaded()
    except BuildError as error:
        return str(error)
    return ""


def linear(
    x: Float[Tensor, "*rows inputs"], weight: Float[Tensor, "outputs inputs"], bias: Float[Tensor, " outputs"] | None
) -> Float[Tensor, "*rows outputs"]:
    """x W^T + b. All of one type of DTYPES, the weight contiguous. Cost: W is read once."""
    x = x.contiguous()
    out = x.new_empty(*x.shape[:-1], weight.shape[0])
    outputs, inputs = weight.shape
    loaded().tokenscale_linear(
        x.data_ptr(),
        weight.data_ptr(),
        None if bias is None else bias.data_ptr(),
        out.data_ptr(),
        x.numel() // inputs,
        inputs,
        outputs,
        x.dtype == torch.bfloat16,
        torch.get_num_threads(),
    )
    return out


def experts(
    x: Float[Tensor, "tokens hidden"],
    chosen: Int[Tensor, "tokens top_k"],
    weights: Float[Tensor, "tokens top_k"],
    gate_up: Float[Tensor, "experts twice_inner hidden"],
    down: Float[Tensor, "experts hidden inner"],
) -> Float[Tensor, "tokens hidden"]:
    """sum_k w_k down_e (silu(gate_e x) * (up_e x)), e = chosen[:, k]; an index that is no expert's adds nothing.

    Cost: every chosen expert's weights are read once.
    """
    x, chosen, weights = x.contiguous(), chosen.long().contiguous(), weights.to(x.dtype).contiguous()
    out = torch.empty_like(x)
    loaded().tokenscale_experts(
        x.data_ptr(),
        chosen.data_ptr(),
        weights.data_ptr(),
        gate_up.data_ptr(),
        down.data_ptr(),
        out.data_ptr(),
        *chosen.shape,
        gate_up.shape[0],
        x.shape[1],
        down.shape[2],
        x.dtype == torch.bfloat16,
        torch.get_num_threads(),
    )
    return out


def grouped(
    x: Float[Tensor, "rows inputs"],
    chosen: Int[Tensor, " slots"],
    weight: Float[Tensor, "experts _ _"],
    bias: Float[Tensor, "experts outputs"] | None,
    transposed: bool,
) -> Float[Tensor, "slots outputs"]:
    """W_e x (+ b_e) of every slot, e = chosen[s]; a row of x serves slots / rows slots in a row.

    `transposed`: weights are stored [experts, inputs, outputs], else [experts, outputs, inputs].
    """
    x, chosen = x.contiguous(), chosen.long().contiguous()
    inputs = x.shape[1]
    outputs = weight.shape[2] if transposed else weight.shape[1]
    out = x.new_empty(len(chosen), outputs)
    loaded().tokenscale_grouped(
        x.data_ptr(),
        max(1, len(chosen) // max(1, len(x))),
        chosen.data_ptr(),
        weight.data_ptr(),
        None if bias is None else bias.data_ptr(),
        out.data_ptr(),
        len(chosen),
        weight.shape[0],
        inputs,
        outputs,
        transposed,
        x.dtype == torch.bfloat16,
        torch.get_num_threads(),
    )
    return out


def rms_norm(x: Float[Tensor, "*rows dim"], weight: Float[Tensor, " dim"], eps: float) -> Float[Tensor, "*rows dim"]:
    """w x / sqrt(mean(x^2) + eps), rounded to the type before it is weighted."""
    x = x.contiguous()
    out, dim = torch.empty_like(x), x.shape[-1]
    loaded().tokenscale_rms_norm(
        x.data_ptr(), weight.data_ptr(), out.data_ptr(), x.numel() // dim, dim, eps, x.dtype == torch.bfloat16
    )
    return out


def rotate(
    x: Float[Tensor, "batch heads rows dim"], cos: Float[Tensor, "batch rows dim"], sin: Float[Tensor, "batch rows dim"]
) -> Float[Tensor, "batch heads rows dim"]:
    """x cos + (-x2, x1) sin, x1 and x2 being the halves of x: rotary positions (Su et al., arXiv 2104.09864)."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    out = x.new_empty(x.shape)
    strides = (c_int64 * 4)(*x.stride())
    loaded().tokenscale_rotate(
        x.data_ptr(), strides, cos.data_ptr(), sin.data_ptr(), out.data_ptr(), *x.shape, x.dtype == torch.bfloat16
    )
    return out


def attention(call: AttentionCall) -> None:
    """Runs the attention kernel; the tensors that the call points to must outlive it."""
    loaded().tokenscale_attention(ctypes.byref(call))
