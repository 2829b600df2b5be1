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
    if before + after + 1 == size:
        return _sum_of_slices(x, dim)
    parts = [x.narrow(dim, 0, before + 1), x.narrow(dim, before + 1, size - before - after - 2)]
    parts.append(x.narrow(dim, size - after - 1, after + 1))
    parts = [p.sum(dim, keepdim=True) if i != 1 and p.shape[dim] > 1 else p for i, p in enumerate(parts)]
    return torch.cat(parts, dim) if before or after else x


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


def trim_depth(weight_OIDHW: Tensor, frames: int) -> Tensor:
    """Return the kernel with the slices that only ever see a replicated end added to the outermost that sees more.

    Exact: of a clip of `frames`, a tap that lies frames - 1 or more off the center reads the same end frame everywhere.
    """
    depth = weight_OIDHW.shape[2]
    if depth == 1 or is_free(frames):
        return weight_OIDHW
    middle = center_of(depth)
    low, high = max(middle - frames + 1, 0), max(depth - middle - frames, 0)  # slices that go, before and after
    if low == high == 0:
        return weight_OIDHW
    return fold_ends(weight_OIDHW, 2, low, high) if is_recorded() else _Trimmed.apply(weight_OIDHW, low, high)


class _Trimmed(torch.autograd.Function):
    """A kernel without its outermost slices, which are added to those that stay; the gradient is written once."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, low: int, high: int) -> Tensor:
        ctx.ends = (low, high)
        return fold_ends(weight, 2, low, high)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return untrimmed(grads[0], *ctx.ends), None, None


def untrimmed(grad: Tensor, low: int, high: int) -> Tensor:
    """Return the gradient of a kernel (O, I, kD, ...) from that of the trimmed one; of a single slice, a view."""
    if grad.shape[2] == 1:
        return grad.expand(-1, -1, low + 1 + high, *[-1] * (grad.ndim - 3))
    return replicate_ends(grad, 2, low, high)
