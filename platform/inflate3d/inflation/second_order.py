"""Gradients that have gradients: what our autograd Functions give where a graph of the backward is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from inflate3d.inflation.layers import replicate_ends
from inflate3d.inflation.taps import center_of


def differentiable_gradients(
    function: Callable[..., Tensor], inputs: Sequence[Any], wanted: Sequence[bool], grad: Tensor
) -> tuple[Tensor | None, ...]:
    """Return the gradient of each wanted input of a function, given that of its answer, with a graph of its own.

    For a Function's backward under create_graph: `function` gives the same answer by operations that autograd knows.
    """
    with torch.enable_grad():
        # Fresh views of the inputs: their gradients end here, and a graph that came with an input stays behind it.
        own = [x.view_as(x) if want else x for x, want in zip(inputs, wanted, strict=True)]
        chosen = [x for x, want in zip(own, wanted, strict=True) if want]
        found = iter(torch.autograd.grad(function(*own), chosen, grad, create_graph=True))
    return tuple(next(found) if want else None for want in wanted)


def convolve_plainly(
    x_NCHW: Tensor, weight_OIDHW: Tensor, frames: int, stride: tuple[int, ...], padding: Any, dilation: Any
) -> Tensor:
    """Convolve folded clips by torch's conv3d, D padded by replication: (B*D, C, H, W) -> (B*D', O, H', W')."""
    before = center_of(weight_OIDHW.shape[2])
    after = weight_OIDHW.shape[2] - 1 - before  # what no output frame reaches is not read
    x_BCDHW = replicate_ends(x_NCHW.unflatten(0, (-1, frames)), 1, before, after).transpose(1, 2)
    y_BODHW = F.conv3d(x_BCDHW, weight_OIDHW, None, stride, (0, *padding), (1, *dilation))
    return y_BODHW.transpose(1, 2).flatten(0, 1)
