"""Convolutions over small maps as one matrix product: what they cost is reading the kernel, and this reads it once."""

# N folded frames, P output positions, K = C*kD*kH*kW values that one position sees, O channels out.

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from inflate3d.inflation.layers import replicate_ends
from inflate3d.inflation.second_order import convolve_plainly, differentiable_gradients
from inflate3d.inflation.taps import center_of


def convolve_small(
    x_NCHW: Tensor,
    weight_OIDHW: Tensor,
    frames: int,
    stride: tuple[int, int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Tensor:
    """Convolve folded clips, D padded by replication: (B*D, C, H, W) -> (B*D', O, H', W'), channels-last.

    Needs O(P*K) memory, so it is for maps of few positions and kernels of many channels.
    """
    sizes = zip(x_NCHW.shape[2:], weight_OIDHW.shape[3:], stride[1:], padding, dilation, strict=True)
    y_PO = _SmallMaps.apply(x_NCHW, weight_OIDHW, frames, stride, padding, dilation)
    y_NHWO = y_PO.view(-1, *[_out_size(*size) for size in sizes], weight_OIDHW.shape[0])
    return y_NHWO.permute(0, 3, 1, 2)  # type: ignore[no-any-return]


class _SmallMaps(torch.autograd.Function):
    """The answer as (P, O): of a view made in here, a ReLU in place would lose the gradient.

    What is saved is what the kernel sees of `x`, so gradients that shall have gradients themselves are those of plain
    operations.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, frames: int, stride: Any, padding: Any, dilation: Any) -> Tensor:
        out_channels, _, depth = weight.shape[:3]
        kernel = tuple(weight.shape[3:])
        rows, channels, height, width = x.shape
        columns = F.unfold(x, kernel, dilation, padding, stride[1:])  # (N, C*kH*kW, positions of a frame)
        columns = columns.view(-1, frames, channels, kernel[0] * kernel[1], columns.shape[-1])
        index = _frames_seen(frames, depth, stride[0])
        after = max(int(index[-1, -1]) - frames + 1, 0)
        seen = replicate_ends(columns, 1, center_of(depth), after).unfold(1, depth, stride[0])  # (B, D', C, A, HW, kD)
        seen_KP = seen.permute(2, 5, 3, 0, 1, 4).reshape(weight[0].numel(), -1)
        ctx.save_for_backward(x, seen_KP, weight, index.clamp_(0, frames - 1))
        ctx.size = (columns.shape, (rows, channels, height, width), kernel, stride[1:], padding, dilation)
        ctx.options = (frames, stride, padding, dilation)
        return seen_KP.t() @ weight.reshape(out_channels, -1).t()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, seen_KP, weight, index = ctx.saved_tensors
        if torch.is_grad_enabled():
            inputs = (x, weight, *ctx.options)
            return differentiable_gradients(_small_plainly, inputs, ctx.needs_input_grad, grads[0])
        shape, (_, _, height, width), kernel, stride, padding, dilation = ctx.size
        (grad_PO,) = grads
        grad_weight = (grad_PO.t() @ seen_KP.t()).view(weight.shape) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, grad_weight, None, None, None, None
        clips, frames, channels, area, positions = shape
        grad_KP = weight.reshape(weight.shape[0], -1).t() @ grad_PO.t()
        seen = grad_KP.view(channels, index.shape[1], area, clips, index.shape[0], positions).permute(3, 4, 1, 0, 2, 5)
        columns = seen.new_zeros(shape).index_add_(1, index.flatten(), seen.flatten(1, 2))
        columns = columns.view(clips * frames, channels * area, positions)
        grad_x = F.fold(columns, (height, width), kernel, dilation, padding, stride)
        return grad_x, grad_weight, None, None, None, None


def _small_plainly(x: Tensor, weight: Tensor, frames: int, stride: Any, padding: Any, dilation: Any) -> Tensor:
    """Return the same answer by operations that autograd knows."""
    return convolve_plainly(x, weight, frames, stride, padding, dilation).permute(0, 2, 3, 1).reshape(-1, len(weight))


def _frames_seen(frames: int, kernel: int, stride: int) -> Tensor:
    """Return the input frames that each output frame sees (D', kD), as if the clip had no ends."""
    first = torch.arange(0, frames, stride) - center_of(kernel)
    return first[:, None] + torch.arange(kernel)


def _out_size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
