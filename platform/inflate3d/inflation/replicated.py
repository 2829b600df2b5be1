"""Convolutions over clips whose ends are replicated, by one call of torch's: what is saved for backward is x alone.

Formulations of the same: the clip is copied with its ends, or its neighbours are copied into its channels, or nothing
is copied: zeros pad D, and what the repeated frames add to the first and the last answer comes on top. Of a clip of one
frame every slice of the kernel sees the same, so their sum convolves it. Sums of slices are made again for backward.

Legend: B clips, D frames, N = B*D, C and O channels in and out, H W space, k kernel sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from inflate3d.inflation.ends import depth_padding, fold_ends, replicate_ends, seen_by_taps, taps_gradient, untrimmed
from inflate3d.inflation.second_order import differentiable_gradients

EDGE_TAPS = 3  # the kernels along D that corrected edges are for: one slice reaches past each end

Gradients = tuple[Tensor | None, ...]


class Sizes(NamedTuple):
    """What a convolution is beside its tensors; stride, padding and dilation are those of H and W.

    trim: how many slices at the ends of the kernel are added to those that stay before it convolves (see blind_ends).
    """

    frames: int
    depth_stride: int
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    trim: tuple[int, int] = (0, 0)

    @property
    def in_2d(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]:
        """The stride, padding, dilation and groups of F.conv2d."""
        return (self.stride, self.padding, self.dilation, self.groups)

    @property
    def strides(self) -> tuple[int, int, int]:
        """The stride along D, H and W."""
        return (self.depth_stride, *self.stride)

    def trimmed(self, weight_OIDHW: Tensor) -> Tensor:
        """The kernel that convolves."""
        return fold_ends(weight_OIDHW, 2, *self.trim)


def convolve_copied(x_NCHW: Tensor, weight_OIDHW: Tensor, bias: Tensor | None, sizes: Sizes) -> Tensor:
    """Convolve a copy of the clips with their ends: (N, C, H, W) -> (N', O, H', W'), D' = ceil(D / depth_stride)."""
    return _to_frames(_Copied.apply(*_cast(x_NCHW, weight_OIDHW, bias), *sizes))


def convolve_edges(x_NCHW: Tensor, weight_OIDHW: Tensor, bias: Tensor | None, sizes: Sizes) -> Tensor:
    """Convolve the clips as they are with kernels of three frames, then correct the edges; shapes as above."""
    return _to_frames(_Edges.apply(*_cast(x_NCHW, weight_OIDHW, bias), *sizes))


def convolve_in_channels(x_NCHW: Tensor, weight_OIDHW: Tensor, bias: Tensor | None, sizes: Sizes) -> Tensor:
    """Convolve frames in 2D that hold, in their channels, all that the kernel sees of their neighbours; groups 1."""
    return _InChannels.apply(x_NCHW, weight_OIDHW, bias, *sizes)  # type: ignore[no-any-return]


def convolve_summed(x_NCHW: Tensor, weight_OIDHW: Tensor, bias: Tensor | None, sizes: Sizes) -> Tensor:
    """Convolve in 2D by a kernel that `trim` leaves one slice of, and clips of one frame: -> (N, O, H', W')."""
    return _Summed.apply(*_cast(x_NCHW, weight_OIDHW, bias), *sizes)  # type: ignore[no-any-return]


def convolve_plainly(x_NCHW: Tensor, weight_OIDHW: Tensor, bias: Tensor | None, *sizes: Any) -> Tensor:
    """Convolve by operations that autograd, torch.func and exports know, to the last bit as convolve_copied."""
    return _to_frames(_trimmed_3d(x_NCHW, weight_OIDHW, bias, *sizes))


class _Copied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *sizes: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.sizes, ctx.has_bias = sizes, bias is not None
        return _trimmed_3d(x, weight, bias, *sizes)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Gradients:
        return _backward(ctx, grads[0], _trimmed_3d, _copied_gradients)


def _trimmed_3d(x: Tensor, weight: Tensor, bias: Tensor | None, *sizes: Any) -> Tensor:
    size = Sizes(*sizes)
    weight = size.trimmed(weight)
    seen, padding, dilation = _copy_of(x, weight, size), (0, *size.padding), (1, *size.dilation)
    return F.conv3d(seen, weight, bias, size.strides, padding, dilation, size.groups)


def _copied_gradients(grad: Tensor, x: Tensor, weight: Tensor, size: Sizes, wanted: list[bool]) -> Gradients:
    seen, padding, dilation = _copy_of(x, weight, size), (0, *size.padding), (1, *size.dilation)
    found = list(_convolution_gradients(grad, seen, weight, size.strides, padding, dilation, size.groups, wanted))
    if found[0] is not None:
        grad_BDHWC = found[0].permute(0, 2, 3, 4, 1)  # as it lies on a GPU
        ends = depth_padding(size.frames, weight.shape[2], size.depth_stride)
        found[0] = fold_ends(grad_BDHWC, 1, *ends).flatten(0, 1).permute(0, 3, 1, 2)
    return tuple(found)


def _copy_of(x: Tensor, weight: Tensor, size: Sizes) -> Tensor:
    before, after = depth_padding(size.frames, weight.shape[2], size.depth_stride)
    x_BDHWC = x.permute(0, 2, 3, 1).unflatten(0, (-1, size.frames))
    return replicate_ends(x_BDHWC, 1, before, after).permute(0, 4, 1, 2, 3)


class _Edges(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *sizes: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.sizes, ctx.has_bias = sizes, bias is not None
        size = Sizes(*sizes)
        clips, padding, dilation = _clips(x, size), (1, *size.padding), (1, *size.dilation)
        weight = size.trimmed(weight)
        y = F.conv3d(clips, weight, bias, size.strides, padding, dilation, size.groups)
        edges, taps, options = _edges_of(clips, weight, size)
        swapped = F.conv3d(edges, taps, None, *options)
        y[:, :, 0].add_(swapped[:, :, -1])
        if taps.shape[2] == 2:
            y[:, :, -1].add_(swapped[:, :, 0])
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Gradients:
        return _backward(ctx, grads[0], _trimmed_3d, _edges_gradients)


def _edges_gradients(grad: Tensor, x: Tensor, weight: Tensor, size: Sizes, wanted: list[bool]) -> Gradients:
    clips, padding, dilation = _clips(x, size), (1, *size.padding), (1, *size.dilation)
    found = _convolution_gradients(grad, clips, weight, size.strides, padding, dilation, size.groups, wanted)
    edges, taps, options = _edges_of(clips, weight, size)
    swapped = torch.cat([grad[:, :, -1:], grad[:, :, :1]], 2) if taps.shape[2] == 2 else grad[:, :, :1]
    mask = [*wanted[:2], False]
    strides, padding, dilation, groups = options
    grad_edges, grad_taps, _ = _convolution_gradients(swapped, edges, taps, strides, padding, dilation, groups, mask)
    if grad_edges is not None:
        _first_and_last(found[0], grad_edges.shape[2]).add_(grad_edges)  # type: ignore[arg-type]
    if grad_taps is not None:
        _first_and_last(found[1], grad_taps.shape[2]).add_(grad_taps)  # type: ignore[arg-type]
    return (None if found[0] is None else _to_frames(found[0]), *found[1:])


def _edges_of(clips: Tensor, weight: Tensor, size: Sizes) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
    """Return the frames at the ends, the taps that reach past them, and the options of the conv3d that joins them.

    With both ends, a dilation of 2 lets each of the two answers see the other end's frame alone, by one tap: the first
    answer is what the last frame lacks, the last what the first one does.
    """
    _, after = depth_padding(size.frames, EDGE_TAPS, size.depth_stride)
    along_d = (1, 2) if after else (0, 1)
    padding, dilation = ((d, *hw) for d, hw in zip(along_d, (size.padding, size.dilation), strict=True))
    count = 2 if after else 1
    options = ((1, *size.stride), padding, dilation, size.groups)
    return _first_and_last(clips, count), _first_and_last(weight, count), options


def _first_and_last(x: Tensor, count: int) -> Tensor:
    """Return the first slice along axis 2, or the first and the last; a view."""
    return x[:, :, :1] if count == 1 else x[:, :, :: x.shape[2] - 1]


class _InChannels(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *sizes: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.sizes, ctx.has_bias = sizes, bias is not None
        size = Sizes(*sizes)
        options = (size.stride, size.padding, size.dilation)
        weight = size.trimmed(weight)
        return F.conv2d(_neighbours(x, weight, size), weight.transpose(1, 2).flatten(1, 2), bias, *options)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Gradients:
        return _backward(ctx, grads[0], convolve_plainly, _in_channels_gradients)


def _in_channels_gradients(grad: Tensor, x: Tensor, weight: Tensor, size: Sizes, wanted: list[bool]) -> Gradients:
    seen, flat = _neighbours(x, weight, size), weight.transpose(1, 2).flatten(1, 2)
    options = (size.stride, size.padding, size.dilation, 1, wanted)
    grad_x, grad_weight, grad_bias = _convolution_gradients(grad, seen, flat, *options)
    if grad_x is not None:
        grad_BDHWK = grad_x.permute(0, 2, 3, 1).unflatten(0, (len(x) // size.frames, -1))
        parts = list(grad_BDHWK.chunk(weight.shape[2], -1))
        grad_x = taps_gradient(parts, size.frames, size.depth_stride).permute(0, 3, 1, 2)
    if grad_weight is not None:
        grad_weight = grad_weight.unflatten(1, (weight.shape[2], -1)).transpose(1, 2)
    return grad_x, grad_weight, grad_bias


def _neighbours(x: Tensor, weight: Tensor, size: Sizes) -> Tensor:
    """(N, C, H, W) -> (N', kD*C, H, W), channels-last."""
    seen = seen_by_taps(x.permute(0, 2, 3, 1), size.frames, weight.shape[2], size.depth_stride)
    return torch.cat(seen, -1).flatten(0, 1).permute(0, 3, 1, 2)


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *sizes: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.sizes, ctx.has_bias = sizes, bias is not None
        return _plain_sum(x, weight, bias, *sizes)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Gradients:
        return _backward(ctx, grads[0], _plain_sum, _summed_gradients)


def _plain_sum(x: Tensor, weight: Tensor, bias: Tensor | None, *sizes: Any) -> Tensor:
    size = Sizes(*sizes)
    return F.conv2d(x, size.trimmed(weight).squeeze(2), bias, *size.in_2d)


def _summed_gradients(grad: Tensor, x: Tensor, weight: Tensor, size: Sizes, wanted: list[bool]) -> Gradients:
    grad_x, grad_sum, grad_bias = _convolution_gradients(grad, x, weight.squeeze(2), *size.in_2d, wanted)
    return grad_x, None if grad_sum is None else grad_sum.unsqueeze(2), grad_bias


# ---------------------------------------------------------------------------------------------------- shared by all


def _backward(ctx: Any, grad: Tensor, plain: Callable[..., Tensor], own: Callable[..., Gradients]) -> Gradients:
    """Return the gradients of x, weight and bias; those of plain operations where they shall have gradients too.

    `own` is given the trimmed kernel, and gives its gradient.
    """
    x, weight = ctx.saved_tensors
    wanted, none = list(ctx.needs_input_grad[:3]), (None,) * len(ctx.sizes)
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        bias = weight.new_zeros(len(weight), requires_grad=True) if ctx.has_bias else None  # its value is not needed
        return differentiable_gradients(plain, (x, weight, bias, *ctx.sizes), ctx.needs_input_grad, grad)
    size = Sizes(*ctx.sizes)
    grad_x, grad_weight, grad_bias = own(grad, x, size.trimmed(weight), size, wanted)
    return grad_x, None if grad_weight is None else untrimmed(grad_weight, *size.trim), grad_bias, *none


def _convolution_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int, wanted: list[bool]
) -> Gradients:
    zeros = [0] * len(stride)
    options = ([len(weight)], stride, padding, dilation, False, zeros, groups, wanted)
    found: Gradients = torch.ops.aten.convolution_backward(grad, x, weight, *options)
    return found


def _clips(x: Tensor, size: Sizes) -> Tensor:
    """(N, C, H, W) -> (B, C, D, H, W); a view."""
    return x.unflatten(0, (-1, size.frames)).transpose(1, 2)


def _to_frames(y_BCDHW: Tensor) -> Tensor:
    return y_BCDHW.transpose(1, 2).flatten(0, 1)


def _cast(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Bring what a Function saves to the precision that it computes in: autocast is over when its backward runs."""
    kind = x.device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return x, weight, bias
    dtype = torch.get_autocast_dtype(kind)
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
