"""Ends of a clip: frames repeated past them, what repeated frames hold added back, and kernels that see only them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from inflate3d.inflation.call import is_recorded
from inflate3d.inflation.taps import center_of


def is_free(size: int) -> bool:
    """Whether what is recorded just now (jit.trace, export) must hold for other sizes too, so that none may decide."""
    return not isinstance(size, int) or torch.compiler.is_exporting()


def depth_padding(frames: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return how many frames are replicated before and after, so that the output has ceil(frames / stride)."""
    before = center_of(kernel)
    if is_free(frames):
        return before, kernel - 1 - before  # what no output frame reaches is not read
    out = -(-frames // stride)
    return before, max((out - 1) * stride + kernel - frames - before, 0)


def replicate_ends(x: Tensor, dim: int, before: int, after: int) -> Tensor:
    """Return x with its first slice along `dim` repeated `before` times more, and its last `after` times; else x."""
    shape = [-1] * x.ndim
    parts = [x]
    if before > 0:
        shape[dim] = before
        parts.insert(0, x.narrow(dim, 0, 1).expand(shape))
    if after > 0:
        shape[dim] = after
        parts.append(x.narrow(dim, x.shape[dim] - 1, 1).expand(shape))
    return torch.cat(parts, dim) if len(parts) > 1 else x


def fold_ends(x: Tensor, dim: int, before: int, after: int) -> Tensor:
    """Return x without its first and last slices along `dim`, which are added to the outermost of those that stay.

    The transpose of replicate_ends: the gradient of what that was given, from that of its answer.
    """
    size = x.shape[dim]
    if before == after == 0:
        return x
    if before + after + 1 == size:
        return _sum_of_slices(x, dim)
    middle = x.narrow(dim, before + 1, size - before - after - 2)
    if before == after and x.device.type != "cpu":  # one sum: the ends are two windows of the axis
        first, last = x.unfold(dim, before + 1, size - before - 1).sum(-1).split(1, dim)
        return torch.cat([first, middle, last], dim)
    ends = x.narrow(dim, 0, before + 1), x.narrow(dim, size - after - 1, after + 1)
    first, last = (end.sum(dim, keepdim=True) if end.shape[dim] > 1 else end for end in ends)
    return torch.cat([first, middle, last], dim)


def _sum_of_slices(x: Tensor, dim: int) -> Tensor:
    if x.device.type != "cpu":
        return x.sum(dim, keepdim=True)
    first, *others = x.split(1, dim)  # faster than .sum on a CPU
    if not others:
        return first
    total = first + others[0]
    for part in others[1:]:
        total += part
    return total


def seen_by_taps(x: Tensor, frames: int, kernel: int, stride: int) -> list[Tensor]:
    """Return what each tap of a kernel reads of folded clips, the ends replicated: views of one copy at most.

    Shapes: (B*D, ...) -> `kernel` times (B, D', ...), D' = ceil(D / stride).
    """
    clips = x.unflatten(0, (-1, frames))
    before, after = depth_padding(frames, kernel, stride)
    padded = replicate_ends(clips, 1, before, after)
    span = (-(-frames // stride) - 1) * stride + 1
    return [padded[:, tap : tap + span : stride] for tap in range(kernel)]


def taps_gradient(grads: list[Tensor], frames: int, stride: int) -> Tensor:
    """Return the gradient of what seen_by_taps was given, from those of its views: (B, D', ...) each -> (B*D, ...)."""
    kernel = len(grads)
    before, after = depth_padding(frames, kernel, stride)
    shape = grads[0].shape
    padded = grads[0].new_zeros(shape[0], before + frames + after, *shape[2:])
    for tap, grad in enumerate(grads):
        padded[:, tap : tap + (shape[1] - 1) * stride + 1 : stride] += grad
    return fold_ends(padded, 1, before, after).flatten(0, 1)


def blind_ends(depth: int, frames: int) -> tuple[int, int]:
    """Return how many slices of a kernel, before and after, see nothing but the end frame that the next one sees too.

    Of a clip of `frames`, a tap that lies frames - 1 or more off the center reads the same end frame everywhere. So
    fold_ends of the kernel by these gives the same answer.
    """
    if depth == 1 or is_free(frames):
        return 0, 0
    middle = center_of(depth)
    return max(middle - frames + 1, 0), max(depth - middle - frames, 0)


def trim_depth(weight_OIDHW: Tensor, ends: tuple[int, int]) -> Tensor:
    """Return fold_ends of a kernel along D; its gradient is written once."""
    if not any(ends):
        return weight_OIDHW
    return fold_ends(weight_OIDHW, 2, *ends) if is_recorded() else _Trimmed.apply(weight_OIDHW, *ends)


class _Trimmed(torch.autograd.Function):
    """trim_depth where autograd watches."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, low: int, high: int) -> Tensor:
        ctx.ends = (low, high)
        return fold_ends(weight, 2, low, high)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return untrimmed(grads[0], *ctx.ends), None, None


def untrimmed(grad: Tensor, low: int, high: int) -> Tensor:
    """Return the gradient of a kernel (O, I, kD, ...) from that of the trimmed one."""
    if low == high == 0:
        return grad
    if grad.shape[2] == 1:
        return torch.cat([grad] * (low + 1 + high), 2)  # a third of an expanded one's copy on a CPU
    return replicate_ends(grad, 2, low, high)
