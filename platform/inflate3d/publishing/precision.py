"""Half precision in files: kernels and matrices as float16, vectors (norms, their statistics, biases) unchanged.

A variance may be outside float16's range, and vectors are barely one percent of a net's bytes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from inflate3d.errors import InputError, unknown_name

Precision = Literal["float32", "float16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


def stored(tensors: Mapping[str, Tensor], precision: Precision) -> dict[str, Tensor]:
    """Return the tensors in this file precision. InputError for a value that float16 cannot hold."""
    if precision not in PRECISIONS:
        raise unknown_name("precision", str(precision), PRECISIONS, where="publish")
    if precision == "float32":
        return dict(tensors)
    return {name: _half(name, tensor) for name, tensor in tensors.items()}


def rounded(model: nn.Module, precision: Precision) -> nn.Module:
    """Return the net as loaded from a file of this precision: the model itself, or a copy with rounded weights."""
    if precision == "float32":
        return model
    other = copy.deepcopy(model)
    other.load_state_dict(stored(model.state_dict(), precision))  # copied into the net's own dtype
    return other


def _half(name: str, tensor: Tensor) -> Tensor:
    if tensor.ndim < 2 or not tensor.is_floating_point():
        return tensor
    half = tensor.detach().to(torch.float16)
    if not torch.isfinite(half).all():
        largest = tensor.detach().abs().max().item()
        raise InputError(f"{name} holds {largest:.3g}, but float16 ends at 65504; publish it in float32")
    return half
