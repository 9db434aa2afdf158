"""The layout of experts' weights that grouped products read fastest, where there are no kernels of ours."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def lay_out_experts(model: Any) -> int:
    """Stores stacked float32 matrices [experts, out, in] on a CPU input by input; how many parameters that was.

    Shapes and values stay, strides change: MKL's small products with W^T then read W in one stream
    (`benchmarks/kernels.py` has the gain). One parameter at a time is held twice.
    """
    changed = 0
    for module in model.modules():
        if not type(module).__name__.endswith("Experts") or getattr(module, "is_transposed", True):
            continue
        for parameter in module.parameters(recurse=False):
            if _suits(parameter):
                parameter.data = parameter.data.transpose(1, 2).contiguous().transpose(1, 2)
                changed += 1
    return changed


def _suits(parameter: nn.Parameter) -> bool:
    plain = type(parameter) is nn.Parameter and parameter.ndim == 3 and parameter.is_contiguous()
    return plain and parameter.dtype is torch.float32 and parameter.device.type == "cpu"
