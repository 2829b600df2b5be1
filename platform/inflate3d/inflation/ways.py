"""Ways: which of the formulations that give the same answer a folded convolution takes, on a CPU and on a GPU.

CPU rules were timed (docs/LOG.md), one thread, forward and backward. GPU rules are counted: bytes that a way moves,
sums that it adds, kernels that it launches; benchmarks/gpu.py times them where there is a GPU.
"""

from __future__ import annotations

import math
from enum import Enum

import torch
from torch import Tensor

from inflate3d.inflation.call import is_recorded
from inflate3d.inflation.depthwise import has_slow_backward
from inflate3d.inflation.replicated import EDGE_TAPS, Sizes

# On a CPU; positions: of the answer, over the batch.
SMALL_MAPS = 128
LONG_KERNEL = 2048
FILTER_TAPS, FILTER_POSITIONS = 3, 256
POINTWISE_POSITIONS, POINTWISE_CHANNELS = 1024, 256
# On a GPU. A copy of a clip moves 4 bytes a value (bf16), corrected edges convolve 2 of D frames once more by a third
# of the kernel. At 3e12 bytes/s and 4e14 operations/s (H100) these cost the same for D = C / 15.
CHANNELS_A_FRAME = 15
LEAST_CORRECTED = 4  # frames; of fewer, copying is nothing


class Way(Enum):
    """A formulation, named by what it does with the clip."""

    PLANE = "one 2D convolution: the kernel has one slice along D"
    SMALL = "one matrix product over small maps"
    FILTERED = "minimal filtering of three slices"
    IN_CHANNELS = "one 2D convolution, neighbours in the channels"
    SUMMED = "one 2D convolution by the sum of the kernel's slices: all see the same"
    COPIED = "one conv3d over a copy with its ends"
    EDGES = "one conv3d with zeros past the ends, edges corrected"
    TAPS = "a 2D convolution a slice, shifted and added"
    DEPTHWISE = "as taps, a trimmed kernel not saved, gradients by other ways where the library is slow"
    RECORDED = "plain operations alone"


def way_of(x: Tensor, weight: Tensor, sizes: Sizes) -> Way:
    """Return the way for folded clips (N, C, H, W) and a kernel (O, C/groups, kD, kH, kW)."""
    if is_on_gpu(x):
        return _way_on_gpu(weight, sizes)
    picks = sizes.depth_stride > 1 < sizes.frames  # some frames alone: a copy of them would be saved
    if weight.shape[2] == 1 and not (is_eager_on_cpu(x) and (sizes.groups == 1 or picks)):
        return Way.PLANE
    if sizes.groups > 1:
        return _grouped_way(x, weight, sizes)
    if is_eager_on_cpu(x):
        return _dense_way(x, weight, sizes)
    return Way.RECORDED if is_recorded() else Way.COPIED


def is_trimmed(x: Tensor, weight: Tensor, sizes: Sizes) -> bool:
    """Whether slices of a kernel that only ever see a replicated end are summed first; on a GPU if that halves it."""
    return not is_on_gpu(x) or 2 * (2 * sizes.frames - 1) <= weight.shape[2]


def _way_on_gpu(weight: Tensor, sizes: Sizes) -> Way:
    if weight.shape[2] == sizes.depth_stride == 1:
        return Way.PLANE
    if sizes.frames == 1:
        return Way.SUMMED
    is_long = sizes.frames >= max(LEAST_CORRECTED, weight.shape[1] / CHANNELS_A_FRAME)
    return Way.EDGES if is_long and _depth(weight, sizes) == EDGE_TAPS else Way.COPIED


def _grouped_way(x: Tensor, weight: Tensor, sizes: Sizes) -> Way:
    """A 2D convolution a slice is several times faster than conv3d where channels do not mix (depthwise)."""
    is_scaling = is_eager_on_cpu(x) and max(weight.shape[3:]) == 1 and has_slow_backward(weight, x, sizes.in_2d)
    if _depth(weight, sizes) == 1 < weight.shape[2] and not is_scaling:
        return Way.SUMMED
    if is_recorded() and not (torch.compiler.is_compiling() and sizes.depth_stride == 1):
        return Way.RECORDED
    if sizes.depth_stride > 1 or not is_eager_on_cpu(x):
        return Way.TAPS
    return Way.DEPTHWISE if any(sizes.trim) or has_slow_backward(weight, x, sizes.in_2d) else Way.TAPS


def _dense_way(x: Tensor, weight: Tensor, sizes: Sizes) -> Way:
    depth = _depth(weight, sizes)
    positions = _positions(x, sizes)
    if positions <= SMALL_MAPS and weight[0, :, :depth].numel() >= LONG_KERNEL:
        return Way.SMALL
    if depth == 1:
        return _plane_way(weight, sizes)
    if depth == FILTER_TAPS and max(sizes.strides) == 1 and positions >= FILTER_POSITIONS:
        return Way.FILTERED
    if sizes.frames == x.shape[0] and max(weight.shape[-2:]) <= 3:
        return Way.IN_CHANNELS  # torch's conv3d is slow on a single clip there
    return Way.COPIED


def _plane_way(weight: Tensor, sizes: Sizes) -> Way:
    if weight.shape[2] > 1:
        return Way.SUMMED
    return Way.IN_CHANNELS if sizes.depth_stride > 1 < sizes.frames else Way.PLANE


def _depth(weight: Tensor, sizes: Sizes) -> int:
    """The slices of the kernel that convolves."""
    return weight.shape[2] - sum(sizes.trim)


def _positions(x: Tensor, sizes: Sizes) -> int:
    return x.shape[0] * x.shape[2] * x.shape[3] // math.prod(sizes.strides)


def is_eager_on_cpu(x: Tensor) -> bool:
    """Whether x is computed with right here, by CPU kernels in full precision: where other ways of computing pay."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and not is_recorded()
        and x.shape[0] > 0
        and not torch.is_autocast_enabled("cpu")
    )


def is_on_gpu(x: Tensor) -> bool:
    """Whether x is computed with on an accelerator (or counted for one, on the meta device), compiled or not.

    Exports, jit.trace and torch.func take plain operations wherever they run.
    """
    if x.device.type == "cpu" or x.shape[0] == 0:
        return False
    return not is_recorded() or (torch.compiler.is_compiling() and not torch.compiler.is_exporting())
