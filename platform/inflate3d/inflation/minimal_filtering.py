"""Kernels of three frames by minimal filtering: two output frames cost four 2D convolutions instead of six.

Winograd's F(2, 3) (Lavin and Gray, arXiv:1509.09308), along D alone. The frames of a clip and the slices of a kernel
are summed by small matrices first, convolved in 2D pair by pair, and the answers are summed again. Replicated ends are
part of the matrices, so nothing is padded. A clip of two frames needs three 2D convolutions: half sum and difference.

Legend: B clips, D frames, m products, t tiles of two output frames, C and O channels in and out, H W space.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from inflate3d.inflation.ends import untrimmed
from inflate3d.inflation.replicated import Sizes, convolve_plainly
from inflate3d.inflation.second_order import differentiable_gradients

TAPS = 3  # the kernel along D that these filters are for


class _Filter(NamedTuple):
    """The matrices of one clip length: of frames (m*t, D), of taps (m, 3), of answers (D, m*t)."""

    frames: Tensor
    taps: Tensor
    answers: Tensor
    products: int


def convolve_filtered(x_NCHW: Tensor, weight_OIDHW: Tensor, bias: Tensor | None, sizes: Sizes) -> Tensor:
    """Convolve folded clips of at least two frames with a kernel of three, all strides 1, D padded by replication.

    Shapes: (B*D, C, H, W) and (O, C, kD, kH, kW) -> (B*D, O, H', W'), channels-last; sizes.trim leaves three slices of
    the kernel. float32 and float64 on a CPU; the sums cost about one bit of precision.
    """
    size = _out_size(x_NCHW.shape[2:], weight_OIDHW.shape[3:], sizes.padding, sizes.dilation)
    y_BDX = _Filtered.apply(x_NCHW, weight_OIDHW, sizes)
    y = y_BDX.view(-1, *size, weight_OIDHW.shape[0]).permute(0, 3, 1, 2)
    return y if bias is None else y + bias.view(-1, 1, 1)  # type: ignore[no-any-return]


class _Filtered(torch.autograd.Function):
    """The answer as (B, D, H'*W'*O): of a view made in here, a ReLU in place would lose the gradient.

    What is saved is `x` alone; its sums and the kernel's are cheap to make again.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, sizes: Sizes) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.sizes = sizes
        filter_ = _filter_for(sizes.frames, x.dtype)
        kernels, sums = _sum_taps(sizes.trimmed(weight), filter_), _sum_frames(x, filter_.frames, filter_.products)
        options = (None, 1, sizes.padding, sizes.dilation)
        answers = [F.conv2d(s, k, *options) for s, k in zip(sums, kernels, strict=True)]
        return _gather(answers, filter_.answers, x.shape[0] // sizes.frames)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        if torch.is_grad_enabled():
            return differentiable_gradients(_filtered_plainly, (x, weight, ctx.sizes), ctx.needs_input_grad, grads[0])
        return *_filtered_gradients(grads[0], x, weight, ctx.sizes, ctx.needs_input_grad), None


def _filtered_gradients(
    grad_BDX: Tensor, x: Tensor, weight: Tensor, sizes: Sizes, wanted: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """Return the gradients of x and weight."""
    weight = sizes.trimmed(weight)
    frames, padding, dilation, shape = sizes.frames, sizes.padding, sizes.dilation, weight.shape
    filter_ = _filter_for(frames, x.dtype)
    clips = grad_BDX.shape[0]
    mask = [*wanted[:2], False]
    size = _out_size(x.shape[2:], shape[3:], padding, dilation)
    grad = grad_BDX.reshape(-1, *size, shape[0]).permute(0, 3, 1, 2)
    gradients = _sum_frames(grad, filter_.answers.t(), filter_.products)
    sums, kernels = _sum_frames(x, filter_.frames, filter_.products), _sum_taps(weight, filter_)
    parts = [
        torch.ops.aten.convolution_backward(g, s, k, None, (1, 1), padding, dilation, False, (0, 0), 1, mask)
        for g, s, k in zip(gradients, sums, kernels, strict=True)
    ]
    grad_x = None
    if mask[0]:
        grad_x = _gather([x for x, *_ in parts], filter_.frames.t(), clips)
        grad_x = grad_x.view(-1, *x.shape[2:], x.shape[1]).permute(0, 3, 1, 2)
    grad_weight = None
    if mask[1]:
        stacked = torch.stack([w.flatten(1) for _, w, _ in parts])  # (m, O, C*kH*kW)
        per_tap = torch.tensordot(filter_.taps, stacked, ([0], [0]))  # (3, O, C*kH*kW)
        grad_weight = per_tap.view(TAPS, shape[0], shape[1], *shape[3:]).permute(1, 2, 0, 3, 4)
        grad_weight = untrimmed(grad_weight, *sizes.trim)
    return grad_x, grad_weight


def _filtered_plainly(x: Tensor, weight: Tensor, sizes: Sizes) -> Tensor:
    """Return the same answer by operations that autograd knows."""
    y = convolve_plainly(x, weight, None, *sizes)
    return y.permute(0, 2, 3, 1).reshape(x.shape[0] // sizes.frames, sizes.frames, -1)


def _sum_taps(weight: Tensor, filter_: _Filter) -> list[Tensor]:
    """Return a 2D kernel (O, C, kH, kW) for each product."""
    slices = weight.unbind(2)
    kernels = []
    for row in filter_.taps.tolist():
        terms = [(factor, slice_) for factor, slice_ in zip(row, slices, strict=True) if factor]
        total = terms[0][1] * terms[0][0]
        for factor, slice_ in terms[1:]:
            total.add_(slice_, alpha=factor)
        kernels.append(total)
    return kernels


def _sum_frames(x: Tensor, matrix: Tensor, products: int) -> Tensor:
    """Mix the frames of every clip: (B*D, C, H, W) by (m*t, D) -> (m, B*t, C, H, W), channels-last."""
    _, channels, height, width = x.shape
    frames = matrix.shape[1]
    x_BDX = x.permute(0, 2, 3, 1).reshape(-1, frames, height * width * channels)
    mixed = matrix @ x_BDX[0] if x_BDX.shape[0] == 1 else matrix.view(products, 1, -1, frames) @ x_BDX
    return mixed.view(products, -1, height, width, channels).permute(0, 1, 4, 2, 3)


def _gather(parts: list[Tensor], matrix: Tensor, clips: int) -> Tensor:
    """Mix what each product gave, (B*t, O, H, W), by (D, m*t) -> (B, D, H*W*O)."""
    _, channels, height, width = parts[0].shape
    joined = torch.cat([p.permute(0, 2, 3, 1).reshape(clips, -1, height * width * channels) for p in parts], 1)
    return torch.bmm(matrix.expand(clips, -1, -1), joined)


def _out_size(size: Any, kernel: Any, padding: Any, dilation: Any) -> list[int]:
    return [n + 2 * p - d * (k - 1) for n, k, p, d in zip(size, kernel, padding, dilation, strict=True)]


@cache
def _filter_for(frames: int, dtype: torch.dtype) -> _Filter:
    if frames == 2:
        half_sum_and_difference = torch.tensor([[0.5, 0.5], [-1, 1], [-1, 1]], dtype=dtype)
        taps = torch.tensor([[1, 1, 1], [-0.5, 0, 0.5], [0, 0.5, 0]], dtype=dtype)
        return _Filter(half_sum_and_difference, taps, torch.tensor([[1, 1, -1], [1, 1, 1]], dtype=dtype), 3)
    read = torch.tensor([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], dtype=dtype)
    taps = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], dtype=dtype)
    write = torch.tensor([[1, 1, 1, 0], [0, 1, -1, -1]], dtype=dtype)
    tiles = -(-frames // 2)
    mixed = torch.zeros(4, tiles, frames, dtype=dtype)
    answers = torch.zeros(frames, 4, tiles, dtype=dtype)
    for tile in range(tiles):
        for offset in range(4):
            frame = min(max(2 * tile + offset - 1, 0), frames - 1)  # the ends are replicated
            mixed[:, tile, frame] += read[:, offset]
        for offset in range(min(2, frames - 2 * tile)):
            answers[2 * tile + offset, :, tile] = write[offset]
    return _Filter(mixed.flatten(0, 1), taps, answers.flatten(1), 4)
