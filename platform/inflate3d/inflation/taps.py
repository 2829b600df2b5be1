"""Taps: how a 2D filter fills the third axis."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from inflate3d.errors import InputError, unknown_name

if TYPE_CHECKING:  # a config's taps are checked without torch
    from torch import Tensor

TapName = Literal["mean", "center", "overshoot", "random"]
TAP_NAMES: tuple[TapName, ...] = get_args(TapName)
_FROM_SYSTEM = 1 << 22  # bytes from which NumPy asks for huge pages


@dataclass(frozen=True)
class Taps:
    """Weights over the depth of a kernel; they sum to 1, so that a volume constant along D answers as the 2D net did.

    `mean` (I3D, arXiv:1705.07750): 1 / depth everywhere. `center` (Detect-and-Track, arXiv:1712.09184): 1 at the
    center. `overshoot` (negative weight around the center, after Mansimov et al., arXiv:1503.07274): 1 + 2a at the
    center and -a on each neighbour. `random`: a fresh kernel of the 2D kernel's scale; the 2D answer is not kept.
    """

    name: TapName = "center"
    overshoot: float = 0.25

    def __post_init__(self) -> None:
        if self.name not in TAP_NAMES:
            raise unknown_name("inflation", str(self.name), TAP_NAMES)
        if not 0 <= self.overshoot <= 2:
            raise InputError(f"overshoot is {self.overshoot}; it must lie in 0..2 (0.25 is usual)")

    def __str__(self) -> str:
        """Return 'center', or 'overshoot 0.25'."""
        return f"{self.name} {self.overshoot:g}" if self.name == "overshoot" else self.name

    @property
    def is_exact(self) -> bool:
        """Whether a static clip answers as the 2D net did."""
        return self.name != "random"

    def weights(self, depth: int) -> list[float]:
        """Return the weight of each of `depth` slices; their sum is 1. `random` has none."""
        assert self.is_exact, "random taps have no weights"
        if self.name == "mean":
            return [1 / depth] * depth
        middle = center_of(depth)
        taps = [0.0] * depth
        taps[middle] = 1.0
        if self.name == "overshoot":
            for neighbour in (middle - 1, middle + 1):
                if 0 <= neighbour < depth:
                    taps[neighbour] -= self.overshoot
                    taps[middle] += self.overshoot
        return taps


def center_of(depth: int) -> int:
    """Return the index of the slice that sees the output's own frame; the earlier of two for an even depth."""
    return (depth - 1) // 2


def inflate_kernel(weight_OIHW: Tensor, depth: int, *, taps: Taps) -> Tensor:
    """Return the 3D kernel that answers as the 2D one on a volume constant along D (for every tap set but `random`).

    Shapes: (O, I, H, W) -> (O, I, depth, H, W), contiguous, same dtype and device. Raises ValueError if `depth < 1`.
    """
    import torch

    if depth < 1:
        raise ValueError(f"depth is {depth}; a kernel has at least one slice")
    out_channels, in_channels, height, width = weight_OIHW.shape
    kernel = _zeros_like(weight_OIHW, (out_channels, in_channels, depth, height, width))
    if taps.name == "random":
        scale = weight_OIHW.float().std().item() if weight_OIHW.numel() > 1 and not weight_OIHW.is_meta else 0.02
        return kernel.normal_(0.0, scale * depth**-0.5)
    weights = taps.weights(depth)
    if len(set(weights)) == 1:
        # Whole rows at a time: broadcasting along D would copy H x W values at each step, in twice the time.
        rows = (weight_OIHW * weights[0]).reshape(out_channels * in_channels, height * width)
        torch.cat([rows] * depth, 1, out=kernel.view(out_channels * in_channels, -1))
        return kernel
    for slice_, weight in enumerate(weights):
        if weight == 1:
            kernel[:, :, slice_] = weight_OIHW
        elif weight != 0:
            torch.mul(weight_OIHW, weight, out=kernel[:, :, slice_])
    return kernel


def _zeros_like(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return zeros of a shape, of the dtype and device of `like`.

    Large ones on the CPU are NumPy's: the system hands it zeroed memory, in huge pages, so that nothing is written
    twice and a fresh 100 MB costs a third of the time.
    """
    import torch

    size = math.prod(shape) * like.element_size()
    if like.device.type != "cpu" or size < _FROM_SYSTEM:
        return like.new_zeros(shape)
    return torch.from_numpy(np.zeros(size, np.uint8)).view(like.dtype).view(shape)
