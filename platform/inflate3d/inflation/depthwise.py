"""Depthwise convolutions over clips: a 2D convolution a slice of the kernel, shifted along D and added.

Legend: B clips, D frames, N = B*D, C channels, H W space, k kernel sizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from inflate3d.inflation.ends import replicate_ends, seen_by_taps, taps_gradient, untrimmed
from inflate3d.inflation.replicated import Sizes
from inflate3d.inflation.second_order import differentiable_gradients
from inflate3d.inflation.taps import center_of

_CHEAP_KERNEL = 3  # up to here the library's own weight gradient is fast
_WIDEST_MAP = 16  # products over whole rows grow with their square
_CACHED_VALUES = 1.3e6


def has_slow_backward(weight: Tensor, x: Tensor, options: tuple[Any, ...]) -> bool:
    """Whether the library takes many times longer for a layer's gradients than for the convolution itself.

    So it is with kernels over 3x3, kernels larger than the map, dilated ones, and 1x1 kernels of few frames. options:
    (stride, padding, dilation, groups) of the 2D convolution.
    """
    stride, padding, dilation, groups = options
    size = weight.shape[-2:]
    is_depthwise = weight.shape[1] == 1 and groups == weight.shape[0] == x.shape[1]
    is_same = all(k % 2 and 2 * p == d * (k - 1) for k, p, d in zip(size, padding, dilation, strict=True))
    if not (is_depthwise and is_same and max(stride) == 1):
        return False
    return max(dilation) > 1 or max(size) == 1 or _exceeds_map(size, x) or _pays_by_rows(size, x)


def _scales(kernel: Tensor, x: Tensor, sizes: Sizes) -> bool:
    """Whether each slice of a kernel is one number a channel."""
    return max(kernel.shape[3:]) == 1 and has_slow_backward(kernel, x, sizes.in_2d)


def _pays_by_rows(size: torch.Size, x: Tensor) -> bool:
    return max(size) > _CHEAP_KERNEL and x.shape[3] <= _WIDEST_MAP


def _exceeds_map(size: torch.Size, x: Tensor) -> bool:
    return size[0] > x.shape[2] or size[1] > x.shape[3]


def convolve_depthwise(x_NCHW: Tensor, weight_OIDHW: Tensor, bias: Tensor | None, sizes: Sizes) -> Tensor:
    """Convolve folded clips as convolve_by_taps does, stride 1 along D, with a backward that saves x alone.

    Where the library's own gradients are slow (has_slow_backward), they are computed in other ways.
    """
    y = _Depthwise.apply(x_NCHW, weight_OIDHW, sizes).flatten(0, 1)
    return y if bias is None else y + bias.view(-1, 1, 1)  # type: ignore[no-any-return]


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, sizes: Sizes) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.sizes = sizes
        kernel = sizes.trimmed(weight)
        if _scales(kernel, x, sizes):
            taps = [x * slice_.squeeze(1) for slice_ in kernel.unbind(2)]
        else:
            taps = [F.conv2d(x, slice_, None, *sizes.in_2d) for slice_ in kernel.unbind(2)]
        return _add_shifted([tap.view(-1, sizes.frames, *tap.shape[1:]) for tap in taps])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grads[0].flatten(0, 1).contiguous(memory_format=torch.channels_last)
        kernel = ctx.sizes.trimmed(weight)
        grad_x, grad_kernel = _taps_gradients(grad, x, kernel, ctx.sizes, ctx.needs_input_grad)
        return grad_x, None if grad_kernel is None else untrimmed(grad_kernel, *ctx.sizes.trim), None


def _taps_gradients(
    grad: Tensor, x: Tensor, kernel: Tensor, sizes: Sizes, wanted: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of x and of the kernel that convolved."""
    if not has_slow_backward(kernel, x, sizes.in_2d):
        return _slices_gradients(grad, x, kernel, sizes, wanted)
    size = kernel.shape[3:]
    steps = tuple(d if k > 1 else 1 for k, d in zip(size, sizes.dilation, strict=True))
    plain = sizes._replace(dilation=(1, 1), padding=(size[0] // 2, size[1] // 2))
    if max(steps) > 1:
        return _in_phases(grad, x, kernel, plain, wanted, steps)
    if _pays_by_rows(size, x):
        grad_x = _input_gradient(grad, x, kernel, plain) if wanted[0] else None
        return grad_x, _weight_gradient(grad, x, kernel, sizes.frames) if wanted[1] else None
    return _on_larger_map(grad, x, kernel, plain, wanted)


def _in_phases(
    grad: Tensor, x: Tensor, kernel: Tensor, sizes: Sizes, wanted: tuple[bool, ...], steps: tuple[int, ...]
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of a dilated kernel: it sees every `steps`-th pixel, so each phase of the map is a clip."""
    height, width = x.shape[2:]
    down, right = steps
    missing = (0, -width % right, 0, -height % down)

    def split(t: Tensor) -> Tensor:
        t = F.pad(t.contiguous(memory_format=torch.channels_last), missing)
        phases = t.unflatten(3, (-1, right)).unflatten(2, (-1, down)).permute(3, 5, 0, 2, 4, 1)
        return phases.flatten(0, 2).permute(0, 3, 1, 2)  # channels-last

    grad_x, grad_kernel = _taps_gradients(split(grad), split(x), kernel, sizes, wanted)
    if grad_x is not None:
        apart = grad_x.unflatten(0, (down, right, -1)).permute(2, 3, 4, 0, 5, 1)
        grad_x = apart.flatten(4, 5).flatten(2, 3)[:, :, :height, :width]
    return grad_x, grad_kernel


def _on_larger_map(
    grad: Tensor, x: Tensor, kernel: Tensor, sizes: Sizes, wanted: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of a kernel that is larger than the map, with zeros around until it is not."""
    height, width = x.shape[2:]
    missing = (0, max(0, kernel.shape[4] - width), 0, max(0, kernel.shape[3] - height))
    grad_x, grad_kernel = _slices_gradients(F.pad(grad, missing), F.pad(x, missing), kernel, sizes, wanted)
    return None if grad_x is None else grad_x[:, :, :height, :width], grad_kernel


def _slices_gradients(
    grad: Tensor, x: Tensor, kernel: Tensor, sizes: Sizes, wanted: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None]:
    """Return both gradients slice by slice, by the library."""
    parts = _shifted_back(grad.unflatten(0, (-1, sizes.frames)), kernel.shape[2])
    grad_x, per_slice = None, []
    for part, slice_ in zip(parts, kernel.unbind(2), strict=True):
        add, of_slice, _ = _backward_in_2d(part.flatten(0, 1), x, slice_, sizes, wanted[:2])
        per_slice.append(of_slice)
        grad_x = add if grad_x is None else grad_x.add_(add)
    return grad_x, torch.stack(per_slice, 2) if wanted[1] else None


def _input_gradient(grad: Tensor, x: Tensor, kernel: Tensor, sizes: Sizes) -> Tensor:
    """Return the gradient of x: each slice's of the whole clip, then shifted, so that no shifted clip is copied."""
    slices = kernel.unbind(2)

    def gradient(slice_: Tensor) -> Tensor:
        found, _, _ = _backward_in_2d(grad, x, slice_, sizes, (True, False))
        return found.unflatten(0, (-1, sizes.frames))

    out = gradient(slices[center_of(len(slices))])
    for shift, slice_ in _shifts(slices):
        tap = gradient(slice_)
        near, far = _overlap(shift, sizes.frames)
        out[:, far] += tap[:, near]
        out[:, 0 if shift < 0 else -1] += tap[:, _edge(shift, sizes.frames)].sum(1)
    return out.flatten(0, 1)


def _backward_in_2d(grad: Tensor, x: Tensor, slice_: Tensor, sizes: Sizes, wanted: tuple[bool, ...]) -> Any:
    """Return the library's gradients of x, of a slice of the kernel, and None."""
    if _scales(slice_.unsqueeze(2), x, sizes):
        grad_slice = (grad * x).sum((0, 2, 3)).view(slice_.shape) if wanted[1] else None
        return grad * slice_.squeeze(1) if wanted[0] else None, grad_slice, None
    stride, padding, dilation, groups = sizes.in_2d
    options = (None, stride, padding, dilation, False, (0, 0), groups, [*wanted, False])
    return torch.ops.aten.convolution_backward(grad, x, slice_, *options)


def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, frames: int) -> Tensor:
    """Return the gradient of the weight, so many channels at a time that the copy of their clips stays in a cache."""
    depth, height = weight.shape[2:4]
    each = x[:, 0].numel() * depth * (1 + height / x.shape[2])  # values that a channel's copy holds
    channels = max(1, int(_CACHED_VALUES / each))
    parts = zip(grad.split(channels, 1), x.split(channels, 1), weight.split(channels), strict=True)
    return torch.cat([_gradient_by_rows(*part, frames) for part in parts])


def _gradient_by_rows(grad: Tensor, x: Tensor, weight: Tensor, frames: int) -> Tensor:
    """Sum the products of every row of `grad` with every row of `x` that the kernel brings to it.

    One product a row of the kernel gives (W, kD*W) for each channel; its diagonals are summed.
    """
    channels, _, depth, height, width = weight.shape
    rows, columns = x.shape[2:]
    x_CHBDW = x.unflatten(0, (-1, frames)).permute(2, 3, 0, 1, 4)
    x_CHBDW = replicate_ends(x_CHBDW, 3, center_of(depth), depth - 1 - center_of(depth))
    x_CHBDW = F.pad(x_CHBDW, (0, 0) * 3 + (height // 2,) * 2)
    seen_CHNK = x_CHBDW.unfold(3, depth, 1).transpose(4, 5).reshape(channels, rows + height - 1, -1, depth * columns)
    seen_CHNK = seen_CHNK.contiguous()  # of one clip it is a view that overlaps itself, which every product would copy
    grad_CWP = grad.permute(1, 3, 2, 0).reshape(channels, columns, -1)
    products = [
        torch.bmm(grad_CWP, seen_CHNK[:, row : row + rows].flatten(1, 2)).view(channels, columns, depth, columns)
        for row in range(height)
    ]
    pairs = torch.stack(products, 2).permute(0, 3, 2, 1, 4).reshape(-1, columns * columns)  # (C*kD*kH, W*W)
    return (pairs @ _diagonals(columns, width, x.dtype)).view(weight.shape)


@cache
def _diagonals(size: int, kernel: int, dtype: torch.dtype) -> Tensor:
    """Return (size*size, kernel): which diagonal of a (size, size) matrix each entry of a kernel's row sums."""
    position = torch.arange(size)
    offset = position[None, :] - position[:, None] + kernel // 2
    return (offset.flatten()[:, None] == torch.arange(kernel)).to(dtype)


class _SumOfTaps(torch.autograd.Function):
    """out[t] = sum over k of taps[k][clamp(t + k - center)], along axis 1 of (B, D, ...); one pass over each tap."""

    @staticmethod
    def forward(ctx: Any, *taps: Tensor) -> Tensor:
        ctx.count = len(taps)
        return _add_shifted(taps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return tuple(_shifted_back(grads[0], ctx.count))


def _add_shifted(taps: Sequence[Tensor]) -> Tensor:
    out = taps[center_of(len(taps))].clone()
    for shift, tap in _shifts(taps):
        near, far = _overlap(shift, tap.shape[1])
        out[:, near] += tap[:, far]
        edge = _edge(shift, tap.shape[1])
        out[:, edge] += tap[:, :1] if shift < 0 else tap[:, -1:]
    return out


def _shifted_back(grad: Tensor, count: int) -> list[Tensor]:
    """Return the gradient of every tap, from that of their sum."""
    results = [grad] * count
    for shift, _ in _shifts(results):
        near, far = _overlap(shift, grad.shape[1])
        part = torch.zeros_like(grad)
        part[:, far] = grad[:, near]
        part[:, 0 if shift < 0 else -1] += grad[:, _edge(shift, grad.shape[1])].sum(1)
        results[center_of(count) + shift] = part
    return results


def convolve_by_taps(x_NCHW: Tensor, weight_OIDHW: Tensor, bias: Tensor | None, sizes: Sizes) -> Tensor:
    """Convolve by one 2D convolution a slice, D padded by replication: (N, C, H, W) -> (N', O, H', W')."""
    if sizes.depth_stride > 1:
        return _PickedTaps.apply(x_NCHW, weight_OIDHW, bias, *sizes)  # type: ignore[no-any-return]
    taps = [F.conv2d(x_NCHW, slice_, None, *sizes.in_2d) for slice_ in weight_OIDHW.unbind(2)]
    shape = (-1, sizes.frames, *taps[0].shape[1:])
    total = _SumOfTaps.apply(*(tap.view(shape) for tap in taps)).view(taps[0].shape)
    return total if bias is None else total + bias.view(-1, 1, 1)  # type: ignore[no-any-return]


def convolve_by_taps_plainly(x_NCHW: Tensor, weight_OIDHW: Tensor, bias: Tensor | None, *sizes: Any) -> Tensor:
    """The same by plain operations: each slice convolves a copy of the frames that it reads."""
    total: Tensor | None = None
    size = Sizes(*sizes)
    weight = size.trimmed(weight_OIDHW)
    for seen, slice_ in zip(_frames_seen(x_NCHW, weight, size), weight.unbind(2), strict=True):
        part = F.conv2d(seen, slice_, bias if total is None else None, *size.in_2d)
        total = part if total is None else total + part
    assert total is not None
    return total


def _frames_seen(x: Tensor, weight: Tensor, sizes: Sizes) -> Iterator[Tensor]:
    """Yield the frames (N', C, H, W) that each slice of the kernel reads, channels-last."""
    for seen in seen_by_taps(x.permute(0, 2, 3, 1), sizes.frames, weight.shape[2], sizes.depth_stride):
        yield seen.flatten(0, 1).permute(0, 3, 1, 2)


class _PickedTaps(torch.autograd.Function):
    """convolve_by_taps with a stride along D; what is saved is `x`, not the frames that every slice picks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *sizes: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.sizes, ctx.has_bias = sizes, bias is not None
        return convolve_by_taps_plainly(x, weight, bias, *sizes)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        if torch.is_grad_enabled():
            bias = (
                weight.new_zeros(len(weight), requires_grad=True) if ctx.has_bias else None
            )  # its value is not needed
            inputs = (x, weight, bias, *ctx.sizes)
            return differentiable_gradients(convolve_by_taps_plainly, inputs, ctx.needs_input_grad, grads[0])
        found = _picked_gradients(grads[0], x, weight, Sizes(*ctx.sizes), ctx.needs_input_grad)
        return *found, *(None,) * len(ctx.sizes)


def _picked_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, sizes: Sizes, wanted: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """Return the gradients of x, weight and bias."""
    stride, padding, dilation, groups = sizes.in_2d
    weight = sizes.trimmed(weight)
    options = ([len(weight)], stride, padding, dilation, False, [0, 0], groups)
    masks = [[*wanted[:2], wanted[2] and tap == 0] for tap in range(weight.shape[2])]
    seen = zip(_frames_seen(x, weight, sizes), weight.unbind(2), masks, strict=True)
    found = [torch.ops.aten.convolution_backward(grad, part, slice_, *options, mask) for part, slice_, mask in seen]
    grad_x = None
    if wanted[0]:
        parts = [g.permute(0, 2, 3, 1).unflatten(0, (len(x) // sizes.frames, -1)) for g, *_ in found]
        grad_x = taps_gradient(parts, sizes.frames, sizes.depth_stride).permute(0, 3, 1, 2)
    grad_weight = untrimmed(torch.stack([g for _, g, _ in found], 2), *sizes.trim) if wanted[1] else None
    return grad_x, grad_weight, found[0][2]


def _shifts(taps: Any) -> list[tuple[int, Any]]:
    middle = center_of(len(taps))
    return [(k - middle, tap) for k, tap in enumerate(taps) if k != middle]


def _overlap(shift: int, frames: int) -> tuple[slice, slice]:
    """The output frames that a tap reaches inside the clip, and the frames that it reads there."""
    n = min(abs(shift), frames)
    return (slice(n, None), slice(0, frames - n)) if shift < 0 else (slice(0, frames - n), slice(n, None))


def _edge(shift: int, frames: int) -> slice:
    """The output frames whose tap falls off the clip's end."""
    n = min(abs(shift), frames)
    return slice(0, n) if shift < 0 else slice(frames - n, None)
