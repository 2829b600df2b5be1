"""Convolutions over small maps as one matrix product: what they cost is reading the kernel, and this reads it once."""

# N folded frames, P output positions, K = C*kD*kH*kW values that one position sees, O channels out.

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from inflate3d.inflation.ends import depth_padding, replicate_ends, taps_gradient, untrimmed
from inflate3d.inflation.replicated import Sizes, convolve_plainly
from inflate3d.inflation.second_order import differentiable_gradients


def convolve_small(x_NCHW: Tensor, weight_OIDHW: Tensor, bias: Tensor | None, sizes: Sizes) -> Tensor:
    """Convolve folded clips, D padded by replication: (B*D, C, H, W) -> (B*D', O, H', W'), channels-last; groups 1.

    Needs O(P*K) memory while it runs, so it is for maps of few positions and kernels of many channels.
    """
    each = zip(x_NCHW.shape[2:], weight_OIDHW.shape[3:], sizes.stride, sizes.padding, sizes.dilation, strict=True)
    y_PO = _SmallMaps.apply(x_NCHW, weight_OIDHW, sizes)
    y = y_PO.view(-1, *[_out_size(*size) for size in each], weight_OIDHW.shape[0]).permute(0, 3, 1, 2)
    return y if bias is None else y + bias.view(-1, 1, 1)  # type: ignore[no-any-return]


class _SmallMaps(torch.autograd.Function):
    """The answer as (P, O): of a view made in here, a ReLU in place would lose the gradient.

    What is saved is `x` alone; what the kernel sees of it is copied anew, and the kernel is trimmed anew.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, sizes: Sizes) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.sizes = sizes
        weight = sizes.trimmed(weight)
        return _seen(x, weight, sizes).t() @ weight.reshape(len(weight), -1).t()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        if torch.is_grad_enabled():
            return differentiable_gradients(_small_plainly, (x, weight, ctx.sizes), ctx.needs_input_grad, grads[0])
        (grad_PO,) = grads
        grad_x = grad_weight = None
        weight = ctx.sizes.trimmed(weight)
        if ctx.needs_input_grad[1]:
            grad_weight = (grad_PO.t() @ _seen(x, weight, ctx.sizes).t()).view(weight.shape)
            grad_weight = untrimmed(grad_weight, *ctx.sizes.trim)
        if ctx.needs_input_grad[0]:
            grad_x = _input_gradient(grad_PO, x, weight, ctx.sizes)
        return grad_x, grad_weight, None


def _seen(x: Tensor, weight: Tensor, sizes: Sizes) -> Tensor:
    """Return what the kernel sees of the clips at each position of the answer: (K, P)."""
    kernel, frames = weight.shape[3:], sizes.frames
    columns = F.unfold(x, kernel, sizes.dilation, sizes.padding, sizes.stride)  # (N, C*kH*kW, positions of a frame)
    columns = columns.view(-1, frames, x.shape[1], kernel.numel(), columns.shape[-1])
    before, after = depth_padding(frames, weight.shape[2], sizes.depth_stride)
    padded = replicate_ends(columns, 1, before, after)
    seen = padded.unfold(1, weight.shape[2], sizes.depth_stride)  # (B, D', C, A, HW, kD)
    return seen.permute(2, 5, 3, 0, 1, 4).reshape(weight[0].numel(), -1)


def _input_gradient(grad_PO: Tensor, x: Tensor, weight: Tensor, sizes: Sizes) -> Tensor:
    _, channels, depth, *kernel = weight.shape
    frames, clips = sizes.frames, len(x) // sizes.frames
    grad_KP = weight.reshape(len(weight), -1).t() @ grad_PO.t()
    shape = (channels, depth, math.prod(kernel), clips, -(-frames // sizes.depth_stride), -1)
    grads = grad_KP.view(shape).permute(1, 3, 4, 0, 2, 5)  # (kD, B, D', C, A, HW)
    columns = taps_gradient(list(grads), frames, sizes.depth_stride).flatten(1, 2)
    return F.fold(columns, x.shape[2:], tuple(kernel), sizes.dilation, sizes.padding, sizes.stride)


def _small_plainly(x: Tensor, weight: Tensor, sizes: Sizes) -> Tensor:
    """Return the same answer by operations that autograd knows."""
    return convolve_plainly(x, weight, None, *sizes).permute(0, 2, 3, 1).reshape(-1, len(weight))


def _out_size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
